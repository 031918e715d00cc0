"""A base in 4 bits as it lies on disk, so that it is quantised once and not at every start."""

import ctypes
import gc
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from tuner import bases
from tuner.home import private_dir, tuner_home


def folder_of(base_dir: Path, model_class: str, kept: list[str], precision: str) -> Path:
    """Where this base lies in 4 bits, whether it is there yet or not; other weights or other choices lie elsewhere."""
    what = [bases.weights_hash(base_dir), model_class, kept, precision, version("bitsandbytes"), version("transformers")]
    config = (Path(base_dir) / "config.json").read_bytes()
    name = hashlib.sha256(json.dumps(what).encode() + config).hexdigest()[:32]
    return tuner_home() / "models" / "packed" / name


def is_ready(folder: Path) -> bool:
    """Whether it is there; the folder is renamed into place when it is whole."""
    return (folder / "config.json").is_file()


def keep(model, folder: Path) -> bool:
    """Write the quantised model; False where the disk has no room for it, which costs the next start some time only."""
    size = sum(its.numel() * its.element_size() for its in model.state_dict().values())
    parent = private_dir(folder.parent)
    if shutil.disk_usage(parent).free < 3 * size + 2**30:
        return False
    temporary = Path(tempfile.mkdtemp(prefix=".packed-", dir=parent))
    try:
        model.save_pretrained(temporary)
        os.replace(temporary, folder)
    except OSError:  # full by now, or another process was first
        return is_ready(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def drop(folder: Path) -> None:
    """Forget a copy that cannot be read; the base is quantised again."""
    shutil.rmtree(folder, ignore_errors=True)


def give_back() -> None:
    """Return freed memory to the system: loading leaves as much free inside the process as the model has."""
    gc.collect()
    trim()


def trim() -> None:
    """The same for what is free already (20 ms); another C library than glibc keeps what it has."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
