"""What a training pass takes in time and memory, by shape: the measurements that the constants of tuner/cost.py are fitted to.

    python -m tests.bench.fit_cost BASE_DIR OUT.jsonl [PART/PARTS]     measures, a line for each shape
    python -m tests.bench.fit_cost --fit OUT.jsonl ...                 fits, prints constants and what is left over
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """One micro-batch under one recipe."""

    lengths: tuple[int, ...]
    learned: float = 0.4
    rank: int = 16
    target_modules: str = "all-linear"
    checkpointing: bool = False
    dequantised: bool = True
    forward: bool = False


def shapes() -> list[Shape]:
    found = []
    for lengths in (
        (60,), (60,) * 4, (60,) * 16, (128,), (128,) * 2, (128,) * 8, (200,) * 5, (256,), (256,) * 4, (512,), (512,) * 2, (1024,), (1024,) * 2, (300,) * 3,
        tuple(range(40, 140, 10)),
    ):
        found.append(Shape(lengths))
        if sum(lengths) in (128, 1000, 1024):
            found += [Shape(lengths, 1.0), Shape(lengths, 0.1), Shape(lengths, rank=64), Shape(lengths, rank=4), Shape(lengths, checkpointing=True), Shape(lengths, dequantised=False), Shape(lengths, target_modules="attention"), Shape(lengths, forward=True)]
    return found


def measure(base_dir: Path, out: Path, part: str) -> None:
    import torch

    from tuner import batching, encode, fast, models, rehearsal, sizes
    from tuner.recipe import Recipe

    its = sizes.in_folder(base_dir)
    index, count = map(int, part.split("/"))
    wanted = [shape for place, shape in enumerate(shapes()) if place % count == index]
    wanted.sort(key=lambda shape: (shape.rank, shape.target_modules, shape.dequantised))
    made = None
    for shape in wanted:
        key = (shape.rank, shape.target_modules, shape.dequantised)
        if made != key:
            model = loaded = path = None
            recipe = Recipe(lora_rank=shape.rank, target_modules=shape.target_modules)
            loaded = models.load_base(base_dir, recipe, {"precision": models.choose_precision("cpu"), "dequantised": shape.dequantised})
            model = models.attach_lora(loaded.model, recipe, "bench/bench")
            path = fast.Path(model, 0)
            made = key
        path.checkpointing = shape.checkpointing
        rows = []
        for length in shape.lengths:
            ids = torch.randint(10, its.vocab - 10, (length,)).tolist()
            learned = max(1, round(shape.learned * length))
            labels = [encode.IGNORE] * (length - learned) + ids[length - learned :]
            rows.append(type("Row", (), {"ids": ids, "labels": labels})())
        batch = batching.collate(rows)
        taken, peaks, own = [], [], []
        for _ in range(4):
            model.train()
            held = _rss_gib()
            began, used = time.perf_counter(), time.process_time()
            with rehearsal._Peak() as seen:
                if shape.forward:
                    with torch.no_grad():
                        path.losses(batch)[0].sum()
                else:
                    path.losses(batch)[0].sum().backward()
            taken.append(time.perf_counter() - began)
            own.append((time.process_time() - used) / taken[-1] / torch.get_num_threads())
            peaks.append((held, seen.gib))
        model.zero_grad(set_to_none=True)
        line = {"shape": asdict(shape), "seconds": sorted(taken[1:])[1], "all": taken, "own": own, "held": [h for h, _ in peaks], "peak": [p for _, p in peaks], "base": base_dir.name, "family": its.__dict__}
        with open(out, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{shape.lengths[0]:>5} x {len(shape.lengths):<3} learned {shape.learned} rank {shape.rank} {shape.target_modules[:4]} ckpt {shape.checkpointing:d} deq {shape.dequantised:d} fwd {shape.forward:d}: "
              f"{line['seconds'] * 1000:8.1f} ms ({' '.join(f'{t * 1000:.0f}' for t in taken)}), held {peaks[-1][0]:.3f} peak {peaks[-1][1]:.3f} own {min(own):.2f}")


def fit(paths: list[Path]) -> None:
    """Print the constants that fit the measurements best, in relative terms, and by how much each shape is off."""
    import numpy as np

    from tuner import cost, machine, sizes
    from tuner.recipe import Recipe

    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    reach = machine.reach()
    names, rows, seconds, kept = list(cost.TRAIN["fast"]), [], [], []
    for line in lines:
        shape, its = Shape(**{**line["shape"], "lengths": tuple(line["shape"]["lengths"])}), sizes.Sizes(**line["family"])
        if shape.forward or shape.checkpointing:
            continue
        work = cost.Work.of(shape.lengths, sum(max(1, round(shape.learned * length)) for length in shape.lengths), 1, 0)
        recipe = Recipe(lora_rank=shape.rank, target_modules=shape.target_modules)
        found = cost._features(its, work, shape.rank, its.adapter(recipe), not shape.dequantised, reach)
        rows.append([found[name] for name in names])
        seconds.append(line["seconds"])
        kept.append((shape, line))
    matrix, wanted = np.array(rows), np.array(seconds)
    scaled = matrix / wanted[:, None]
    weights = np.ones(len(names))
    gram, target = scaled.T @ scaled + 1e-9 * np.eye(len(names)), scaled.sum(0)
    for _ in range(20_000):  # coordinate descent for least squares that are not negative
        for place in range(len(names)):
            rest = target[place] - gram[place] @ weights + gram[place, place] * weights[place]
            weights[place] = max(0.0, rest / gram[place, place])
    print({name: round(float(weight), 3) for name, weight in zip(names, weights)})
    for (shape, line), quoted in zip(kept, matrix @ weights):
        print(f"{quoted / line['seconds'] - 1:+6.1%}  {line['seconds'] * 1000:7.0f} ms  {shape.lengths[0]} x {len(shape.lengths)} learned {shape.learned} rank {shape.rank} {shape.target_modules} unpacked {shape.dequantised}")
    off = np.abs(matrix @ weights / wanted - 1)
    print(f"off by at most {off.max():.1%}, median {np.median(off):.1%}")
    by_shape = {json.dumps({**line["shape"], "forward": False, "checkpointing": False}): line["seconds"] for line in lines if not line["shape"]["forward"] and not line["shape"]["checkpointing"]}
    for what in ("forward", "checkpointing"):
        shares = [line["seconds"] / by_shape[key] for line in lines if line["shape"][what] and (key := json.dumps({**line["shape"], "forward": False, "checkpointing": False})) in by_shape]
        print(what, [round(share, 3) for share in shares])


def _rss_gib() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**30


if __name__ == "__main__":
    if sys.argv[1] == "--fit":
        fit([Path(name) for name in sys.argv[2:]])
        sys.exit()
    measure(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "0/1")
