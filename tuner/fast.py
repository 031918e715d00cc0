"""The speed: LoRA arithmetic, the loss where something is learned, batches of like length."""

import math
import random
import types

import torch
from torch import nn
from torch.nn import functional as F

from tuner.encode import IGNORE

# Labelled tokens per slice of the loss: a slice's logits (256 x 49k in fp32: 48 MiB) stay near the cache.
LOSS_CHUNK = 256


def speed_up_lora(model: nn.Module) -> int:
    """Let recognised LoRA layers compute in the base's precision instead of fp32; returns how many were changed.

    PEFT casts each input to the adapter's fp32, which doubles memory traffic and, on a CPU, runs the two thin
    products at a third of the speed. Here the fp32 weights are cast instead: they stay fp32 masters for the
    optimiser. A layer with anything unusual (DoRA, several adapters, merged) keeps PEFT's own forward.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import LoraLayer

    kinds: tuple = (Linear,)
    try:
        from peft.tuners.lora.bnb import Linear4bit

        kinds += (Linear4bit,)
    except ImportError:  # bitsandbytes is not installed
        pass
    changed = 0
    for module in model.modules():
        if hasattr(module, "_plain_forward"):
            continue
        if isinstance(module, LoraLayer) and isinstance(module, kinds) and not any(getattr(module, "use_dora", {}).values()):
            module._plain_forward = module.forward
            module.forward = types.MethodType(_lora_forward, module)
            changed += 1
    return changed


def restore_lora(model: nn.Module) -> None:
    """Undo `speed_up_lora`: PEFT's own forward again, for comparison."""
    for module in model.modules():
        if hasattr(module, "_plain_forward"):
            module.forward = module._plain_forward
            del module._plain_forward


def _lora_forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """(..., D_in) -> (..., D_out): W x + scale B A x, with A and B cast to x's dtype."""
    if args or kwargs or self.merged or len(self.active_adapters) != 1:
        return self._plain_forward(x, *args, **kwargs)
    result = self.base_layer(x)
    if self.disable_adapters:
        return result
    name = self.active_adapters[0]
    if name not in self.lora_A:
        return result
    down, up = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
    thin = F.linear(self.lora_dropout[name](x), down)
    return result + F.linear(thin * self.scaling[name], up)


def can_split_head(model: nn.Module) -> bool:
    """Whether decoder and head can be run apart with nothing in between: no soft-capping, no scaling of logits."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = plain.config.get_text_config() if hasattr(plain.config, "get_text_config") else plain.config
    odd = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "mup_width_scale")
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in odd):
        return False
    return getattr(plain, "lm_head", None) is not None and hasattr(plain, "model") and type(plain.lm_head) is nn.Linear


def token_losses(model: nn.Module, input_ids, attention_mask, labels, split_head: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each learned token, with gradients.

    Args:
        input_ids, attention_mask, labels: (B, T); labels are not shifted.
        split_head: run the head only where something is learned (see `can_split_head`). Exact either way.

    Returns:
        losses: (n,) fp32, in the order of rows, then positions.
        rows: (n,) the row that each loss belongs to.
    """
    targets = labels[:, 1:]
    learned = targets != IGNORE
    rows = learned.nonzero()[:, 0]
    wanted = targets[learned]
    if not split_head:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1][learned]
        return F.cross_entropy(logits.float(), wanted, reduction="none"), rows
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = plain.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    hidden = hidden[:, :-1][learned]
    parts = [
        F.cross_entropy(plain.lm_head(hidden[start : start + LOSS_CHUNK]).float(), wanted[start : start + LOSS_CHUNK], reduction="none")
        for start in range(0, len(wanted), LOSS_CHUNK)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32), rows


def collate(rows: list, pad_id: int) -> dict[str, torch.Tensor]:
    """Encoded rows as (B, T) tensors, padded on the right to the longest."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORE)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids)] = torch.tensor(row.labels)
        mask[index, : len(row.ids)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class LengthBatches(torch.utils.data.Sampler):
    """Micro-batches of like length in an order that stays random: the same for the same seed and epoch.

    Rows are shuffled, taken in pools of POOL optimiser batches, sorted by length inside each pool and cut into
    optimiser batches, which are shuffled again; each is then cut into micro-batches. A short last batch comes last,
    so that gradient accumulation always counts whole optimiser batches.
    """

    POOL = 8

    def __init__(self, lengths: list[int], batch_size: int, micro_batch: int, seed: int):
        self.lengths, self.batch_size, self.micro_batch, self.seed = lengths, batch_size, micro_batch, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def accumulate(self) -> int:
        """Micro-batches in a full optimiser batch."""
        return math.ceil(min(self.batch_size, len(self.lengths)) / self.micro_batch)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def batches(self) -> list[list[int]]:
        """This epoch's optimiser batches, as row indices."""
        order = list(range(len(self.lengths)))
        # A generator of its own: the order must not depend on, nor disturb, any other random state.
        shuffle = random.Random(f"{self.seed}/{self.epoch}").shuffle
        shuffle(order)
        whole = len(order) // self.batch_size * self.batch_size
        order, rest = order[:whole], order[whole:]
        cut: list[list[int]] = []
        size = self.POOL * self.batch_size
        for start in range(0, whole, size):
            pool = sorted(order[start : start + size], key=self.lengths.__getitem__)
            cut += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        shuffle(cut)
        return cut + ([sorted(rest, key=self.lengths.__getitem__)] if rest else [])

    def __iter__(self):
        for batch in self.batches():
            for start in range(0, len(batch), self.micro_batch):
                yield batch[start : start + self.micro_batch]

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole * math.ceil(self.batch_size / self.micro_batch) + math.ceil(rest / self.micro_batch)
