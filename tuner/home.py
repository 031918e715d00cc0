"""Where things are kept, how they are written whole, and whether they survive a restart."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuner.errors import UserError

# One folder name per person or thing: no separators, no leading dot, nothing a file system could read as a path.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")

# Who owns what a person does on a machine of their own: at its terminal, and on a page that serves this machine only.
LOCAL_OWNER = "local"
DEMO_ROOT = Path(__file__).resolve().parent.parent / "presets"


def tuner_home() -> Path:
    """The folder that holds runs, datasets and models: $TUNER_HOME, else /data/tuner if a volume is mounted, else a cache."""
    if named := os.environ.get("TUNER_HOME"):
        return Path(named).expanduser().resolve()
    if os.path.ismount("/data") and os.access("/data", os.W_OK):
        return Path("/data/tuner")
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser().resolve() / "tuner"


def on_a_space() -> bool:
    """Whether this process serves a Hugging Face Space."""
    return os.environ.get("SYSTEM") == "spaces"


def survives_restart() -> bool:
    """Whether what is kept here is still there after the machine restarts: not on a Space without a volume."""
    return not on_a_space() or os.path.ismount("/data") or bool(os.environ.get("TUNER_HOME"))


def safe_name(name: str, what: str) -> str:
    """The name itself, if it can be one folder's name.

    Raises:
        UserError: it could reach outside its folder.
    """
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{what} {str(name)[:60]!r} is not known here. Choose one from the list.")
    return name


def private_dir(path: Path) -> Path:
    """Make the folder, readable by this account only, and give it back."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a machine that dies, meets the old content or the new, never a part.

    Raises:
        UserError: the disk is full.
    """
    # Its own for each thread, too: two visitors may bring the same base at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # a read-only disk takes that neither
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder last: a rename is kept only once its folder is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: object) -> None:
    """`write_whole` for JSON."""
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, default: object = None) -> object:
    """The JSON in the file, or the default where there is no such file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return default


@contextmanager
def system_errors() -> Iterator[None]:
    """What safetensors tells as an error of its own, a disk that is full or read-only, as the system's."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


def disk_error(error: OSError, path: Path) -> UserError | OSError:
    """The same error in words where the disk is the reason, else the error itself."""
    import errno

    free_gib = shutil.disk_usage(path.parent if path.parent.exists() else "/").free / 2**30
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"The disk is full ({free_gib:.1f} GiB free), so {path.name} could not be written. "
            "Delete a run you no longer need, then try again."
        )
    if error.errno in (errno.EROFS, errno.EACCES):
        return UserError(f"{path.name} could not be written: the folder is read-only. Check {path.parent.name}'s rights.")
    if error.errno == errno.EIO:
        return UserError(f"The disk failed while {path.name} was written ({error.strerror}). Check it, then go on from what was written before.")
    return error


def require_free(size_bytes: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: less than the size plus half a GiB is free.
    """
    home = tuner_home()
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < size_bytes + 2**29:
        raise UserError(
            f"{what} needs {size_bytes / 2**30:.1f} GiB on the disk and {free / 2**30:.1f} GiB is free. "
            "Delete a run you no longer need, then try again."
        )
