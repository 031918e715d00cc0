"""What may leave this machine: an allow-list of files, a card the Hub takes, no pickle, and no path, name or token of ours."""

import getpass
import json
import mmap
import os
import re
import tempfile
from pathlib import Path

from tuner import child, licences, tasks
from tuner.errors import UserError, shorten
from tuner.home import tuner_home
from tuner.recipe import HUB_ID

# All that a repository of ours ever gets, with what its task adds. Never an optimiser, rows, or a pickle.
FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}|\bhf_oauth_[\w.-]{20,}")
# Accounts that name no person, and short ones, which are parts of ordinary words.
_NOBODY = {"root", "user", "admin", "ubuntu", "nobody", "runner", "docker", "local", "data", "test", "tuner", "jovyan", "appuser", "model"}
_MIN_NAME = 3
# The metadata without which a card says too little, or the Hub's pages show it wrongly.
_REQUIRED = ("base_model", "library_name", "license", "pipeline_tag", "tags")


def files_of(run) -> tuple[str, ...]:
    """The names of what a run's repository may get: what its task adds only where it lies in the adapter's folder."""
    return FILES + tuple(name for name in tasks.get(run.recipe.task).PUBLISHED if (run.adapter_dir / name).is_file())


def names_of(record: dict) -> set[str]:
    """The names of what a run published, by its own record (see `collect`); by its task where that is of an earlier version."""
    task, named = record.get("task"), record.get("files")
    known = {*FILES, *(name for task in tasks.TASKS for name in tasks.get(task).PUBLISHED)}
    if isinstance(named, list):
        return {name for name in known if name in named}
    return {*FILES, *tasks.get(task if task in tasks.TASKS else tasks.DEFAULT).PUBLISHED}


def collect(run, card: str, record: dict) -> dict[str, bytes | Path]:
    """name -> content or path of every file that a finished run publishes; the record also tells their names.

    Raises:
        UserError: the adapter is not whole, or is not what its name says.
    """
    allowed = files_of(run)
    files = {
        "README.md": card.encode(), "adapter_config.json": (run.adapter_dir / "adapter_config.json").read_bytes(),
        "adapter_model.safetensors": run.adapter_dir / "adapter_model.safetensors",
        "tuner.json": json.dumps({**record, "files": sorted(allowed)}, ensure_ascii=False, indent=1).encode(),
    }
    files |= {name: run.adapter_dir / name for name in allowed if name not in files}
    require_formats(files, allowed)
    return files


def require_formats(files: dict[str, bytes | Path], allowed: tuple[str, ...] = FILES) -> None:
    """Refuse what is not on the list, and what is not of the format that its name promises: a pickle has many names.

    Raises:
        UserError: naming every such file.
    """
    problems = [f"{shorten(name)} is not among the files that are published ({', '.join(allowed)})." for name in files if name not in allowed]
    for name, content in files.items():
        if name.endswith(".safetensors"):
            problems += [f"{name} is not a safetensors file: {why}. Nothing was sent." for why in _safetensors_faults(content)]
        elif name.endswith(".json"):
            try:
                json.loads(content if isinstance(content, bytes) else content.read_bytes())
            except ValueError:
                problems.append(f"{name} is not JSON. Nothing was sent.")
    if problems:
        raise UserError(*problems)


def _safetensors_faults(content: bytes | Path) -> list[str]:
    """What is wrong with the header of a safetensors file: 8 bytes of length, JSON, then tensors end to end."""
    with _Bytes(content) as data:
        size = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
        if not 2 <= size <= len(data) - 8:
            return [f"its header says {size:,} bytes and the file has {len(data):,}"]
        try:
            header = json.loads(bytes(data[8 : 8 + size]))
            ends = [its["data_offsets"] for name, its in header.items() if name != "__metadata__"]
            if not ends or max(end for _, end in ends) != len(data) - 8 - size:
                return ["its tensors do not fill it"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return ["its header cannot be read"]
    return []


class _Bytes:
    """Bytes, or a file's without reading it whole."""

    def __init__(self, content: bytes | Path):
        self.content = content

    def __enter__(self):
        if isinstance(self.content, bytes):
            self.data = self.content
        elif self.content.stat().st_size == 0:
            self.data = b""
        else:
            with open(self.content, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self.data

    def __exit__(self, *_):
        if isinstance(self.data, mmap.mmap):
            self.data.close()


def _is_the_bases(name: str, content: bytes | Path, run) -> bool:
    """Whether a file is the base model's own, byte for byte."""
    if name not in tasks.get(run.recipe.task).PUBLISHED or not isinstance(content, Path):
        return False
    its = Path(run.read("base")["dir"]) / name
    return its.is_file() and its.read_bytes() == content.read_bytes()


# Paths, names, tokens ---------------------------------------------------------------------------------------------


def require_clean(files: dict[str, bytes | Path], run, token: str | None, account: str) -> None:
    """Refuse files in which a folder, a person or a token of this machine can be read.

    Args:
        token: the one that is used for the push; it must be in no file.
        account: the Hub's user name, which is public and stands in the repository's id.

    Raises:
        UserError: naming each file and what stands in it; a token itself is not repeated.
    """
    folders, common = _folders(run), _common_folders()
    names = _names(run, account)
    meant = [text for text in (run.title, run.recipe.title, run.recipe.about, run.recipe.system_prompt) if text]
    problems = []
    for name, content in files.items():
        if _is_the_bases(name, content, run):  # everybody has it already, and a vocabulary holds anybody's name
            continue
        with _Bytes(content) as data:
            if _TOKEN.search(data) or (token and data.find(token.encode()) >= 0):
                problems.append(f"{name} holds an access token. Take it out of the run's name or system prompt, then publish again.")
            seen = [folder for folder in folders if data.find(folder.encode()) >= 0]
            # Of the weights only the header is text; among their numbers any short word turns up.
            head = bytes(data[: 8 + int.from_bytes(data[:8], "little")]) if name.endswith(".safetensors") else bytes(data)
        text = head.decode("utf-8", "replace")
        for words in meant:  # what the author wrote to be read may hold any word
            text = text.replace(words, "").replace(json.dumps(words, ensure_ascii=False)[1:-1], "")
        seen += [folder for folder in common if folder in text]
        problems += [
            f"{name} names a folder of this machine ({shorten(folder)}). Take it out of the run's name, then publish again."
            for folder in seen
        ]
        problems += [
            f"{name} holds the name {shorten(person, 20)!r} of this machine's account. Rename what carries it, then publish again."
            for person in names if re.search(rf"(?<!\w){re.escape(person)}(?!\w)", text)
        ]
    if problems:
        raise UserError(*problems)


def _folders(run) -> list[str]:
    """Folders that are this machine's alone; the most telling of each is enough."""
    base = run.read("base") or {}
    found = {str(tuner_home()), str(child.PROJECT_ROOT), base.get("dir", "")}
    return sorted(folder for folder in found if len(folder) > 5 and f"{folder}/" not in _common_folders())


def _common_folders() -> list[str]:
    """Folders that other machines have too, so that an author may have written of them: the home and the temporary one."""
    return sorted({f"{os.path.expanduser('~').rstrip('/')}/", f"{tempfile.gettempdir().rstrip('/')}/"} - {"/"})


def _names(run, account: str) -> list[str]:
    """Who works on this machine: the system's user name and full name, and the run's owner unless that is the account."""
    found = {run.owner}
    try:
        found.add(getpass.getuser())
        import pwd

        found.add(pwd.getpwuid(os.getuid()).pw_gecos.split(",")[0])
    except (OSError, KeyError, ImportError):  # no such account: nobody to name
        pass
    return sorted(name for name in found if len(name) >= _MIN_NAME and name.lower() not in _NOBODY and name != account)


# The card ---------------------------------------------------------------------------------------------------------


def require_card(text: str) -> None:
    """Check a model card as the Hub will, without asking it.

    Raises:
        UserError: all that is wrong with it.
    """
    import yaml
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(text).data.to_dict()  # also parses model-index, and says what is wrong with it
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"The card's metadata cannot be read: {shorten(str(error), 160)}. Rename the run, then try again.") from None
    problems = [f"The card has no {name}." for name in _REQUIRED if not data.get(name)]
    its = data.get("license")
    if its and its not in licences.IDENTIFIERS:
        problems.append(f"{shorten(its, 40)!r} is not a licence the Hub knows.")
    if its == "other" and not (data.get("license_name") and data.get("license_link")):
        problems.append("The licence is “other”, and its name or its link is missing.")
    for name, ids in (("base_model", [data.get("base_model")]), ("datasets", data.get("datasets") or [])):
        problems += [f"{name} {shorten(its_id, 60)!r} is not a Hub id." for its_id in ids if its_id and not HUB_ID.fullmatch(str(its_id))]
    if not all(isinstance(tag, str) for tag in data.get("tags") or []):
        problems.append("The card's tags are not all words.")
    if not ModelCard(text).text.strip().startswith("# "):
        problems.append("The card has no title.")
    if problems:
        raise UserError(*problems)
