"""Rows into micro-batches: of like length, in an order that stays random, laid end to end without padding."""

import math

import torch

from tuner import plan as plans
from tuner.encode import IGNORE


def collate(rows: list) -> dict:
    """Encoded rows laid end to end.

    Returns:
        input_ids: (N,) token ids.
        labels: (N,) not shifted; the first token of each row is IGNORE, since nothing of its row comes before it.
        lengths: tokens in each row.
    """
    ids, labels = [], []
    for row in rows:
        ids += row.ids
        labels += [IGNORE, *row.labels[1:]]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "lengths": [len(row.ids) for row in rows]}


def pad(batch: dict, pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of `collate` side by side, padded on the right to the longest, for a model's own forward.

    Returns:
        input_ids, attention_mask, labels: (B, T).
    """
    lengths = torch.tensor(batch["lengths"], device=batch["input_ids"].device)
    real = torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(1)
    ids = batch["input_ids"].new_full(real.shape, pad_id)
    labels = batch["labels"].new_full(real.shape, IGNORE)
    ids[real], labels[real] = batch["input_ids"], batch["labels"]
    return ids, real.long(), labels


def learned(batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where something is learned: the places whose next token is a label, those labels, and each one's row; (n,) each."""
    places = (batch["labels"] != IGNORE).nonzero()[:, 0]
    lengths = torch.tensor(batch["lengths"], device=places.device)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=places.device), lengths)[places]
    return places - 1, batch["labels"][places], rows


def micro_batches(batch: dict, most_tokens: int, most_rows: int = 0) -> list[dict]:
    """The rows of `collate` in their order, in as few and as equal parts as the limits allow.

    Args:
        most_tokens: a row longer than that is a part of its own.
        most_rows: 0 for any number.
    """
    found, start = [], 0
    for its in plans.parts(batch["lengths"], most_tokens, most_rows):
        end = start + sum(its)
        found.append({"input_ids": batch["input_ids"][start:end], "labels": batch["labels"][start:end], "lengths": its})
        start = end
    return found


class LengthBatches(torch.utils.data.Sampler):
    """`plan.optimiser_batches` as a sampler: the same for the same seed and epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """This epoch's optimiser batches, as row indices, each sorted by length."""
        return plans.optimiser_batches(self.lengths, self.batch_size, self.seed, self.epoch)

    def __iter__(self):
        return iter(self.batches())

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)
