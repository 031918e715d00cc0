"""Makes what lies beside it: a small ResNet trained from scratch on handwritten digits 0 to 4, and 200 pictures of 5 to 9 to tune it on.

    python -m presets.data.digits.make

The digits are scikit-learn's copy of the test set of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI,
CC BY 4.0): 8 x 8 pixels of 17 shades. The network has never seen a 5, 6, 7, 8 or 9, so tuning it on those is a transfer.
A part of 0 to 4 is held out, and what it gets right of that is printed. Takes about two minutes on two cores; the same seed and the
same versions give the same weights.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from tuner import seeing, variation

HERE = Path(__file__).resolve().parent
KNOWN, OTHERS = range(5), range(5, 10)
HELD_OUT, PICTURES = 40, 40  # of each class
SIDE, EPOCHS, BATCH, RATE, DECAY, SEED = 32, 60, 64, 3e-3, 5e-4, 0
CONFIG = dict(num_channels=3, embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], layer_type="basic")
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}


def digits() -> tuple[list[Image.Image], np.ndarray]:
    """All 1,797 pictures, white on black, and which digit each shows."""
    from sklearn.datasets import load_digits

    known = load_digits()
    return [Image.fromarray((its / 16 * 255).round().astype(np.uint8)).convert("RGB") for its in known.images], known.target


def drawn(target: np.ndarray, classes, each: int, random: np.random.Generator) -> np.ndarray:
    """So many places of each class, at random."""
    return np.concatenate([random.permutation(np.flatnonzero(target == digit))[:each] for digit in classes])


def network(classes):
    """A fresh network that tells these classes apart."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(**CONFIG, id2label={number: str(digit) for number, digit in enumerate(classes)}, label2id={str(digit): number for number, digit in enumerate(classes)})
    return ResNetForImageClassification(config)


def learn(model, pictures: list[Image.Image], target: np.ndarray, sight, epochs: int, seed: int) -> None:
    """Train all of a network, batch-norm included, on pictures varied a little otherwise each time.

    Args:
        target: (B,) class numbers.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * -(-len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    random = np.random.default_rng(seed)
    model.train()
    for epoch in range(epochs):
        order = random.permutation(len(pictures))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            values = np.stack([sight.values(variation.varied(pictures[place], sight, variation.CAREFUL, seed, epoch, int(place))) for place in places])
            loss = F.cross_entropy(model(torch.from_numpy(values)).logits, torch.from_numpy(target[places]), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def guessed(model, pictures: list[Image.Image], sight) -> np.ndarray:
    """(B,) class numbers."""
    return model(torch.from_numpy(np.stack([sight.values(sight.framed(its)) for its in pictures]))).logits.argmax(1).numpy()


def main() -> None:
    (HERE / seeing.FILE).write_text(json.dumps(PREPROCESSOR, indent=1) + "\n", "utf-8")
    (HERE / "config.json").write_text(json.dumps({"num_channels": 3}), "utf-8")
    sight = seeing.load(str(HERE))
    pictures, target = digits()
    random = np.random.default_rng(SEED)
    held = drawn(target, KNOWN, HELD_OUT, random)
    known = np.setdiff1d(np.flatnonzero(np.isin(target, list(KNOWN))), held)
    torch.manual_seed(SEED)
    model = network(KNOWN)
    learn(model, [pictures[place] for place in known], target[known], sight, EPOCHS, SEED)
    right = (guessed(model, [pictures[place] for place in held], sight) == target[held]).mean()
    print(f"{sum(its.numel() for its in model.parameters()):,} weights; right on {len(held)} held-out pictures of 0 to 4: {right:.1%}", file=sys.stderr)
    model.save_pretrained(HERE)
    chosen = drawn(target, OTHERS, PICTURES, np.random.default_rng(SEED + 1))
    with zipfile.ZipFile(HERE / "digits-5-to-9.zip", "w") as archive:
        for number, place in enumerate(chosen):
            out = io.BytesIO()
            pictures[place].convert("L").save(out, "PNG", optimize=True)
            # With a fixed date, so that the same pictures give the same file.
            archive.writestr(zipfile.ZipInfo(f"{target[place]}/{number % PICTURES:02d}.png", (2026, 1, 1, 0, 0, 0)), out.getvalue())


if __name__ == "__main__":
    main()
