"""Pictures drawn for tests: soft noise that differs from picture to picture, shapes that can be told apart, and files made of them."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ("disc", "bar", "cross")


def noise(seed: int, width: int = 80, height: int = 60) -> Image.Image:
    """A picture like no other seed's: large soft spots."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def shape(kind: str, seed: int, side: int = 32) -> Image.Image:
    """A disc, a bar or a cross somewhere, on noise."""
    random = np.random.default_rng([seed, SHAPES.index(kind)])
    its = random.integers(0, 60, (side, side, 3)).astype(np.uint8)
    y, x = np.mgrid[:side, :side]
    cx, cy = random.uniform(0.35, 0.65, 2) * side
    inside = {
        "disc": (x - cx) ** 2 + (y - cy) ** 2 < (0.25 * side) ** 2, "bar": abs(y - cy) < 0.12 * side,
        "cross": (abs(x - cx) < 0.08 * side) | (abs(y - cy) < 0.08 * side),
    }[kind]
    its[inside] = random.integers(150, 256, 3)
    return Image.fromarray(its)


def coded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The picture's file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    """A zip of these files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def shapes_zip(path: Path, each: int = 12, kinds=SHAPES, side: int = 32) -> Path:
    """A zip with a folder of pictures for each shape."""
    return zipped(path, {f"{kind}/{seed:03d}.png": coded(shape(kind, seed, side)) for kind in kinds for seed in range(each)})
