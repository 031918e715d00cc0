"""How a base model sees a picture: its preprocessor_config.json, read and followed with Pillow and numpy alone."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from tuner import image_sizes, pictures
from tuner.errors import UserError, shorten
from tuner.home import read_json

FILE = "preprocessor_config.json"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# kind -> (how it resizes, resample, mean and spread, its size) where the file does not say; as transformers 5.23 has them.
_KINDS = {
    "ConvNext": ("crop_pct", 3, _IMAGENET, {"shortest_edge": 384}), "ViT": ("square", 2, _HALF, {"height": 224, "width": 224}),
    "Bit": ("shortest", 3, _CLIP, {"shortest_edge": 224}), "DeiT": ("square", 3, _IMAGENET, {"height": 256, "width": 256}),
}


@dataclass(frozen=True)
class Sight:
    """What is done to a picture before a model meets it.

    Args:
        resize: (height, width) that it is stretched to; or shortest: its short side; one of them.
        crop: (height, width) cut from the middle; None for none.
        resample: Pillow's number of the filter.
        factor, mean, spread: pixels times factor, less mean, by spread, channel by channel.
        folder: the base's, for those who pass a tokenizer on by its folder.
        unit: pixels a side of the squares that a picture's cost is counted in: a transformer's patch, or UNIT.
    """

    resize: tuple[int, int] | None
    shortest: int | None
    crop: tuple[int, int] | None
    resample: int
    factor: float
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    channels: int = 3
    folder: str = ""
    unit: int = image_sizes.UNIT
    # What a check asks of a tokenizer; a picture has no tokens.
    context: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the model meets."""
        return self.crop or self.resize or (self.shortest, self.shortest)

    @property
    def units(self) -> int:
        """What a picture costs, in squares; it stands where texts have tokens."""
        height, width = self.size
        return max(1, math.ceil(height / self.unit) * math.ceil(width / self.unit))

    def framed(self, picture: Image.Image) -> Image.Image:
        """The picture resized and cut as the model sees it; (height, width) of `size`, with black where the crop reaches beyond it."""
        if self.resize:
            picture = picture.resize(self.resize[::-1], self.resample)
        elif self.shortest:
            long = int(self.shortest * max(picture.size) / min(picture.size))
            size = (self.shortest, long) if picture.width <= picture.height else (long, self.shortest)
            picture = picture.resize(size, self.resample)
        if not self.crop:
            return picture
        (height, width), wide, tall = self.crop, picture.width, picture.height
        if height <= tall and width <= wide:
            left, top = (wide - width) // 2, (tall - height) // 2
        else:  # transformers lays it on black first, rounding up, and cuts the middle of that
            grown = Image.new(picture.mode, (max(width, wide), max(height, tall)))
            grown.paste(picture, (math.ceil((grown.width - wide) / 2), math.ceil((grown.height - tall) / 2)))
            picture, left, top = grown, max(0, (grown.width - width) // 2), max(0, (grown.height - height) // 2)
        return picture.crop((left, top, left + width, top + height))

    def values(self, framed: Image.Image) -> np.ndarray:
        """(channels, height, width) float32, as the model takes it, of a picture that is framed."""
        its = np.asarray(framed.convert("L" if self.channels == 1 else "RGB"), np.float32)
        its = its[..., None] if its.ndim == 2 else its
        return np.ascontiguousarray(((its * np.float32(self.factor) - np.float32(self.mean)) / np.float32(self.spread)).transpose(2, 0, 1))

    def see(self, kept: bytes) -> np.ndarray:
        """A kept picture as the model takes it: (channels, height, width) float32."""
        return self.values(self.framed(opened(kept)))

    def to_json(self) -> dict:
        """What of it a page or a card shows."""
        return {"height": self.size[0], "width": self.size[1], "channels": self.channels}


def opened(kept: bytes) -> Image.Image:
    """A kept picture, RGB."""
    return Image.fromarray(pictures.pixels(kept))


@lru_cache(maxsize=8)
def load(base_dir: str) -> Sight:
    """How the base model in a folder sees pictures.

    Raises:
        UserError: it has no preprocessor_config.json, or one that is of another kind.
    """
    known, config = read_json(Path(base_dir) / FILE), read_json(Path(base_dir) / "config.json", {})
    if not isinstance(known, dict):
        raise UserError(f"The base model has no {FILE}, so it cannot be told how it sees pictures. Choose another base model.")
    name = str(known.get("image_processor_type") or known.get("feature_extractor_type") or "")
    kind = next((kind for kind in _KINDS if name.startswith(kind)), "")
    if not kind:
        raise UserError(f"The base model's pictures are prepared by {shorten(name or 'nothing named', 40)!r}, which is not known here. Known are {', '.join(_KINDS)}.")
    try:
        patch = config.get("patch_size") if config.get("model_type") in image_sizes.TRANSFORMERS else image_sizes.UNIT
        patch = patch if type(patch) is int and 4 <= patch <= 64 else image_sizes.UNIT
        return replace(_sight(known, kind, int(config.get("num_channels", 3)), str(base_dir)), unit=patch)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"The base model's {FILE} cannot be followed: {shorten(str(error), 80)}. Choose another base model.") from None


def _sight(known: dict, kind: str, channels: int, folder: str) -> Sight:
    way, resample, (mean, spread), default = _KINDS[kind]
    size = known.get("size", default)
    resize, shortest, crop = None, None, None
    if isinstance(size, int):
        size = {"shortest_edge": size} if way in ("crop_pct", "shortest") else {"height": size, "width": size}
    if known.get("do_resize", True):
        if "shortest_edge" in size:
            shortest = _side(size["shortest_edge"])
        else:
            resize = (_side(size["height"]), _side(size["width"]))
    if way == "crop_pct" and shortest:
        if shortest < 384:
            crop = (shortest, shortest)
            shortest = int(shortest / float(known.get("crop_pct") or 224 / 256))
        else:
            resize, shortest = (shortest, shortest), None
    elif known.get("do_center_crop", way == "shortest" or kind == "DeiT"):
        its = known.get("crop_size", {"height": 224, "width": 224})
        crop = (_side(its), _side(its)) if isinstance(its, int) else (_side(its["height"]), _side(its["width"]))
    elif shortest:
        crop = (shortest, shortest)  # pictures of one batch have one size
    if not (resize or crop):
        raise ValueError("it names no size")
    if channels not in (1, 3):
        raise ValueError(f"{channels} channels")
    normalised = known.get("do_normalize", True)
    numbers = lambda its, default: tuple(float(one) for one in its)[:channels] if its else default[:channels]  # noqa: E731
    mean = numbers(known.get("image_mean"), mean) if normalised else (0.0,) * channels
    spread = numbers(known.get("image_std"), spread) if normalised else (1.0,) * channels
    factor = float(known.get("rescale_factor", 1 / 255)) if known.get("do_rescale", True) else 1.0
    if len(mean) != channels or len(spread) != channels or not all(map(math.isfinite, (*mean, *spread, factor))) or not all(spread):
        raise ValueError("its mean and spread are no numbers for each channel")
    resample = known.get("resample", resample)
    if resample not in range(6):
        raise ValueError(f"resample is {resample!r}")
    return Sight(resize, shortest, crop, int(resample), factor, mean, spread, channels, folder)


def _side(value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 8 <= value <= 2_048:
        raise ValueError(f"a side of {value!r} pixels")
    return value
