"""Training pictures varied a little each time they are seen, the same for the same seed, epoch and row."""

import numpy as np
from PIL import Image, ImageEnhance

# recipe.augmentation -> what is done; the shares and ranges are of one picture, drawn evenly.
CAREFUL, MIRRORED, NONE = "careful", "mirrored", "none"
# Of the picture's area at least so much is seen, its sides stretched against each other by at most so much.
LEAST_AREA, MOST_STRETCH = 0.7, 1.15
# Degrees it is turned, and how much brightness, contrast and colour change, at most.
MOST_TURN, MOST_LIGHT = 8.0, 0.15


def varied(picture: Image.Image, sight, how: str, seed: int, epoch: int, row: int) -> Image.Image:
    """One variation of a picture, framed for a model: turned, cut and stretched a little, its light changed, perhaps mirrored.

    What is seen stays within the frame that the model sees at other times, so small things that fill it stay whole enough to be told apart.

    Args:
        sight: see `seeing.Sight`.
        how: "careful" never mirrors: letters, signs and left hands stay what they are. "mirrored" does in half of the cases.
        seed, epoch, row: nothing else decides what is drawn, so a resumed run sees what one that was not interrupted saw.
    """
    if how == NONE:
        return sight.framed(picture)
    random = np.random.default_rng([seed, epoch, row])
    height, width = sight.size
    # All numbers are drawn before any is used: what one step does with them changes no other.
    turn, area, stretch, across, down, mirror, light, contrast, colour = random.random(9)
    times = max(height / picture.height, width / picture.width)
    if times > 1:  # turned in its own few pixels it would only blur
        picture = picture.resize((max(width, round(picture.width * times)), max(height, round(picture.height * times))), sight.resample)
    edge = _edge(picture)
    picture = picture.rotate((2 * turn - 1) * MOST_TURN, Image.Resampling.BILINEAR, fillcolor=edge)
    # A model that squeezes whole pictures into its frame is shown parts of the pictures' own shape.
    shape = picture.width / picture.height if sight.resize and not sight.crop else width / height
    box = _box(picture.size, shape, LEAST_AREA + area * (1 - LEAST_AREA), MOST_STRETCH ** (2 * stretch - 1), across, down)
    picture = picture.resize((width, height), sight.resample, box=box)
    if how == MIRRORED and mirror < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhancer, drawn in ((ImageEnhance.Brightness, light), (ImageEnhance.Contrast, contrast), (ImageEnhance.Color, colour)):
        picture = enhancer(picture).enhance(1 + (2 * drawn - 1) * MOST_LIGHT)
    return picture


def _box(size: tuple[int, int], shape: float, area: float, stretch: float, across: float, down: float) -> tuple[float, float, float, float]:
    """The part that is seen: `area` of the largest middle part of that shape, stretched, and placed within it by `across` and `down`."""
    wide, tall = size
    frame = min(wide, tall * shape), min(tall, wide / shape)
    width, height = (min(most, side * area**0.5 * times) for most, side, times in zip(frame, frame, (stretch**0.5, stretch**-0.5)))
    left, top = (wide - frame[0]) / 2 + across * (frame[0] - width), (tall - frame[1]) / 2 + down * (frame[1] - height)
    return left, top, left + width, top + height


def _edge(picture: Image.Image) -> tuple[int, ...]:
    """The middle colour of the picture's edge, for the corners that turning leaves empty."""
    its = np.asarray(picture)
    rim = np.concatenate([its[0], its[-1], its[:, 0], its[:, -1]])
    return tuple(int(value) for value in np.median(rim, axis=0))
