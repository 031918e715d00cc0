"""A kept run brought back to a machine: what a repository holds is judged as a stranger's, whoever it belongs to."""

import hashlib
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

from tuner import child, hub, keeping, limits, tasks
from tuner import recipe as recipes
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import private_dir, require_free, safe_name, write_json, write_whole
from tuner.recipe import Recipe

GIB = 2**30
_CHECKPOINT = re.compile(r"checkpoints/checkpoint-(\d{1,9})/(" + "|".join(map(re.escape, keeping.CHECKPOINT_FILES)) + ")", re.ASCII)
# The most that a file of each name may have; what is not named here is not downloaded.
_MOST = {
    "kept.json": 2**20, "base.json": 2**16, "plan.json": 2**26, "events.jsonl": 2**28, "data/train.jsonl": 2 * GIB,
    "data/held_out.jsonl": GIB, "data/receipt.json": 2**26,
    **{name: 8 * GIB for task in tasks.TASKS for name in keeping.its_files(task)},
}
# Looking at all pictures of a kept run; one takes a few milliseconds.
_PICTURES_S = 1800.0
_MOST_TENSORS, _MOST_JSON, _MOST_IN_ALL, _MOST_CHECKPOINTS = 4 * GIB, 2**26, 12 * GIB, 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|")


def most_bytes(path: str) -> int:
    """How large a file of this path may be; 0 for one that has no business in a kept run."""
    if path in _MOST:
        return _MOST[path]
    if _CHECKPOINT.fullmatch(path):
        return _MOST_TENSORS if path.endswith(".safetensors") else _MOST_JSON
    return 0


def bring_back(owner: str, repo_id: str, token: str | None) -> runs.Run:
    """Download a kept run of the account behind the token, check all of it, and make it this owner's run, ready to be resumed.

    Raises:
        UserError: it is none of theirs, is here already, or holds what a kept run does not; then nothing is left here.
    """
    user = hub.whoami(token)
    run_id = keeping.require_kept_id(repo_id, user).partition("/")[2].removeprefix(keeping.PREFIX)
    run = runs.Run(owner, safe_name(run_id, "The run"))
    if run.folder.exists():
        raise UserError(f"The run {run_id} is on this machine already. Open it from your list.")
    place = private_dir(run.folder.parent) / f".kept-{run_id}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    try:
        downloaded = _download(repo_id, token, place / "download")
        whole = place / "run"
        whole.mkdir(mode=0o700)
        _assemble(downloaded, whole, run_id, repo_id)
        limits.spend(owner, limits.ROWS, runs.count_lines(whole / "data" / "train.jsonl") + runs.count_lines(whole / "data" / "held_out.jsonl"))
        whole.rename(run.folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    run.log("note", message=f"Brought back from {repo_id}. Resume goes on from there.")
    return run


def _download(repo_id: str, token: str, folder: Path) -> Path:
    """The files of a kept run, no others, at one commit, into a cache of this visitor's own."""
    from huggingface_hub import HfApi, snapshot_download

    with hub.in_words(repo_id, True):
        info = HfApi().model_info(repo_id, files_metadata=True, token=token, timeout=hub.TIMEOUT_S)
        sizes = {its.rfilename: its.size or 0 for its in info.siblings or [] if most_bytes(its.rfilename)}
        if "kept.json" not in sizes:
            raise UserError(f"{repo_id} holds no kept run: it has no kept.json. Choose another.")
        if large := [name for name, size in sizes.items() if size > most_bytes(name)]:
            raise UserError(f"{repo_id} holds {large[0]} with {sizes[large[0]] / 2**20:,.0f} MiB, more than a run has. It is not brought back.")
        if len({name.split("/")[1] for name in sizes if name.startswith("checkpoints/")}) > _MOST_CHECKPOINTS or sum(sizes.values()) > _MOST_IN_ALL:
            raise UserError(f"{repo_id} holds more checkpoints than a kept run has. It is not brought back.")
        require_free(2 * sum(sizes.values()), "The kept run")
        return Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=sorted(sizes), token=token, cache_dir=folder, max_workers=2))


def _assemble(source: Path, target: Path, run_id: str, repo_id: str) -> None:
    """Write the run's folder from what was downloaded, each file only after it was found to be what it should."""

    def bad(what: str) -> UserError:
        return UserError(f"{repo_id} is not a whole kept run: {what}. It was changed since, or by hand. Nothing was brought back.")

    told = _json(source / "kept.json", dict, bad)
    if told.get("version") != keeping.VERSION or told.get("run") != run_id:
        raise bad("its kept.json is of another run or version")
    files = told.get("files")
    if not isinstance(files, dict) or not {"data/train.jsonl", "data/held_out.jsonl", "data/receipt.json"} <= set(files):
        raise bad("its kept.json names no rows")
    for path, its in files.items():
        if not most_bytes(path) or not isinstance(its, dict) or not _SHA256.fullmatch(str(its.get("sha256"))):
            raise bad(f"{shorten(path, 40)} has no business there")
        if not (source / path).is_file():
            raise bad(f"{path} is missing")
        _copy(source / path, target / path, its["sha256"], bad)
    write_whole(target / "recipe.toml", str(told.get("recipe")))
    try:
        recipe = recipes.load(target / "recipe.toml")
        recipe.check()
    except UserError as error:
        raise bad(f"its recipe cannot be: {shorten(error, 200)}") from None
    write_whole(target / "title.txt", " ".join(str(told.get("title", "")).split())[:120] or run_id)
    if other := set(files) & {name for task in tasks.TASKS for name in keeping.its_files(task)} - set(keeping.its_files(recipe.task)):
        raise bad(f"{sorted(other)[0]} has no business there")
    _check_rows(target, recipe, bad)
    _check_pictures(target, recipe, bad)
    if not isinstance(_json(target / "data" / "receipt.json", dict, bad).get("source", {}), dict):
        raise bad("its receipt is none")
    _check_base(target, recipe, bad)
    _check_plan(target, recipe, bad)
    _check_checkpoints(target, bad)
    _clean_events(target / "events.jsonl", tasks.get(recipe.task).EVAL_FIGURES)


def _copy(source: Path, target: Path, sha256: str, bad) -> None:
    """By content: the cache keeps links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(source, "rb") as file, open(target, "wb") as copy:
        while block := file.read(2**20):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != sha256:
        raise bad(f"{target.name} is not the file that was kept")


def _json(path: Path, kind: type, bad):
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise bad(f"{path.name} cannot be read")
    return found


def _check_rows(folder: Path, recipe: Recipe, bad) -> None:
    for part in ("train", "held_out"):
        with open(folder / "data" / f"{part}.jsonl", encoding="utf-8", errors="strict") as file:
            try:
                for line in file:
                    row = json.loads(line)
                    if not isinstance(row, dict) or type(row.get("n")) is not int or not tasks.get(recipe.task).is_row(row):
                        raise bad(f"{part}.jsonl holds what is no row")
            except (ValueError, RecursionError):
                raise bad(f"{part}.jsonl cannot be read") from None


def _check_pictures(folder: Path, recipe: Recipe, bad) -> None:
    """Each picture that a row points to: there, the one that the row names, and such as are kept here. Looked at in a process that can be killed."""
    if not keeping.its_files(recipe.task):
        return
    try:
        done = child.finish("tuner.pictures", str(folder / "data"), seconds=_PICTURES_S)
    except subprocess.TimeoutExpired:
        raise bad("its pictures take longer to look at than any honest ones") from None
    if done.returncode:
        said = done.stdout.strip().splitlines()
        raise bad(shorten(said[-1], 200) if said else "a picture of it broke the process that looked at it")


def _check_base(folder: Path, recipe: Recipe, bad) -> None:
    """Of the base only its name is taken over; it is fetched, judged and compared here like any other."""
    if not (folder / "base.json").exists():
        return
    its = _json(folder / "base.json", dict, bad)
    licence = its.get("licence") if isinstance(its.get("licence"), dict) else {}
    revision = its.get("revision", "")
    if its.get("id") != recipe.base_model or not isinstance(revision, str) or not _COMMIT.fullmatch(revision):
        raise bad("its base is not the recipe's")
    write_json(folder / "base.json", {
        "id": recipe.base_model, "revision": revision, "what": shorten(its.get("what", ""), 200),
        "licence": {str(key)[:40]: shorten(value, 200) for key, value in list(licence.items())[:5] if isinstance(value, (str, list))},
    })


# What each choice in a plan may be; see `train.make_plan`.
_PLAN = {
    "device": lambda its: its in ("cpu", "cuda"), "precision": lambda its: its in ("bfloat16", "float16", "float32"),
    "attention": lambda its: its in ("sdpa", "eager"), "dequantised": lambda its: type(its) is bool,
    "kept_16bit": lambda its: isinstance(its, list) and all(isinstance(name, str) and len(name) < 200 for name in its),
    "base_sha256": lambda its: isinstance(its, str) and bool(_SHA256.fullmatch(its)),
    "tokens_at_once": lambda its: _whole(its, 1), "micro_batch": lambda its: _whole(its, 0), "steps": lambda its: _whole(its, 1),
    "gradient_checkpointing": lambda its: type(its) is bool,
    "evaluate_at": lambda its: isinstance(its, list) and all(_whole(step, 0) for step in its),
    "evaluated_rows": lambda its: isinstance(its, list) and all(_whole(row, 0) for row in its),
    "fast": lambda its: isinstance(its, dict) and len(its) < 20 and all(type(value) in (bool, int, str, type(None)) for value in its.values()),
    "longer_from": lambda its: _whole(its, 0), "rows_from": lambda its: _whole(its, 0),
}
# What only a run has that was trained longer.
_NOT_ALWAYS = {"longer_from", "rows_from"}


def _whole(its, least: int) -> bool:
    return type(its) is int and least <= its < 10**9


def _check_plan(folder: Path, recipe: Recipe, bad) -> None:
    if not (folder / "plan.json").exists():
        return
    plan = _json(folder / "plan.json", dict, bad)
    known = {**_PLAN, **tasks.get(recipe.task).PLANNED}
    if wrong := [name for name, its in plan.items() if name not in known or not known[name](its)]:
        raise bad(f"its plan says {shorten(wrong[0], 30)}: {shorten(plan[wrong[0]], 40)}")
    if missing := set(known) - _NOT_ALWAYS - set(plan):
        raise bad(f"its plan lacks {sorted(missing)[0]}")


def _check_checkpoints(folder: Path, bad) -> None:
    """Each whole by its own manifest, its tensors readable and numbers; the trainer compares names and shapes itself."""
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        step = int(checkpoint.name.rpartition("-")[2])
        manifest = _json(checkpoint / "manifest.json", dict, bad)
        named = manifest.get("files")
        there = {path.name for path in checkpoint.iterdir()} - {"manifest.json"}
        if manifest.get("step") != step or not isinstance(named, dict) or set(named) != there:
            raise bad(f"the manifest of step {step} does not fit its files")
        for name in there:
            if name.endswith(".json"):
                _json(checkpoint / name, (dict, list), bad)
            else:
                _check_tensors(checkpoint / name, bad)
        kept = _json(checkpoint / "tuning.json", dict, bad)
        best = kept.get("best")
        right = (
            isinstance(best, dict) and _number(kept.get("elapsed_s")) and _whole(best.get("worse"), 0)
            and (best.get("step") is None or _whole(best["step"], 0)) and all(isinstance(best.get(its, best.get("loss")), (int, float)) for its in ("loss", "lowest"))
            and isinstance(score := best.get("score", []), list) and len(score) < 10 and all(isinstance(its, (int, float)) for its in score)
            and (kept.get("measured_at") is None or _whole(kept["measured_at"], 0))
        )
        if not right:
            raise bad(f"what step {step} says of itself cannot be")


def _check_tensors(path: Path, bad) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError):
        raise bad(f"{path.name} holds no tensors") from None


def _number(its) -> bool:
    return type(its) in (int, float) and math.isfinite(its)


# What the page reads of each event; all else is left behind.
_NUMBERS = {
    "step": ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "labelled_tokens", "tokens_per_s", "elapsed_s", "eta_s", "memory_gib", "steps"),
    "eval": ("step", "loss", "rows"), "sample": ("step", "number"), "note": ("step",), "status": (),
}
_TEXTS = {"sample": ("prompt", "text"), "note": ("message", "rule"), "status": ("state", "message")}
_NEEDED = {
    "step": {"step", "loss", "learning_rate", "elapsed_s", "eta_s", "tokens_per_s", "memory_gib", "steps", "tokens"}, "eval": {"step", "loss", "best"},
    "sample": {"step", "number", "prompt", "text", "ended"}, "note": {"message"}, "status": {"state", "message"},
}


def _clean_events(path: Path, figures: tuple[str, ...]) -> None:
    """The curves and words of the run so far, rebuilt from what has the right form; a line that has not is left out.

    Args:
        figures: what the task's evaluations say besides the loss.
    """
    kept = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                its = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(its, dict) and (clean := _clean(its, figures)):
                kept.append(json.dumps(clean, ensure_ascii=False))
    write_whole(path, "".join(f"{line}\n" for line in kept))


def _clean(its: dict, figures: tuple[str, ...]) -> dict | None:
    kind = its.get("kind")
    if kind not in _NEEDED or not _number(its.get("t")) or (kind == "status" and its.get("state") not in (*runs.LIVE, *runs.ENDED)):
        return None
    clean = {"t": its["t"], "kind": kind}
    numbers = (*_NUMBERS[kind], *figures) if kind == "eval" else _NUMBERS[kind]
    clean |= {name: its[name] for name in numbers if _number(its.get(name)) or (name == "grad_norm" and name in its and its[name] is None)}
    clean |= {name: its[name][:20_000] for name in _TEXTS.get(kind, ()) if isinstance(its.get(name), str)}
    clean |= {name: its[name] for name in ("best", "ended") if type(its.get(name)) is bool}
    return clean if _NEEDED[kind] <= set(clean) else None


