"""Base models in 4 bits, kept on disk as bitsandbytes packed them, so that a base is quantised once on a machine."""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from tuner import bases
from tuner.home import private_dir, tuner_home

# Never the last of the disk: runs and datasets come first.
_ROOM_LEFT = 2 * 2**30


def folder_of(base_dir: Path, quantised: dict) -> Path:
    """Where the packed copy of this base lies, whether it is there yet or not.

    Named by the hash of the base's weights, all that decides how they are packed, and the library that packs.

    Args:
        quantised: the arguments of BitsAndBytesConfig, all of them plain values.
    """
    what = [bases.weights_hash(base_dir), quantised, version("bitsandbytes"), version("transformers")]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    return tuner_home() / "models" / f"packed-{key}"


def is_there(folder: Path) -> bool:
    """Whether the copy is whole; it is renamed into place when it is."""
    return (folder / "config.json").is_file()


def keep(model, folder: Path) -> bool:
    """Write a freshly quantised model into the folder; whether it was kept.

    Not kept where the disk is nearly full: quantising again costs seconds, a run that cannot write its checkpoint is lost.
    """
    size = sum(its.numel() * its.element_size() for its in model.state_dict().values())
    parent = private_dir(folder.parent)
    if is_there(folder) or shutil.disk_usage(parent).free < size + _ROOM_LEFT:
        return False
    partial = Path(tempfile.mkdtemp(prefix=".packed-", dir=parent))
    try:
        model.save_pretrained(partial)
        os.replace(partial, folder)
        return True
    except OSError:  # the disk filled up meanwhile, or another process kept it first; either way this one goes on
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
