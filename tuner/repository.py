"""Whether a stranger's repository may come onto this machine: its scan, its files, its configs; all of it judged as data, nothing loaded."""

import json
import math
import re
from pathlib import Path

from tuner import sizes
from tuner.errors import UserError, shorten
from tuner.home import read_json

# What a base model's repository may put on this disk, and how large each may be: never pickles or code. The weights are
# named by their index, or are one file.
SMALL_FILES = {
    "config.json": 2**20, "generation_config.json": 2**20, "tokenizer.json": 64 * 2**20, "tokenizer_config.json": 16 * 2**20,
    "special_tokens_map.json": 2**20, "chat_template.jinja": 2**18, "preprocessor_config.json": 2**20,
    "model.safetensors.index.json": 32 * 2**20, "LICENSE": 2**20, "LICENSE.txt": 2**20, "LICENSE.md": 2**20,
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WEIGHTS = re.compile(r"[A-Za-z0-9][\w.-]{0,120}\.safetensors", re.ASCII)
MAX_SHARDS = 500

# What the Hub's scanners call a file that nothing was found in, or that they have not come to yet.
_HARMLESS = ("safe", "innocuous", "unscanned", "queued", "pending")
# Attention routines that transformers has of its own; any other word names a repository from which code would be fetched.
_OWN_ROUTINES = (None, "", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "grouped_mm", "batched_mm")
_ROUTINE_KEYS = re.compile(r"_?(attn|experts|attention|moe|kernel)s?_implementation(_internal)?")
_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "use_kernels", "kernel_config", "hub_kernels", "gguf_file", "tokenizer_object")
# What names a file, and what transformers takes from the repository whatever they say: many repositories hold their makers' paths here.
_OVERRIDDEN = ("tokenizer_file", "special_tokens_map_file", "added_tokens_file", "tokenizer_config_file", "chat_template_file")
_COUNTED = re.compile(r"(num_|n_)?(hidden_|decoder_|encoder_|nextn_predict_)?(layers?|blocks?|depth)", re.ASCII)
MAX_LAYERS, MAX_EXPERTS = 1_000, 1_024
MAX_NUMBER = 2**31
MAX_NODES, MAX_DEPTH = 500_000, 12
# Beyond what the weights hold, a config may claim so many times as much: heads that are tied, experts that are not counted.
CLAIM = 2.0


def require_scanned(info, wanted: list[str]) -> None:
    """Refuse what the Hub's own scanners warn of. A scan that is not there says nothing; a word not known is a warning.

    Args:
        info: huggingface_hub's ModelInfo, asked with securityStatus.
        wanted: the files that would be loaded; elsewhere in the repository only what is called unsafe counts.
    """
    status = getattr(info, "security_repo_status", None)
    issues = status.get("filesWithIssues") if isinstance(status, dict) else None
    for issue in issues if isinstance(issues, list) else ():
        path, level = (str(issue.get(name, "")) for name in ("path", "level")) if isinstance(issue, dict) else ("", "unknown")
        if level == "unsafe" or (path in wanted and level not in _HARMLESS):
            raise UserError(
                f"The Hub's security scan calls {shorten(path, 60) or 'a file'} of {info.id} {shorten(level, 20)}, so nothing of it is "
                "loaded here. Choose another repository."
            )


def small_files(base_id: str, names: dict[str, int]) -> list[str]:
    """Which of a repository's files are fetched before its weights.

    Args:
        names: file -> bytes, of the whole repository.

    Raises:
        UserError: no weights that can be loaded, no config, an adapter, or a file that is too large to be what it is called.
    """
    if "adapter_config.json" in names:  # transformers would follow it to whatever it names
        raise UserError(f"{base_id} is an adapter, not a base model. Talk to it on the Chat tab, or choose the base that it names.")
    if "config.json" not in names:
        raise UserError(f"{base_id} has no config.json, so it is not a transformers model. Choose another.")
    if SINGLE not in names and INDEX not in names:
        pickled = any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names)
        raise UserError(
            f"{base_id} has no safetensors weights at its top level. Choose a base model that has"
            + ("; pickled weights are not loaded, since they can run code." if pickled else ".")
        )
    found = [name for name in SMALL_FILES if name in names]
    for name in found:
        if names[name] > SMALL_FILES[name]:
            raise UserError(f"{name} of {base_id} has {names[name]:,} bytes, which no model's has. Choose another base model.")
    return found


def weight_files(base_id: str, folder: Path, names: dict[str, int]) -> list[str]:
    """The weights' files, as transformers will look for them.

    Args:
        folder: where the small files are.

    Raises:
        UserError: an index that names what is not a file of this repository.
    """
    if SINGLE in names:  # which it takes first
        return [SINGLE]
    index = read(folder / INDEX, f"{INDEX} of {base_id}")
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{INDEX} of {base_id} names no weights. Choose another base model.")
    found = sorted({str(name) for name in shards.values()})
    odd = [name for name in found if not WEIGHTS.fullmatch(name) or name not in names]
    if odd or len(found) > MAX_SHARDS:
        raise UserError(f"{INDEX} of {base_id} names {shorten(odd[0], 60) if odd else len(found)!r}, which is no weights file of it. Choose another base model.")
    return found


def read(path: Path, what: str) -> dict:
    """A stranger's JSON object.

    Raises:
        UserError: it is none, or nested without end.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{what} cannot be read as JSON. Choose another repository.")
    return found


def check_folder(base_id: str, folder: Path) -> dict:
    """Judge a base model's configs in a folder; gives its config.json.

    Raises:
        UserError: they ask for code, name files elsewhere, or claim sizes that no model has.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{base_id} is an adapter, not a base model. Choose the base that it names.")
    config = read(folder / "config.json", f"config.json of {base_id}")
    check_config(base_id, config)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            _check_values(base_id, name, read(folder / name, f"{name} of {base_id}"))
    return config


def has_template(folder: Path) -> bool:
    """Whether a base brings a chat template of its own, which has to be tried."""
    folder = Path(folder)
    return any(folder.glob("*.jinja")) or "chat_template" in read_json(folder / "tokenizer_config.json", {})


def check_config(base_id: str, config: dict) -> None:
    """Judge a config.json before any class is made of it.

    Raises:
        UserError: see `check_folder`.
    """
    _check_values(base_id, "config.json", config)
    kind = config.get("quantization_config")
    method = kind.get("quant_method", "unknown") if isinstance(kind, dict) else kind
    if method and method != "bitsandbytes":
        raise UserError(f"{base_id} is quantised already ({shorten(method, 30)}), which cannot be tuned here. Choose the original model.")


def _check_values(base_id: str, name: str, config: dict) -> None:
    """Every value of a config, however deep."""
    seen = 0
    waiting = [("", config, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise UserError(f"{name} of {base_id} is larger or deeper than any model's. Choose another base model.")
        _check_value(base_id, name, key, value)
        if isinstance(value, dict):
            asks = _ROUTINE_KEYS.fullmatch(key)  # one for each part of the model
            waiting += [(key if asks else str(its), below, depth + 1) for its, below in value.items()]
        elif isinstance(value, list):
            waiting += [(key, below, depth + 1) for below in value]


def _check_value(base_id: str, name: str, key: str, value) -> None:
    where = f"{name} of {base_id}"
    if key in _CODE_KEYS and value:
        raise UserError(f"{where} asks for code from the Hub ({key}: {shorten(_shown(value), 60)}). No such code is run here. Choose another base model.")
    if _ROUTINE_KEYS.fullmatch(key) and not isinstance(value, dict) and value not in _OWN_ROUTINES:
        raise UserError(f"{where} asks for code from the Hub ({key}: {shorten(_shown(value), 60)}). No such code is run here. Choose another base model.")
    if key.endswith(("_file", "_weights")) and key not in _OVERRIDDEN and isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,120}", value):
        raise UserError(f"{where} names a file outside of its repository ({key}: {shorten(value, 60)}). Choose another base model.")
    if key == "chat_template" and isinstance(value, str) and len(value) > SMALL_FILES["chat_template.jinja"]:
        raise UserError(f"The chat template of {base_id} has {len(value):,} characters, which no model needs. Choose another base model.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    # 1e30 is what transformers writes where a tokenizer knows no longest text.
    unlimited = key == "model_max_length" or isinstance(value, float)
    too_many = (_COUNTED.fullmatch(key) and value > MAX_LAYERS) or ("expert" in key and value > MAX_EXPERTS and not key.endswith("size"))
    if too_many or (not unlimited and abs(value) > MAX_NUMBER):
        raise UserError(f"{where} says {shorten(key, 40)} is {shorten(_shown(value), 30)}, which no model has. Choose another base model.")


def _shown(value) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except ValueError:  # a number of more digits than Python writes
        return "a number without end"


def count(base_id: str, config: dict, headers: dict[str, tuple[str, tuple[int, ...]]], size_bytes: int, most: float) -> int:
    """Parameters in the weights by their own headers.

    Args:
        headers: {name: (dtype, shape)}.
        size_bytes: the weights' files.
        most: how many may be loaded here.

    Raises:
        UserError: more than that; or the headers and the config cannot be of one model.
    """
    if not headers or any(size < 0 for _, shape in headers.values() for size in shape):
        raise UserError(f"The weights of {base_id} name no tensors. Choose another base model.")
    elements = sum(math.prod(shape) for _, shape in headers.values())
    large = max(elements, size_bytes // 4)
    if large > most:
        raise UserError(
            f"{base_id} has {large / 1e9:,.1f} billion parameters; the most that is loaded here is {most / 1e9:,.1f} billion. Choose a smaller base model."
        )
    try:
        claimed = sizes.of_config(config).weights
    except UserError:  # of another kind than language models; whoever needs the sizes will say so
        claimed = 0
    if claimed > CLAIM * elements + 10**7:
        raise UserError(
            f"config.json of {base_id} claims {claimed / 1e9:,.3f} billion parameters and its weights hold {elements / 1e9:,.3f} billion. "
            "Choose another base model."
        )
    return elements


# Adapters ---------------------------------------------------------------------------------------------------------

ADAPTER_FILES = {"adapter_model.safetensors": 4 * 2**30, "adapter_config.json": 2**20, "tuner.json": 2**20}
MAX_RANK = 4_096
_LAYER_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,300}", re.ASCII)
_PATTERN_NAME = re.compile(r"\^?[A-Za-z0-9_][\w.\\-]{0,300}\$?", re.ASCII)


def check_adapter(repo_id: str, config: dict) -> None:
    """Judge an adapter_config.json before PEFT sees it; see also `models.read_adapter_config`.

    Raises:
        UserError: it asks for code, holds patterns that may never end, or numbers that no adapter has.
    """
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library and not re.fullmatch(r"transformers\.models(\.\w+){1,3}", str(library), re.ASCII):
        raise UserError(f"{repo_id} asks for the library {shorten(str(library), 60)!r}, which is not loaded here. Choose another adapter.")
    for key in _CODE_KEYS:
        if config.get(key):
            raise UserError(f"{repo_id} asks for code ({key}). No such code is run here. Choose another adapter.")
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        names = config.get(key) or []
        if names == "all-linear" and key == "target_modules":
            continue
        # PEFT takes a text for a pattern, and a pattern may take for ever.
        if not isinstance(names, list) or len(names) > 20_000 or not all(isinstance(its, str) and _LAYER_NAME.fullmatch(its) for its in names):
            raise UserError(f"{repo_id} names its layers by a pattern ({key}: {shorten(_shown(names), 40)}); only lists of plain names are loaded. Choose another adapter.")
    _check_rank(repo_id, "r", config.get("r", 8))
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(isinstance(its, str) and _PATTERN_NAME.fullmatch(its) for its in patterns):
            raise UserError(f"{repo_id} has a {key} that is no list of layers. Choose another adapter.")
        if key == "rank_pattern":
            for rank in patterns.values():
                _check_rank(repo_id, key, rank)


def _check_rank(repo_id: str, key: str, rank) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise UserError(f"{repo_id} says {key} is {shorten(_shown(rank), 30)}; a rank is a whole number from 1 to {MAX_RANK:,}. Choose another adapter.")


def check_adapter_weights(repo_id: str, config: dict, headers: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse an adapter whose config claims ranks that its weights do not have: room is made by the config.

    Raises:
        UserError: so it is, or it holds no LoRA weights.
    """
    ranks = [shape[0] for name, (_, shape) in headers.items() if ("lora_A" in name or "lora_embedding_A" in name) and shape]
    if not ranks:
        raise UserError(f"{repo_id} holds no LoRA weights that can be read. Choose another adapter.")
    claimed = max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
    if claimed > max(ranks):
        raise UserError(f"{repo_id} claims the rank {claimed:,} and its weights have {max(ranks):,}. Choose another adapter.")
