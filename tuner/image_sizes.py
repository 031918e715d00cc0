"""Image models in numbers: what their convolutions hold, and what they do to a square of 16 x 16 pixels, by their configs."""

from dataclasses import dataclass

from tuner.errors import UserError

# What a picture costs is counted in squares of so many pixels a side, whatever the model cuts it into.
UNIT = 16
TRANSFORMERS = ("vit", "dinov2", "dinov2_with_registers", "deit")
CONVOLVED = ("resnet", "convnext", "convnextv2")


@dataclass
class _Tally:
    """Layers as they are walked through; `places` are a layer's outputs for one square of the picture."""

    weights: int = 0  # of convolutions, which stay in 16 bits
    linear: int = 0
    odd: int = 0
    small: int = 0
    macs: float = 0.0
    lora: int = 0
    lora_macs: float = 0.0
    kept: float = 0.0
    layers: int = 0

    def convolution(self, inputs: int, outputs: int, size: int, stride: int, places: float, groups: int = 1, adapted: bool = True) -> float:
        """Add one with what follows it (a norm, an activation); its output's places."""
        within, places = places, places / stride**2
        elements = inputs // groups * outputs * size**2
        self.weights += elements
        self.macs += elements * places
        # Kept for the way back: what its norm and its activation were given, and LoRA's own copy of its input in fp32.
        self.kept += 2 * outputs * places
        if adapted:
            self.lora += inputs * size**2 + outputs
            self.lora_macs += inputs * size**2 * places + outputs * places
            self.kept += 2 * inputs * within
        self.small += 4 * outputs
        self.layers += 1
        return places

    def line(self, inputs: int, outputs: int, places: float) -> None:
        """Add a linear layer that each place goes through."""
        if inputs % 64 == 0 and outputs % 32 == 0:
            self.linear += inputs * outputs
        else:
            self.odd += inputs * outputs
        self.macs += inputs * outputs * places
        self.lora += inputs + outputs
        self.lora_macs += (inputs + outputs) * places
        self.kept += (3 * inputs + 2 * outputs) * places
        self.small += outputs
        self.layers += 1


def numbers(kind: str, get) -> dict:
    """What `sizes.Sizes` is made of, of an image model of convolutions.

    Args:
        kind: its model_type, one of CONVOLVED.
        get: (name, default) -> the config's value.

    Raises:
        UserError: a number is missing or none.
    """
    widths, depths = get("hidden_sizes"), get("depths")
    channels, first = get("num_channels", 3), get("embedding_size", 64)
    numbers_of = (widths, depths) if all(isinstance(its, (list, tuple)) and its for its in (widths, depths)) else ((), ())
    whole = all(type(one) is int and 0 < one < 100_000 for its in (*numbers_of, (channels, first)) for one in its)
    if not numbers_of[0] or not whole or len(widths) != len(depths) or sum(depths) > 1_000:
        raise UserError("The base model's config.json holds sizes that are no numbers, so nothing can be said of what it needs. Choose another.")
    tally = _Tally()
    (_resnet if kind == "resnet" else _convnext)(tally, widths, depths, channels, first, get)
    return dict(
        hidden=widths[-1], layers=tally.layers, heads=1, head_dim=0, kv_heads=0, middle=widths[-1], vocab=0, linear=tally.linear, odd=tally.odd, embedded=0,
        small=tally.weights + tally.small, lora=tally.lora, lora_attention=0, stored_bytes=4 * (tally.weights + tally.small + tally.linear + tally.odd),
        macs=tally.macs, lora_macs=tally.lora_macs, kept=tally.kept, checkpoints=False,
    )


def _resnet(tally: _Tally, widths, depths, channels: int, first: int, get) -> None:
    places = tally.convolution(channels, first, 7, 2, UNIT**2) / 4  # the pooling behind it halves both sides again
    inputs, thin = first, get("layer_type", "bottleneck") == "bottleneck"
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        for block in range(depth):
            stride = 2 if block == 0 and (stage or get("downsample_in_first_stage", False)) else 1
            if inputs != width or stride != 1:
                tally.convolution(inputs, width, 1, stride, places)
            if thin:
                inner = width // 4
                within = tally.convolution(inputs, inner, 1, 1, places)
                within = tally.convolution(inner, inner, 3, stride, within)
                places = tally.convolution(inner, width, 1, 1, within)
            else:
                places = tally.convolution(width, width, 3, 1, tally.convolution(inputs, width, 3, stride, places))
            inputs = width


def _convnext(tally: _Tally, widths, depths, channels: int, first: int, get) -> None:
    patch = get("patch_size", 4)
    patch = patch if type(patch) is int and 0 < patch <= 32 else 4
    places = tally.convolution(channels, widths[0], patch, patch, UNIT**2, adapted=False)
    inputs = widths[0]
    for width, depth in zip(widths, depths):
        if inputs != width:
            places = tally.convolution(inputs, width, 2, 2, places, adapted=False)
        for _ in range(depth):
            tally.convolution(width, width, 7, 1, places, groups=width, adapted=False)
            tally.line(width, 4 * width, places)
            tally.line(4 * width, width, places)
        inputs = width
