"""Which base model this is: the hash of its weights, read without torch."""

import hashlib
import json
from pathlib import Path

from tuner.errors import UserError
from tuner.home import read_json, tuner_home, write_json


def weights_hash(base_dir: Path) -> str:
    """sha256 over the names and contents of a base's safetensors files; remembered by their size and time."""
    files = sorted(Path(base_dir).glob("*.safetensors"))
    if not files:
        raise UserError(
            "The base model has no safetensors weights on this machine. Choose one that has; pickled weights are not loaded."
        )
    stamp = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:32]
    known_path = tuner_home() / "models" / "hashes.json"
    known = read_json(known_path, {})
    if key not in known:
        total = hashlib.sha256()
        for file in files:
            with open(file, "rb") as source:
                total.update(file.name.encode() + hashlib.file_digest(source, "sha256").digest())
        known[key] = total.hexdigest()
        known_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(known_path, known)
    return known[key]


def require_same(base: dict, wanted_sha256: str) -> None:
    """Refuse a base whose weights are not the ones an adapter was trained on.

    Raises:
        UserError: the files are gone, or are others.
    """
    if not Path(base["dir"]).is_dir():
        raise UserError(f"The base model {base['id']} of this run is not on this machine any more. Start a new run.")
    if weights_hash(Path(base["dir"])) != wanted_sha256:
        raise UserError(
            f"The weights of {base['id']} here are not the ones this was trained on, so the two are not used together. "
            "Start a new run."
        )
