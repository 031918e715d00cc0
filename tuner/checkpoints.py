"""Checkpoints that are whole or not there: safetensors and JSON only, hashed, renamed into place."""

import base64
import errno
import hashlib
import os
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tuner.home import disk_error, read_json, sync_folder, system_errors, write_json

PREFIX = "checkpoint-"


def write(folder: Path, step: int, adapter: dict, optimizer: dict, scheduler: dict, extra: dict[str, dict]) -> Path:
    """Write one checkpoint under a temporary name, sync it, hash it, then give it its name.

    Args:
        adapter: name -> tensor.
        optimizer: a torch optimiser's state_dict.
        scheduler: a torch scheduler's state_dict.
        extra: further JSON files by name; trainer_state among them.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full, read-only, or holds something else than was written to it; the older checkpoints are untouched.
    """
    folder.mkdir(exist_ok=True)
    target, temporary = folder / f"{PREFIX}{step}", folder / f".tmp-{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, its in optimizer["state"].items() for name, value in its.items()
    }
    try:
        for name, its in (("adapter", adapter), ("optimizer", tensors)):
            with system_errors():
                save_file(its, temporary / f"{name}.safetensors")
        write_json(temporary / "optimizer.json", optimizer["param_groups"])
        write_json(temporary / "scheduler.json", scheduler)
        write_json(temporary / "random.json", random_state())
        for name, content in extra.items():
            write_json(temporary / f"{name}.json", content)
        for path in temporary.glob("*.safetensors"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for name, its in (("adapter", adapter), ("optimizer", tensors)):
            if not _holds(temporary / f"{name}.safetensors", its):
                raise OSError(errno.EIO, f"{name}.safetensors does not hold what was written to it")
        manifest = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in temporary.iterdir()}
        write_json(temporary / "manifest.json", {"step": step, "files": manifest})
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(error, target) from error
    return target


def _holds(path: Path, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the file can be read and holds these tensors and no others, bit for bit."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys()) == set(tensors) and all(_same(file.get_tensor(name), its) for name, its in tensors.items())
    except SafetensorError:
        return False


def _same(read: torch.Tensor, its: torch.Tensor) -> bool:
    its = its.detach().cpu().contiguous()
    return read.dtype == its.dtype and read.shape == its.shape and torch.equal(read.reshape(-1).view(torch.uint8), its.reshape(-1).view(torch.uint8))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file is as it says."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        return bool(manifest) and all(
            (checkpoint / name).stat().st_size == its["bytes"] and _sha256(checkpoint / name) == its["sha256"]
            for name, its in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, oldest first, whole or not."""
    found = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")]
    return sorted(int(name) for name in found if name.isdigit())


def newest(folder: Path, on_broken=lambda step: None) -> Path | None:
    """The newest checkpoint that its manifest confirms; broken ones are reported and passed over."""
    for step in reversed(steps(folder)):
        if is_whole(folder / f"{PREFIX}{step}"):
            return folder / f"{PREFIX}{step}"
        on_broken(step)
    return None


def prune(folder: Path, best: int | None, keep: int = 2) -> None:
    """Delete all but the newest `keep` and the best; None where there is none."""
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(folder / f"{PREFIX}{step}", ignore_errors=True)


def load_adapter(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter.safetensors")


def load_optimizer(checkpoint: Path) -> dict:
    """A state_dict for torch's `Optimizer.load_state_dict`."""
    state: dict[int, dict] = {}
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = read_json(checkpoint / "optimizer.json")
    for group in groups:
        group["betas"] = tuple(group["betas"])
    return {"state": state, "param_groups": groups}


# Random state -----------------------------------------------------------------------------------------------------


def random_state() -> dict:
    """All random states of this process, as JSON."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    pack = lambda tensor: base64.b64encode(tensor.numpy().tobytes()).decode()  # noqa: E731
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), int(place), int(has_gauss), float(cached)],
        "torch": pack(torch.random.get_rng_state()),
        "cuda": [pack(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict) -> None:
    """Put back what `random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    unpack = lambda text: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)  # noqa: E731
    torch.random.set_rng_state(unpack(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([unpack(text) for text in state["cuda"]])


@contextmanager
def random_untouched():
    """Whatever happens inside leaves every random state as it was: measuring must not change what is learned."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)
