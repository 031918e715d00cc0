"""The numbers of a base model that costs follow from, by its config and by the headers of its weights; without torch."""

import json
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from tuner import image_sizes
from tuner.errors import UserError

# What an element takes in a file, by safetensors' names; anything else counts as two bytes.
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
# A header larger than this is no model's, and reading one takes many times its memory; the Hub's client has the same limit.
_MAX_HEADER_BYTES = 25 * 10**6


@dataclass(frozen=True)
class Sizes:
    """A base model in numbers.

    Args:
        family: the config's model_type.
        linear: elements of the layers' linear weights that 4-bit fits.
        odd: elements of those that it does not fit on a CPU, so that they stay in 16 bits (see `models.unfit_for_4bit`).
        embedded: elements of the embedding, and of the head where it has its own.
        small: elements of norms and biases.
        lora, lora_attention: what one rank of LoRA adds in elements, on all linear layers and on those of attention.
        stored_bytes: the weights' files.
        exact: counted in the weights' own headers, not derived from the config.
        macs, lora_macs, kept: of a base of convolutions, for each square of a picture (see `image_sizes`): products and sums, those
            that one rank of LoRA adds, and elements of 16 bits that are kept for the way back. 0: one token goes once through all of `linear`.
        checkpoints: it can go forward again instead of keeping what it saw.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    head_dim: int
    kv_heads: int
    middle: int
    vocab: int
    linear: int
    odd: int
    embedded: int
    small: int
    lora: int
    lora_attention: int
    stored_bytes: int
    exact: bool = False
    macs: float = 0.0
    lora_macs: float = 0.0
    kept: float = 0.0
    checkpoints: bool = True

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def weights(self) -> int:
        return self.linear + self.odd + self.embedded + self.small

    def lora_work(self, recipe) -> float:
        """Products and sums that the recipe's adapter adds for each token, or square of a picture."""
        return recipe.lora_rank * self.lora_macs if self.macs else self.adapter(recipe)

    def adapter(self, recipe) -> int:
        """Elements of the recipe's adapter."""
        return recipe.lora_rank * (self.lora if recipe.target_modules == "all-linear" else self.lora_attention)


def of_config(config) -> Sizes:
    """By the config alone; takes a config object or its JSON as a dict.

    Raises:
        UserError: a number that every language model has is missing or no number.
    """
    get = (lambda name, default=None: config.get(name, default)) if isinstance(config, dict) else (
        lambda name, default=None: getattr(config, name, default)
    )
    inner = get("text_config")
    if inner is not None and get("hidden_size") is None:
        return of_config(inner)
    family = get("model_type") or ""
    if family in image_sizes.CONVOLVED:
        return Sizes(family, **image_sizes.numbers(family, get))
    hidden, layers = get("hidden_size") or get("dim"), get("num_hidden_layers") or get("n_layers")
    vocab = get("vocab_size") if family not in image_sizes.TRANSFORMERS else 0
    for name, value in (("hidden_size", hidden), ("num_hidden_layers", layers), ("vocab_size", vocab)):
        if not isinstance(value, int) or not (0 < value < 10**9 or name == "vocab_size" and family in image_sizes.TRANSFORMERS):
            raise UserError(f"The base model's config.json says {name} is {str(value)[:40]!r}, so nothing can be said of what it needs. Choose another.")
    heads = get("num_attention_heads") or get("n_heads") or 1
    head_dim = get("head_dim") or hidden // heads
    kv_heads = get("num_key_value_heads") or heads
    ratio = get("mlp_ratio") if family in image_sizes.TRANSFORMERS and type(get("mlp_ratio")) is int else 4
    middle = get("intermediate_size") or get("hidden_dim") or ratio * hidden
    if not all(isinstance(value, int) and 0 < value < 10**9 for value in (heads, head_dim, kv_heads, middle)):
        raise UserError("The base model's config.json holds sizes that are no numbers. Choose another.")
    attention = [(hidden, heads * head_dim), (hidden, kv_heads * head_dim), (hidden, kv_heads * head_dim), (heads * head_dim, hidden)]
    rest = [(hidden, middle)] * (1 if family in _WITHOUT_GATE else 2) + [(middle, hidden)]
    fit = layers * sum(a * b for a, b in attention + rest if _fits_4bit(a, b))
    linear = layers * sum(a * b for a, b in attention + rest)
    embedded = vocab * hidden * (1 if get("tie_word_embeddings", True) else 2)
    small = (2 * layers + 1) * hidden
    return Sizes(
        family, hidden, layers, heads, head_dim, kv_heads, middle, vocab, fit, linear - fit, embedded, small,
        layers * sum(a + b for a, b in attention + rest), layers * sum(a + b for a, b in attention), 2 * (linear + embedded + small),
    )


# Encoders whose MLP has two matrices; every other model here has a gate beside them.
_WITHOUT_GATE = ("bert", "roberta", "xlm-roberta", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "albert", *image_sizes.TRANSFORMERS)


def _fits_4bit(inputs: int, outputs: int) -> bool:
    return inputs % 64 == 0 and outputs % 32 == 0


def of_base(config: dict, tensors: dict[str, tuple[str, tuple[int, ...]]] | None) -> Sizes:
    """By the config and, where they could be had, by the weights' headers: {name: (dtype, shape)}.

    Raises:
        UserError: see `of_config`.
    """
    its = of_config(config)
    if not tensors:
        return its
    kept = {name: its_ for name, its_ in tensors.items() if "vision" not in name and "audio" not in name}
    counted = dict(linear=0, odd=0, embedded=0, small=0, lora=0, lora_attention=0)
    for name, (_, shape) in kept.items():
        elements = math.prod(shape)
        if name.endswith(("embed_tokens.weight", "wte.weight", "embeddings.weight")):
            counted["embedded"] += elements
        elif "lm_head" in name:
            if not config.get("tie_word_embeddings", True):  # a stored copy of a tied one is not loaded
                counted["embedded"] += elements
        elif len(shape) == 2 and name.endswith(".weight") and (".layers." in f".{name}" or ".layer." in f".{name}"):
            outputs, inputs = shape
            counted["linear" if _fits_4bit(inputs, outputs) else "odd"] += elements
            counted["lora"] += inputs + outputs
            if "attn" in name.rsplit(".", 2)[0].lower() or ".attention." in name:
                counted["lora_attention"] += inputs + outputs
        else:
            counted["small"] += elements
    if not counted["lora"]:  # names that are not understood: the config says more
        return its
    stored = sum(_BYTES.get(dtype, 2) * math.prod(shape) for dtype, shape in tensors.values())
    return replace(its, **counted, stored_bytes=stored, exact=True)


def in_folder(folder: Path) -> Sizes:
    """Of the base model that lies in a folder."""
    return of_base(json.loads((Path(folder) / "config.json").read_text("utf-8")), headers_in(folder))


def headers_in(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} of all safetensors files in a folder, from their headers alone; {} where there are none."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size)) if size <= _MAX_HEADER_BYTES else {}
            found |= of_header(header)
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, struct.error):
            return {}
    return found


def of_header(header: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} of one safetensors header; what is no tensor is left out."""
    return {
        name: (str(its["dtype"]), tuple(int(size) for size in its["shape"]))
        for name, its in header.items() if name != "__metadata__" and isinstance(its, dict) and "dtype" in its and "shape" in its
    }
