"""The classifier of pictures: what of it is adapted, what stays as it is, and its loss on pictures of one size."""

import types
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from tuner import pictures, seeing, variation
from tuner import plan as plans
from tuner.errors import UserError
from tuner.fast import plain_model
from tuner.home import read_json
from tuner.tasks import label_model

# Decoded pictures that are kept for the next epoch, in bytes of pixels.
CACHE_BYTES = 256 * 2**20


# The model --------------------------------------------------------------------------------------------------------


def finish(model: nn.Module, base_dir, plan: dict, recipe) -> None:
    """Give the head its beginning, keep statistics still, and lay convolutions as their products want them.

    A base that tells as many other classes apart gets a fresh head too: its own knows the wrong ones.
    """
    known = read_json(base_dir / "config.json", {}).get("id2label")
    names = [known[key] for key in sorted(known, key=int)] if isinstance(known, dict) and all(str(key).isdecimal() for key in known) else None
    label_model.begin_heads(model, base_dir, plan["heads"], recipe.seed, anew=names != plan["labels"]["names"])
    keep_still(model)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)


def keep_still(model: nn.Module) -> int:
    """Keep every batch-norm in evaluation mode, also in training; how many there are.

    Their running statistics would move with each training batch, and they are not in the adapter: loaded again it computed
    logits that were off by 0.38.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = types.MethodType(lambda self, mode=True: self, module)
            count += 1
    return count


def adapted(model: nn.Module, recipe, heads: list[str]) -> list[str]:
    """The layers that get LoRA: linear ones where the base has any outside of its head, else its convolutions, by their shortest names.

    A ResNet is all convolutions. A ConvNeXt's linear layers hold nine tenths of its weights; its others mix one channel each.

    Raises:
        UserError: attention is asked for, and there is none.
    """
    from tuner.models import attention_layers

    if recipe.target_modules == "attention":
        if not getattr(model, "_supports_sdpa", False):
            raise UserError("This base model has no attention layers. Set target_modules to all-linear.")
        return attention_layers(model)
    outside = {name: module for name, module in model.named_modules() if not _is_within(name, heads)}
    chosen = [name for name, module in outside.items() if _is_linear(module)]
    chosen = chosen or [name for name, module in outside.items() if isinstance(module, nn.Conv2d) and module.groups == 1]
    last = {name.rsplit(".", 1)[-1] for name in chosen}
    others = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name and name not in chosen}
    return sorted(chosen if last & others or any(name.isdecimal() for name in last) else last)


def _is_within(name: str, heads: list[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # bitsandbytes' own are heirs of it


def weights_in_words(model: nn.Module, plan: dict, recipe) -> list[str]:
    """Which of the base's weights lie in 4 bits, and which stay frozen in 16."""
    if recipe.quantisation != "nf4":
        return []
    heads, kept = plan.get("heads", []), set(plan["kept_16bit"])
    linear = odd = convolved = 0
    for name, module in model.named_modules():
        name = name.removesuffix(".base_layer")  # LoRA may be there already
        if _is_within(name, heads) or ".lora_" in name:
            continue
        if _is_linear(module):
            size = module.in_features * module.out_features
            linear, odd = (linear, odd + size) if name in kept else (linear + size, odd)
        elif isinstance(module, nn.Conv2d):
            convolved += module.weight.numel()
    total = linear + odd + convolved
    if not linear:
        return [f"Nothing of this base is in 4 bits: its {convolved:,} weights in convolutions stay frozen in 16 bits, since 4-bit holds linear layers only."]
    said = f"In 4 bits are {linear:,} weights of linear layers, {linear / total:.0%} of the base's"
    rest = [f"{convolved:,} in convolutions" if convolved else "", f"{odd:,} in linear layers whose sizes 4-bit does not fit" if odd else ""]
    rest = " and ".join(its for its in rest if its)
    return [f"{said}; {rest} stay frozen in 16 bits." if rest else f"{said}."]


# The loss ---------------------------------------------------------------------------------------------------------


class ImagePath(label_model.Path):
    """Pictures of one size, side by side."""

    def __init__(self, model: nn.Module, sight: seeing.Sight, recipe, weights: torch.Tensor | None = None):
        super().__init__(model, weights)
        self.sight, self.augmentation, self.seed = sight, recipe.augmentation, recipe.seed
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._size = 0

    def varied(self, rows: list, indices: list[int], epoch: int) -> list:
        """Training rows as they are met in an epoch; the same for the same seed, epoch and index.

        Args:
            indices: their places among all training rows.
        """
        if self.augmentation == variation.NONE:
            return rows
        from dataclasses import replace

        return [replace(row, variation=(self.seed, epoch, index)) for row, index in zip(rows, indices)]

    def _pixels(self, row) -> np.ndarray:
        """(H, W, 3) uint8 of a row's kept picture; those met last stay decoded.

        Raises:
            UserError: the file that holds it is gone or damaged.
        """
        if "content" in row.picture:
            return pictures.pixels(row.picture["content"])
        key = (row.folder, row.picture["at"])
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            its = pictures.pixels(pictures.content(row.folder, row.picture))
        except (OSError, ValueError, SyntaxError):
            raise UserError(f"A picture of this run cannot be read any more ({row.file or row.picture['at']}). Bring the dataset again, and start anew.") from None
        self._kept[key] = its
        self._size += its.nbytes
        while self._size > CACHE_BYTES and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1].nbytes
        return its

    def seen(self, row) -> np.ndarray:
        """(channels, height, width) float32 of a row, varied where it says so."""
        from PIL import Image

        picture = Image.fromarray(self._pixels(row))
        framed = variation.varied(picture, self.sight, self.augmentation, *row.variation) if row.variation else self.sight.framed(picture)
        return self.sight.values(framed)

    def collate(self, rows: list) -> dict:
        """pixel_values: (B, channels, height, width) fp32; labels, targets: see `labelled`; lengths: what each row costs."""
        values = np.stack([self.seen(row) for row in rows])
        return {"pixel_values": torch.from_numpy(values), **self.labelled(rows), "lengths": [len(row.ids) for row in rows]}

    def parts(self, batch: dict, most_tokens: int, most_rows: int = 0) -> list[dict]:
        """The rows in their order, in as few and as equal parts as the limits allow; see `batching.micro_batches`."""
        found, row = [], 0
        for its in plans.parts(batch["lengths"], most_tokens, most_rows):
            part = {name: batch[name][row : row + len(its)] for name in ("pixel_values", "labels", "targets")}
            found.append({**part, "lengths": its})
            row += len(its)
        return found

    def logits(self, part: dict) -> torch.Tensor:
        """(B, C) fp32."""
        values = part["pixel_values"].to(plain_model(self.model).dtype)
        with torch.autocast(values.device.type, enabled=False):
            return self.model(pixel_values=values.contiguous(memory_format=torch.channels_last)).logits.float()

    @torch.no_grad()
    def features(self, rows: list) -> np.ndarray:
        """(B, D) float32: what the model's head reads of each picture; the adapter has to be off."""
        if not rows:
            return np.zeros((0, 0), np.float32)
        held: list[torch.Tensor] = []
        head = dict(plain_model(self.model).named_children())["classifier"]
        hook = head.register_forward_pre_hook(lambda module, inputs: held.append(inputs[0].detach().float().flatten(1)))
        try:
            def read(part: dict) -> torch.Tensor:
                held.clear()
                self.logits(part)
                return held[0]

            return np.concatenate(self.over(rows, read))
        finally:
            hook.remove()
