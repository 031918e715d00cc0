"""Everything asked of the Hugging Face Hub: who am I, may I, fetch a base, stream a dataset, fetch an adapter; errors in words."""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from tuner import sizes, starter, transfer
from tuner.errors import UserError, shorten
from tuner.home import on_a_space, private_dir, read_json, require_free, tuner_home, write_json
from tuner.recipe import HUB_ID, STARTER_MODEL
from tuner.transfer import Transient, Unreachable

# What a base model's repository may put on this disk: weights as safetensors, JSON and plain text; never pickles or code.
BASE_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*", "merges.txt", "vocab.txt"]
ADAPTER_FILES = ["adapter_model.safetensors", "adapter_config.json", "tuner.json"]
MAX_ADAPTER_BYTES = 4 * 2**30
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
            "You are not signed in to Hugging Face. Sign in above on a Space; on your own machine run `hf auth login`."
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
    try:
        return _fetch_from_hub(base_id, revision, token, on_progress)
    except Unreachable as error:
        if cached := _cached_base(base_id, revision):
            return cached
        if stands_in := starter.of(base_id):
            folder = stands_in.prepare()
            return {
                "id": base_id, "revision": "", "dir": str(folder), "what": stands_in.what, "licence": {"license": "apache-2.0"},
            }
        raise UserError(
            f"The Hub cannot be reached and {base_id} is not on this machine yet. Check the connection, or choose "
            f"{STARTER_MODEL}, which works without."
        ) from error


def _fetch_from_hub(base_id: str, revision: str, token: str | None, on_progress) -> dict:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    with in_words(base_id, bool(token)):
        info = HfApi().model_info(base_id, revision=revision or None, files_metadata=True, token=token or False, timeout=TIMEOUT_S)
        _require_access(info, token)
        names = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
        wanted = list(filter_repo_objects(names, allow_patterns=BASE_FILES))
        if not any(name.endswith(".safetensors") for name in wanted):
            raise UserError(f"{base_id} has no safetensors weights at its top level. Choose a base model that has.")
        if "config.json" not in wanted:
            raise UserError(f"{base_id} has no config.json, so it is not a transformers model. Choose another.")
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
    try:
        folder = snapshot_download(base_id, revision=revision or None, local_files_only=True)
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
    return _tokenizer_dir(base_id, revision, token, time.monotonic() // 300)


@lru_cache(maxsize=64)
def _tokenizer_dir(base_id: str, revision: str, token: str | None, _period: float) -> str:
    from huggingface_hub import HfApi, snapshot_download

    base_id = require_id(base_id, "a base model's Hub id")
    try:
        with in_words(base_id, bool(token)):
            info = HfApi().model_info(base_id, revision=revision or None, token=token or False, timeout=5.0)
            _require_access(info, token)
            return snapshot_download(
                base_id, revision=info.sha, token=token or False,
                allow_patterns=["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "*.jinja", "config.json", "generation_config.json"],
            )
    except Unreachable:
        if cached := _cached_base(base_id, revision):
            return cached["dir"]
        if stands_in := starter.of(base_id):
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
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    with in_words(base_id, bool(token)):
        try:
            found = HfApi().get_safetensors_metadata(base_id, revision=sha, token=token or False, timeout=TIMEOUT_S)
        except NotASafetensorsRepoError:
            raise UserError(f"{base_id} has no safetensors weights at its top level. Choose a base model that has.") from None
        except (SafetensorsParsingError, ValueError) as error:
            raise UserError(f"The weights of {base_id} cannot be read: {shorten(str(error), 120)}. Choose another base model.") from None
    return {name: (its.dtype, tuple(its.shape)) for file in found.files_metadata.values() for name, its in file.tensors.items()}


# Datasets ---------------------------------------------------------------------------------------------------------


def require_dataset(hub_id: str, revision: str, token: str | None) -> str:
    """The commit of a Hub dataset that this token may read; raises UserError otherwise."""
    from huggingface_hub import HfApi

    with in_words(hub_id, bool(token)):
        info = HfApi().dataset_info(hub_id, revision=revision or None, token=token or False, timeout=TIMEOUT_S)
        _require_access(info, token, "dataset")
        return info.sha


def stream_dataset(hub_id: str, config: str, split: str, revision: str, token: str | None, most: int) -> Iterator[dict]:
    """The first records of one split, as they arrive; the split itself is not downloaded.

    Raises:
        UserError: no such config or split, or files that cannot be read as rows.
    """
    import datasets
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

    datasets.disable_progress_bars()
    with in_words(hub_id, bool(token)):
        try:
            # With the scheme, since a bare name would be read from a local folder of that name first.
            parts = datasets.load_dataset(
                f"hf://datasets/{hub_id}", config or None, revision=revision or None, token=token or False, streaming=True
            )
            names = list(parts)
            chosen = split or ("train" if "train" in names else names[0])
            if chosen not in names:
                raise UserError(f"{hub_id} has no split {shorten(chosen, 30)!r}. It has {', '.join(names)}.")
            named = _named_classes(parts[chosen].features)
            for record in parts[chosen].take(most):
                yield {**record, **{column: names(record[column]) for column, names in named.items() if record.get(column) is not None}}
        except (DatasetNotFoundError, DataFilesNotFoundError, DatasetGenerationError, ValueError, RuntimeError, OSError) as error:
            if isinstance(error, UserError) or "httpx2" in type(error).__module__ or "huggingface_hub" in type(error).__module__:
                raise
            reason = shorten(str(error).splitlines()[0] if str(error) else type(error).__name__, 160)
            raise UserError(f"{hub_id} cannot be read as rows: {reason}. Check its config and split on its page.") from None


def _named_classes(features) -> dict[str, Callable]:
    """column -> what turns its class numbers into the names that the dataset gives them; -1, a label kept secret, into none."""
    from datasets import ClassLabel

    found = {}
    for column, its in (features or {}).items():
        inner = getattr(its, "feature", None)
        if isinstance(its, ClassLabel):
            found[column] = lambda value, names=its.names: names[value] if 0 <= value < len(names) else None
        elif isinstance(inner, ClassLabel):
            found[column] = lambda value, names=inner.names: [names[one] for one in value if 0 <= one < len(names)]
    return found


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
        info = HfApi().model_info(repo_id, revision=revision or None, files_metadata=True, token=token or False, timeout=TIMEOUT_S)
        _require_access(info, token)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if "adapter_config.json" not in sizes or "adapter_model.safetensors" not in sizes:
            raise UserError(f"{repo_id} is not a PEFT adapter with safetensors weights. Choose another repository.")
        size = sizes["adapter_model.safetensors"]
        if size > MAX_ADAPTER_BYTES:
            raise UserError(f"{repo_id} has {size / 2**30:.1f} GiB; an adapter of at most {MAX_ADAPTER_BYTES / 2**30:.0f} GiB is loaded here.")
        folder = Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=ADAPTER_FILES, token=token or False))
    try:
        config = read_json(folder / "adapter_config.json")
    except json.JSONDecodeError:
        config = None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{repo_id} is not a LoRA adapter. Choose another repository.")
    base = str(config.get("base_model_name_or_path", ""))
    if not HUB_ID.fullmatch(base) or ".." in base:
        raise UserError(f"{repo_id} names the base model {shorten(base)!r}, which is not a Hub id, so it cannot be loaded.")
    return folder, config


def licence_of(base_id: str, revision: str, token: str | None) -> dict:
    """A base's licence as its own card names it: {"license", "license_name", "license_link"}, those that are there."""
    from huggingface_hub import HfApi

    with in_words(base_id, bool(token)):
        info = HfApi().model_info(base_id, revision=revision or None, token=token or False, timeout=TIMEOUT_S)
    return _licence(info)


def _licence(info) -> dict:
    data = info.card_data.to_dict() if info.card_data else {}
    return {key: data[key] for key in ("license", "license_name", "license_link") if data.get(key)}


def is_private(repo_id: str, token: str | None) -> bool:
    from huggingface_hub import HfApi

    with in_words(repo_id, bool(token)):
        return bool(HfApi().model_info(repo_id, token=token or False, timeout=TIMEOUT_S).private)


def make_public(repo_id: str, token: str | None) -> None:
    """Open a repository of this account to everybody."""
    from huggingface_hub import HfApi

    user = whoami(token)
    if repo_id.split("/")[0] != user:
        raise UserError(f"{repo_id} is not in your account ({user}), so it cannot be changed here.")
    with in_words(repo_id, True):
        HfApi().update_repo_settings(repo_id, private=False, token=token)
