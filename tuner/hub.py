"""Everything asked of the Hugging Face Hub: who am I, may I, fetch a base, stream a dataset, fetch an adapter; errors in words."""

import contextlib
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from tuner import eyes, limits, repository, sizes, starter, transfer
from tuner.errors import UserError, shorten
from tuner.home import on_a_space, private_dir, read_json, require_free, tuner_home, write_json
from tuner.recipe import HUB_ID, STARTER_MODEL
from tuner.transfer import Transient, Unreachable

# The largest base that is loaded, in parameters, where `limits.MODEL` sets no other. A card of 80 GiB holds this one in 4 bits.
MAX_PARAMETERS = 80e9
TIMEOUT_S = 15.0


def own_token() -> str | None:
    """The token of this machine's own login (`hf auth login` or HF_TOKEN). Off a Space only: there it is the owner's."""
    from huggingface_hub import get_token

    return None if on_a_space() else get_token()


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def page_url(repo_id: str) -> str:
    """Where a person reads the repository."""
    return f"{endpoint()}/{repo_id}"


@contextlib.contextmanager
def in_words(what: str, signed_in: bool) -> Iterator[None]:
    """Map the client's errors, by type, to a sentence about `what`; what may go right at the next try is Transient."""
    import httpx2
    from huggingface_hub import errors

    transfer.set_up()
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{what} is gated. Open {endpoint()}/{what}, accept its terms with your account, "
            + ("then try again." if signed_in else "sign in here, then try again.")
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what} has no such revision. Check the branch, tag or commit, or leave it empty.") from None
    except errors.RepositoryNotFoundError:
        more = "It may be private to another account." if signed_in else "If it is private, sign in first."
        raise UserError(f"{what} does not exist on the Hub, or you may not see it. Check the spelling. {more}") from None
    except errors.HFValidationError as error:
        raise UserError(f"{shorten(what)!r} is not a name the Hub takes: {shorten(str(error), 160)}") from None
    except errors.DisabledRepoError:
        raise UserError(f"{what} was disabled by the Hub. Choose another.") from None
    except errors.OfflineModeIsEnabled:
        raise Unreachable("The Hub is switched off here (HF_HUB_OFFLINE). Switch it on, or use what is on this machine.") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        said = shorten(error.server_message or "", 160)
        if code == 401:
            raise UserError("The Hub does not know this token any more. Sign in again, then try again; nothing was lost.") from None
        if code == 403:
            raise UserError(f"The Hub does not let this account do that with {what}. {said} Choose a name in your own account.") from None
        if code == 412:  # what was looked at is not what is there any more
            raise Transient(f"{what} was changed at this very moment. Try again; nothing was lost.") from None
        if code == 429:
            wait_s = transfer.asked_pause_s(error.response.headers)
            raise Transient("The Hub asks for a pause (too many requests). Wait a minute, then try again; nothing was lost.", wait_s=wait_s) from None
        if code >= 500:
            wait_s = transfer.asked_pause_s(error.response.headers)
            raise Transient(f"The Hub has a fault of its own (HTTP {code}). Try again in a minute; nothing was lost.", wait_s=wait_s) from None
        raise UserError(f"The Hub refused {what} (HTTP {code}): {said or 'no reason given'}.") from None
    except json.JSONDecodeError:
        raise Transient("The Hub's answer cannot be read. Try again in a minute; nothing was lost.") from None
    except (errors.LocalEntryNotFoundError, httpx2.TransportError, ConnectionError, TimeoutError):
        raise Unreachable("The Hub cannot be reached. Check the connection, then try again; nothing was lost.") from None


def require_id(repo_id: str, what: str) -> str:
    """The id, if it has the Hub's form user/name; a full address is accepted too.

    Raises:
        UserError: it has not. A string that a file system could read as a path never gets further than this.
    """
    text = str(repo_id).strip().removeprefix("https://huggingface.co/").removeprefix(endpoint() + "/").rstrip("/")
    if not HUB_ID.fullmatch(text) or ".." in text:
        raise UserError(f"{shorten(repo_id)!r} is not {what}. It looks like user/name.")
    return text


_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,199}", re.ASCII)


def require_revision(revision: str) -> str | None:
    """The revision, or None for the newest: a branch, tag or commit. The client's cache makes paths of it.

    Raises:
        UserError: it could not be one.
    """
    revision = str(revision or "").strip()
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise UserError(f"{shorten(revision)!r} is not a branch, tag or commit. Leave it empty for the newest.")
    return revision or None


def _require_access(info, token: str | None, repo_type: str = "model") -> None:
    """Ask the Hub whether this visitor may read a gated repository; what another fetched is in the cache already."""
    from huggingface_hub import HfApi

    if info.gated:
        HfApi().auth_check(info.id, repo_type=repo_type, token=token or False)


def whoami(token: str | None) -> str:
    """The user name behind a token; see `account`."""
    return account(token)["name"]


def account(token: str | None) -> dict:
    """What the Hub tells of a token: "name", and in "auth" what it may do and until when.

    Raises:
        UserError: no token, or the Hub does not know it.
    """
    if not token:
        raise UserError(
            "You are not signed in to Hugging Face. Sign in with the button at the top."
            if on_a_space() else "You are not signed in to Hugging Face. Run hf auth login in a terminal."
        )
    from huggingface_hub import HfApi

    with in_words("your account", True):
        return HfApi().whoami(token=token)


# Base models ------------------------------------------------------------------------------------------------------


def fetch_base(
    base_id: str, revision: str, token: str | None, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict:
    """Bring a base model to this machine, at a pinned revision.

    Args:
        on_progress: called with (bytes done, bytes in all) while files arrive.

    Returns:
        {"id", "revision": the commit, "dir": its folder, "what": what the weights really are, in words, "licence"}.

    Raises:
        UserError: no such model, gated, without safetensors, too large for the disk, or out of reach. Where the Hub
            is out of reach, the starter model's packaged copy stands in for the starter, and a copy fetched earlier
            for any other.
    """
    base_id = require_id(base_id, "a base model's Hub id")
    stands_in = starter.of(base_id)
    if stands_in and stands_in.ours:
        return _standing_in(stands_in)
    try:
        return _fetch_from_hub(base_id, revision, token, on_progress)
    except Unreachable as error:
        if cached := _cached_base(base_id, revision):
            return cached
        if stands_in:
            return _standing_in(stands_in)
        raise UserError(
            f"The Hub cannot be reached and {base_id} is not on this machine yet. Check the connection, or choose "
            f"{STARTER_MODEL}, which works without."
        ) from error


def _standing_in(its: starter.Starter) -> dict:
    return {"id": its.base_id, "revision": "", "dir": str(its.prepare()), "what": its.what, "licence": {"license": "apache-2.0"}}


def _fetch_from_hub(base_id: str, revision: str, token: str | None, on_progress) -> dict:
    from huggingface_hub import snapshot_download

    with in_words(base_id, bool(token)):
        info, names, folder = _look_over(base_id, revision, token)
        weights = repository.weight_files(base_id, folder, names)
        headers = _headers_of(base_id, info.sha, weights, token)
        repository.count(base_id, _config_in(base_id, folder), headers, sum(names[name] for name in weights), most_parameters())
        wanted = [*repository.small_files(base_id, names), *weights]
        total = sum(names[name] for name in wanted)
        require_free(total, f"The base model {base_id}")
        folder = snapshot_download(
            base_id, revision=info.sha, allow_patterns=wanted, token=token or False,
            tqdm_class=_progress_bar(on_progress, total), max_workers=4,
        )
    base = {"id": base_id, "revision": info.sha, "dir": folder, "what": f"{base_id} at revision {info.sha[:12]}", "licence": _licence(info)}
    for asked in {revision, info.sha}:
        _remember(asked, base, for_anybody=not info.private and not info.gated)
    return base


def _look_over(base_id: str, revision: str, token: str | None, timeout_s: float = TIMEOUT_S):
    """Judge a base by what is small: its scan, its files' names and sizes, its configs, its template.

    Returns:
        the Hub's info, {file: bytes} of its top level, and the folder of the small files; the info's commit is the one
        that everything else is taken from.

    Raises:
        UserError: see `repository`.
    """
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(
        base_id, revision=require_revision(revision), files_metadata=True, securityStatus=True, token=token or False, timeout=timeout_s
    )
    _require_access(info, token)
    names = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    small = repository.small_files(base_id, names)
    repository.require_scanned(info, [*small, *(name for name in names if repository.WEIGHTS.fullmatch(name))])
    folder = Path(snapshot_download(base_id, revision=info.sha, allow_patterns=small, token=token or False))
    repository.check_folder(base_id, folder)
    if repository.has_template(folder):
        eyes.try_out(folder)
    return info, names, folder


def most_parameters() -> float:
    """How many parameters a base model may have here."""
    billions = limits.MODEL.value()
    return MAX_PARAMETERS if billions is None else billions * 1e9


def _fetched_path() -> Path:
    return tuner_home() / "models" / "fetched.json"


def _remember(revision: str, base: dict, for_anybody: bool) -> None:
    """Note what this base's revision came to: the client's cache knows commits only, not which one "newest" was."""
    known = read_json(_fetched_path(), {})
    known[f"{base['id']}@{revision}"] = {"base": base, "for_anybody": for_anybody}
    private_dir(_fetched_path().parent)
    write_json(_fetched_path(), known)


def _cached_base(base_id: str, revision: str) -> dict | None:
    """What was fetched earlier, for when the Hub is out of reach; None if nothing was.

    On a Space, where visitors share the disk, only what anybody may have: the Hub cannot be asked who may see the rest.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    known = read_json(_fetched_path(), {}).get(f"{base_id}@{revision}")
    if known and (Path(known["base"]["dir"]) / "config.json").is_file():
        return known["base"] if known["for_anybody"] or not on_a_space() else None
    if on_a_space() and base_id != STARTER_MODEL:  # nobody noted who may see it
        return None
    try:
        folder = snapshot_download(base_id, revision=require_revision(revision), local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    if not list(Path(folder).glob("*.safetensors")) or not (Path(folder) / "config.json").is_file():
        return None
    sha = Path(folder).name
    return {"id": base_id, "revision": sha, "dir": folder, "what": f"{base_id} at revision {sha[:12]}", "licence": {}}


def _progress_bar(on_progress, total: int):
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """Passes the bytes on instead of drawing them."""

        monitor_interval = 0  # else tqdm starts a thread for each class of bars, which never ends
        seen = {}

        def __init__(self, *args, **kwargs):
            kwargs.pop("name", None)
            self._bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n=1):
            result = super().update(n)
            if self._bytes:
                Bar.seen[id(self)] = self.n
                on_progress(min(total, int(sum(Bar.seen.values()))), total)
            return result

    return Bar


def tokenizer_dir(base_id: str, revision: str, token: str | None) -> str:
    """A folder with the base's tokenizer and config only, for the preview and the quote; no weights are fetched.

    The Hub is asked once in five minutes for each visitor's token, not at every look at a row.

    Raises:
        UserError: as `fetch_base`.
    """
    asked = (base_id, revision, hashlib.sha256((token or "").encode()).digest(), time.monotonic() // 300)  # no token stays in memory
    found = _tokenizer_dirs.get(asked)
    if found is None:
        found = _tokenizer_dirs[asked] = _tokenizer_dir(base_id, revision, token)
        for old in list(_tokenizer_dirs)[:-64]:
            _tokenizer_dirs.pop(old, None)
    return found


# (base, revision, the token's hash, which five minutes) -> folder.
_tokenizer_dirs: dict[tuple, str] = {}


def _tokenizer_dir(base_id: str, revision: str, token: str | None) -> str:
    base_id = require_id(base_id, "a base model's Hub id")
    if (stands_in := starter.of(base_id)) and stands_in.ours:
        return str(stands_in.prepare())
    try:
        with in_words(base_id, bool(token)):
            return str(_look_over(base_id, revision, token, 5.0)[2])
    except Unreachable:
        if cached := _cached_base(base_id, revision):
            return cached["dir"]
        if stands_in:
            return str(stands_in.prepare())
        raise


def sizes_of(base_id: str, revision: str, token: str | None) -> sizes.Sizes:
    """A base model in numbers, by its config and the headers of its weights at the revision that is pinned; no download.

    The Hub is asked for headers once for each revision; what it said is kept beside the models.

    Raises:
        UserError: as `tokenizer_dir`; no safetensors weights, or headers or a config that cannot be read.
    """
    # Also the check that this visitor may read it: what is kept below was perhaps fetched for another.
    folder = Path(tokenizer_dir(base_id, revision, token))
    kept = _headers_path(base_id, folder)
    if not kept.exists() and not any(folder.glob("*.safetensors")):
        try:
            headers = _headers_on_hub(base_id, folder.name, token)
        except Unreachable:  # the config alone says nearly as much
            return sizes.of_base(_config_in(base_id, folder), None)
        private_dir(kept.parent)
        write_json(kept, headers)
    return _sizes_in(base_id, folder)


def _headers_path(base_id: str, folder: Path) -> Path:
    return tuner_home() / "models" / "headers" / f"{base_id.replace('/', '--')}@{folder.name}.json"


@lru_cache(maxsize=64)
def _sizes_in(base_id: str, folder: Path) -> sizes.Sizes:
    """By what lies here; the folder is of one revision, so it never goes stale."""
    try:
        kept = read_json(_headers_path(base_id, folder), {})
    except ValueError:
        kept = {}
    headers = {name: (dtype, tuple(shape)) for name, (dtype, shape) in kept.items()} or sizes.headers_in(folder)
    return sizes.of_base(_config_in(base_id, folder), headers)


def _config_in(base_id: str, folder: Path) -> dict:
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{base_id} has no config.json that can be read, so it is not a transformers model. Choose another.")
    return config


def _headers_on_hub(base_id: str, sha: str, token: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} of a repository's weights: a hundred kilobytes of each file are asked for, not the file."""
    with in_words(base_id, bool(token)):
        info, names, folder = _look_over(base_id, sha, token)
        weights = repository.weight_files(base_id, folder, names)
        headers = _headers_of(base_id, sha, weights, token)
        repository.count(base_id, _config_in(base_id, folder), headers, sum(names[name] for name in weights), most_parameters())
    return headers


def _headers_of(base_id: str, sha: str, weights: list[str], token: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    def read(name: str):
        return HfApi().parse_safetensors_file_metadata(base_id, name, revision=sha, token=token or False, timeout=TIMEOUT_S)

    try:
        with ThreadPoolExecutor(min(8, len(weights))) as pool:
            found = list(pool.map(read, weights))
        return {name: (str(its.dtype), tuple(int(size) for size in its.shape)) for file in found for name, its in file.tensors.items()}
    except (SafetensorsParsingError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"The weights of {base_id} cannot be read: {shorten(str(error), 120)}. Choose another base model.") from None


# Datasets ---------------------------------------------------------------------------------------------------------


def require_dataset(hub_id: str, revision: str, token: str | None) -> str:
    """The commit of a Hub dataset that this token may read; raises UserError otherwise."""
    from huggingface_hub import HfApi

    with in_words(hub_id, bool(token)):
        info = HfApi().dataset_info(hub_id, revision=require_revision(revision), token=token or False, timeout=TIMEOUT_S)
        _require_access(info, token, "dataset")
        return info.sha


# Adapters ---------------------------------------------------------------------------------------------------------


def fetch_adapter(repo_id: str, revision: str, token: str | None) -> tuple[Path, dict]:
    """Download a published adapter, only the files an adapter has.

    Returns:
        its folder, and its config.

    Raises:
        UserError: not found, not a LoRA adapter with safetensors, too large, or out of reach.
    """
    from huggingface_hub import HfApi, snapshot_download

    repo_id = require_id(repo_id, "an adapter's Hub id")
    with in_words(repo_id, bool(token)):
        info = HfApi().model_info(
            repo_id, revision=require_revision(revision), files_metadata=True, securityStatus=True, token=token or False, timeout=TIMEOUT_S
        )
        _require_access(info, token)
        names = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = [name for name in repository.ADAPTER_FILES if name in names]
        if not {"adapter_config.json", "adapter_model.safetensors"} <= set(wanted):
            raise UserError(f"{repo_id} is not a PEFT adapter with safetensors weights. Choose another repository.")
        for name in wanted:
            if names[name] > (most := repository.ADAPTER_FILES[name]):
                raise UserError(f"{name} of {repo_id} has {names[name] / 2**30:.1f} GiB; at most {most / 2**30:.3g} GiB of it is loaded here.")
        repository.require_scanned(info, wanted)
        require_free(sum(names[name] for name in wanted), f"The adapter {repo_id}")
        small = [name for name in wanted if name.endswith(".json")]
        config = _adapter_config(repo_id, Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=small, token=token or False)))
        folder = Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=wanted, token=token or False))
    repository.check_adapter_weights(repo_id, config, sizes.headers_in(folder))
    return folder, config


def _adapter_config(repo_id: str, folder: Path) -> dict:
    """A downloaded adapter's config, judged before its weights are fetched."""
    try:
        config = read_json(folder / "adapter_config.json")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{repo_id} is not a LoRA adapter. Choose another repository.")
    base = str(config.get("base_model_name_or_path", ""))
    if not HUB_ID.fullmatch(base) or ".." in base:
        raise UserError(f"{repo_id} names the base model {shorten(base)!r}, which is not a Hub id, so it cannot be loaded.")
    repository.check_adapter(repo_id, config)
    return config


def licence_of(base_id: str, revision: str, token: str | None) -> dict:
    """A base's licence as its own card names it: {"license", "license_name", "license_link"}, those that are there."""
    from huggingface_hub import HfApi

    if (stands_in := starter.of(base_id)) and stands_in.ours:
        return _standing_in(stands_in)["licence"]
    with in_words(base_id, bool(token)):
        info = HfApi().model_info(base_id, revision=require_revision(revision), token=token or False, timeout=TIMEOUT_S)
    return _licence(info)


def _licence(info) -> dict:
    data = info.card_data.to_dict() if info.card_data else {}
    return {key: data[key] for key in ("license", "license_name", "license_link") if data.get(key)}


def is_private(repo_id: str, token: str | None) -> bool:
    from huggingface_hub import HfApi

    with in_words(repo_id, bool(token)):
        return bool(HfApi().model_info(repo_id, token=token or False, timeout=TIMEOUT_S).private)


def require_own(repo_id: str, token: str | None) -> None:
    """Refuse a repository that is not in the account of this token.

    Raises:
        UserError: it is another's, or nobody is signed in.
    """
    user = whoami(token)
    if repo_id.split("/")[0] != user:
        raise UserError(f"{repo_id} is not in your account ({user}), so it cannot be changed here.")


def make_public(repo_id: str, token: str | None) -> None:
    """Open a repository of this account to everybody."""
    from huggingface_hub import HfApi

    require_own(repo_id, token)
    with in_words(repo_id, True):
        HfApi().update_repo_settings(repo_id, private=False, token=token)
