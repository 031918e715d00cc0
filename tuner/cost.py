"""The memory and the time of a run by formula; the constants are fitted to measured runs (`python -m tests.bench.quote --fit`)."""

from dataclasses import dataclass

import numpy as np

from tuner import tasks
from tuner.sizes import Sizes

# Architectures whose layers take our own arithmetic; any other goes through transformers and PEFT, and keeps more.
FAST_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3")
# Rows up to this many tokens keep their attention probabilities for the backward pass (see tuner/attention.py).
KEPT_PROBABILITIES = 128
# A slice's logits in 16 bits: small enough for the cache, large enough for a fast product; on a card, which reads the whole
# head for each slice, large enough for that not to count.
SLICE_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}
# bitsandbytes' NF4 with double quantisation: half a byte, and a scale of 8 bits with its own for each block of 64.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
GIB = 2**30
# When the constants below were fitted: what finished runs taught before is about other ones.
FITTED = "2026-11-27, plain measured"


@dataclass(frozen=True)
class Work:
    """What a run goes through, as sums over its rows.

    Args:
        tokens, learned: tokens, and those with a loss.
        squares: the sum of each row's tokens squared, for attention.
        rows, batches, steps: rows, micro-batches and optimiser steps.
    """

    tokens: float
    learned: float
    squares: float
    rows: float
    batches: float
    steps: float

    @classmethod
    def of(cls, lengths, learned: float, batches: float, steps: float) -> "Work":
        lengths = np.asarray(lengths, np.float64)
        return cls(float(lengths.sum()), learned, float((lengths**2).sum()), len(lengths), batches, steps)

    def times(self, factor: float, steps: float | None = None) -> "Work":
        """The same several times over."""
        scaled = [value * factor for value in (self.tokens, self.learned, self.squares, self.rows, self.batches)]
        return Work(*scaled, self.steps * factor if steps is None else steps)


def kind(recipe, its: Sizes) -> str:
    """Which arithmetic a run takes: "fast" (ours), "plain" (transformers' and PEFT's) or "classifier" (that, without a vocabulary), "pictures" (that, of pictures)."""
    task = tasks.get(recipe.task)
    return "fast" if task.OWN_PARTS and its.family in FAST_FAMILIES and recipe.lora_dropout == 0 else task.PLAIN


# Memory -----------------------------------------------------------------------------------------------------------


def is_ample(size: float, free: float) -> bool:
    """Whether bytes that are spent for speed alone, and for the whole run, take less than a quarter of the free ones."""
    return size < free / 4


def prepacked_bytes(linear: int, head: int) -> int:
    """What prepacking adds (`tuner.prepack`): a second copy of the dense layers' elements, and one of the head's."""
    return 2 * (linear + head)


def itemsize(precision: str) -> int:
    """Bytes of a number in the precision that is computed in: "float32", or 16 bits."""
    return 4 if precision == "float32" else 2


def base_bytes(its: Sizes, quantisation: str, dequantised: bool, prepacked: bool = False, item: int = 2) -> float:
    """The base's weights as a run holds them: in 4 bits where they are packed; embedding, head and the rest in `item` bytes."""
    packed = quantisation == "nf4" and not dequantised
    return (NF4_BYTES if packed else item) * its.linear + item * (its.odd + its.embedded + its.small) + (prepacked_bytes(its.linear + its.odd, its.vocab * its.hidden) if prepacked else 0)


# In fp32 the fast way takes so much of what its layers keep once more, up to so many bytes: copies that products make for themselves,
# and the pieces that the heap is left in. Also with checkpointing, which goes through the same. Seen with the starter only, from 0.1 to
# 7 GiB of activations.
PIECES_FP32, MOST_PIECES = 0.3, 0.3 * 2**30


def activation_bytes(its: Sizes, lengths, way: str, rank: int, checkpointing: bool, item: int = 2) -> float:
    """What a micro-batch of rows keeps for its backward pass, with the most that one layer adds while it goes back."""
    lengths, pieces = np.asarray(lengths, np.float64), 0.0
    tokens = float(lengths.sum())
    if way == "fast":
        # Both blocks' inputs, q k v and the attention's answer, gate and up, LoRA's thin rows, both norms' 1 / rms.
        kept = tokens * (2 * its.hidden + its.qkv_width + its.attention_width + 2 * its.middle + 7 * rank + 4)
        kept += its.heads * float((lengths[lengths <= KEPT_PROBABILITIES] ** 2).sum())
        layer = tokens * (4 * its.middle + 8 * its.hidden + 2 * its.qkv_width)
        pieces = min(PIECES_FP32 * item * its.layers * kept, MOST_PIECES) if item == 4 else 0.0
    elif its.macs:
        kept, layer = tokens * its.kept, 0.25 * tokens * its.kept
        return item * (kept + layer)
    else:
        # Both norms in fp32 too, q, k, v twice, the product of gate and up, and what PEFT casts for LoRA.
        kept = tokens * (14 * its.hidden + 5 * its.middle) + 3 * its.heads * float((lengths**2).sum())
        layer = tokens * (6 * its.middle + 10 * its.hidden)
    if checkpointing:
        return item * (its.layers * tokens * its.hidden + kept + layer) + pieces
    return item * (its.layers * kept + layer) + pieces


def memory(recipe, its: Sizes, plan, lengths, device: str, precision: str, import_gib: float) -> dict[str, float]:
    """GiB that a run needs at its peak, by what takes them.

    Args:
        plan: see `plan.Plan`.
        lengths: the heaviest micro-batch's rows, in tokens.
        precision: what is computed in.
        import_gib: the process before it has done anything; on a card, what the driver takes there.
    """
    way, adapter, item = kind(recipe, its), its.adapter(recipe), itemsize(precision)
    parts = {
        "libraries": import_gib,
        "base model": base_bytes(its, recipe.quantisation, plan.dequantised, plan.prepacked, item) / GIB,
        # fp32 weights, gradient, two moments; a 16-bit copy while a layer is computed.
        "adapter and optimiser": 16 * adapter / GIB,
        "activations": activation_bytes(its, lengths, way, recipe.lora_rank, plan.checkpointing, item) / GIB,
        "loss": loss_bytes(its, way, device) / GIB,
    }
    if device == "cpu":
        parts["allocator"] = 0.06 + 0.05 * parts["activations"]
        # Reading the weights maps their files, and packing them holds one layer more.
        loading = import_gib + (its.stored_bytes + base_bytes(its, recipe.quantisation, False, item=item)) / GIB
        parts["files being read"] = max(0.0, loading - sum(parts.values()))
    return {name: size for name, size in parts.items() if size}


# Tokens that are measured together. A report's answers that are given together, the base's and the tuned model's: at most, on a
# processor as many as their caches have room for here, and at least.
MEASURED_AT_ONCE, MOST_ANSWERS_AT_ONCE, ANSWERS_BYTES, FEWEST_ANSWERS_AT_ONCE = 2048, 64, 128 * 2**20, 8


def answers_at_once(device: str, token_bytes: float, tokens: float) -> int:
    """How many answers a report gives together.

    Args:
        token_bytes: of one token in an answer's cache.
        tokens: of the longest prompt and its answer.
    """
    if device != "cpu":
        return MOST_ANSWERS_AT_ONCE
    return int(min(MOST_ANSWERS_AT_ONCE, max(FEWEST_ANSWERS_AT_ONCE, ANSWERS_BYTES // (token_bytes * tokens)))) // 2 * 2


def cached_bytes(its: Sizes, item: int) -> float:
    """Keys and values of one token in an answer's cache."""
    return item * its.layers * (its.qkv_width - its.attention_width)


def measuring_bytes(its: Sizes, way: str, device: str, item: int, tokens: float, rows: float, answer_tokens: float) -> float:
    """What measuring takes, which keeps nothing for a backward pass: one layer's passes, and the caches of answers given together.

    Args:
        tokens, rows: of all that is measured.
        answer_tokens: of a prompt and its answer at its longest.
    """
    if its.macs:
        return 0.0
    layer = item * min(tokens, MEASURED_AT_ONCE) * (4 * its.middle + 8 * its.hidden + 2 * its.qkv_width)
    if way not in ("fast", "plain"):
        return layer
    token_bytes = cached_bytes(its, item)
    return layer + min(2 * rows, answers_at_once(device, token_bytes, answer_tokens)) * token_bytes * answer_tokens


def loss_bytes(its: Sizes, way: str, device: str) -> float:
    """The logits of one slice of tokens."""
    if way in ("classifier", "pictures"):
        return 0.0
    return 2 * SLICE_BYTES[device] if way == "fast" else 256 * its.vocab * 10


# Time -------------------------------------------------------------------------------------------------------------

# What each part of a training pass costs, as multiples of what the machine reaches; see `_features`.
TRAIN = {
    "fast": {"linear": 1.15, "lora": 2.28, "head": 1.2, "attention": 2.8, "passes": 0.0, "layer": 1270.0, "row": 139.0, "unpack": 7.0, "adapter": 20.0},
    "plain": {"linear": 2.1, "lora": 5.6, "head": 3.5, "attention": 8.0, "passes": 8.0, "layer": 120.0, "row": 8.0, "unpack": 2.0, "adapter": 20.0},
    "pictures": {"linear": 2.0, "lora": 4.0, "head": 0.0, "attention": 4.0, "passes": 4.0, "layer": 400.0, "row": 20.0, "unpack": 2.0, "adapter": 20.0},
    "classifier": {"linear": 1.0, "lora": 2.5, "head": 0.0, "attention": 4.0, "passes": 4.0, "layer": 11500.0, "row": 0.0, "unpack": 2.0, "adapter": 20.0},
}
# The fast way where a processor has no bf16 to speak of, so that all is computed in fp32.
TRAIN_FP32 = {"linear": 1.24, "lora": 0.97, "head": 1.47, "attention": 2.63, "passes": 0.0, "layer": 2060.0, "row": 0.0, "unpack": 14.5, "adapter": 20.0}
# The same for a pass forward alone, and for one token of an answer.
FORWARD_SHARE = 0.44
# Seconds, or multiples: reading and packing weights, encoding a row, one checkpoint.
ANSWER_LAYER_OPS = 90.0
# By so much a token of an answer takes longer in fp32: products of a few tokens reach about half of the memory's speed there.
ANSWER_FP32 = 2.2


def _price(way: str, reach) -> dict[str, float]:
    """What each of `_features` costs in this arithmetic there."""
    return TRAIN_FP32 if way == "fast" and reach.precision == "float32" else TRAIN[way]


def _features(its: Sizes, work: Work, lora_work: float, adapter: int, packed: bool, reach) -> dict[str, float]:
    """Seconds that each part of training would take if it reached what the machine reaches at best."""
    gemm, bandwidth, op = reach.gemm_gflops * 1e9, reach.gb_per_s * 1e9, reach.op_us * 1e-6
    wide = its.linear + its.odd
    return {
        "linear": 4 * (its.macs or wide) * work.tokens / gemm,
        "lora": 6 * lora_work * work.tokens / gemm,
        "head": 4 * its.vocab * its.hidden * work.learned / gemm,
        "attention": 6 * its.attention_width * its.layers * work.squares / gemm,
        "passes": 2 * work.tokens * (its.kept or its.layers * (2 * its.hidden + 3 * its.middle + its.qkv_width)) / bandwidth,
        "layer": work.batches * its.layers * op,
        "row": work.rows * its.layers * op,
        "unpack": 2 * 2 * its.linear * work.batches / bandwidth if packed else 0.0,
        "adapter": 16 * adapter * work.steps / bandwidth,
    }


def training_s(recipe, its: Sizes, plan, work: Work, reach) -> float:
    """Seconds of training over that work, by formula; without what finished runs taught."""
    way = kind(recipe, its)
    found = _features(its, work, its.lora_work(recipe), its.adapter(recipe), recipe.quantisation == "nf4" and not plan.dequantised, reach)
    price = _price(way, reach)
    seconds = sum(price[name] * value for name, value in found.items())
    # Checkpointing goes forward once more through the layers, not through the head.
    again = sum(price[name] * found[name] for name in ("linear", "lora", "attention", "passes", "layer", "row", "unpack"))
    return seconds + (FORWARD_SHARE * again if plan.checkpointing else 0.0)


def forward_s(recipe, its: Sizes, plan, work: Work, reach) -> float:
    """Seconds of a pass forward over that work."""
    way = kind(recipe, its)
    found = _features(its, work, its.lora_work(recipe), its.adapter(recipe), recipe.quantisation == "nf4" and not plan.dequantised, reach)
    price = _price(way, reach)
    return FORWARD_SHARE * sum(price[name] * value for name, value in found.items() if name != "adapter")


def answer_s(its: Sizes, tokens: float, reach) -> float:
    """Seconds to write that many tokens of an answer, one after the other."""
    once = ANSWER_LAYER_OPS * its.layers * reach.op_us * 1e-6 + itemsize(reach.precision) * its.weights / (reach.gb_per_s * 1e9)
    return tokens * once * (ANSWER_FP32 if reach.precision == "float32" else 1.0)


# Training rows that a classifier's report fits its baseline to, at most: more change its figures little and take minutes. At
# least, where the report has not the time for more.
LINE_ROWS, LINE_FEWEST = 10_000, 200
# Of each class at least so many.
LINE_OF_CLASS = 5
# A classifier's report chooses its baseline's strength on at most so many numbers (rows x features x classes), which takes so many
# seconds on LINE_ENOUGH rows and more for a power of the classes; then it is fitted to all rows, so many seconds for each number.
# Features of the library desk: 1.5 s on 200 rows, 7 on 400, 9 on 1,265. The classes are reckoned with where they are not known.
LINE_TRIED, LINE_TRIED_S, LINE_ENOUGH, LINE_POWER, LINE_S, LINE_CLASSES = 14e6, 1.9, 500, 0.75, 7.5e-8, 9


def line_s(hidden: int, rows: float, classes: int = LINE_CLASSES) -> float:
    """Seconds to fit a logistic regression to the features (rows, hidden) of so many classes, its strength chosen by cross-validation."""
    return LINE_S * hidden * rows * classes + LINE_TRIED_S * classes**LINE_POWER * min(1.0, rows / LINE_ENOUGH)


def fewest_lines(classes: int) -> int:
    """Training rows that a baseline always learns from, where there are so many."""
    return max(LINE_FEWEST, LINE_OF_CLASS * classes)


def start_s(recipe, its: Sizes, rows: int, reach) -> float:
    """Seconds from Start until the first pass: imports, encoding, reading and packing the weights."""
    return 1.0 + 1.3 * reach.import_s + 0.0006 * rows + its.stored_bytes / 1e9 + (its.linear / 60e6 if recipe.quantisation == "nf4" and reach.device == "cpu" else 0)
