"""The classifier: a base with a fresh head, its loss on rows padded side by side, and what is trained in full."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tuner import plan as plans
from tuner import sizes
from tuner.fast import plain_model, speed_up_lora
from tuner.tasks.labels import names_in

# Rows are padded to a multiple of so many tokens.
LENGTH_STEP = 8


def name_labels(config, labels: dict) -> None:
    """Write a run's classes into a model's config."""
    names = labels["names"]
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.problem_type = "multi_label_classification" if labels["several"] else "single_label_classification"


# The head ---------------------------------------------------------------------------------------------------------


def heads(skeleton: nn.Module, base_dir) -> list[str]:
    """The modules that are trained in full: all that the classifier has besides its base, and a pooler that the base's files lack."""
    found = [
        name for name, child in skeleton.named_children()
        if name != skeleton.base_model_prefix and any(True for _ in child.parameters())
    ]
    stored = set(sizes.headers_in(base_dir))
    inner = getattr(skeleton, skeleton.base_model_prefix, None)
    pooler = getattr(inner, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()) and not any("pooler." in name for name in stored):
        found.append(f"{skeleton.base_model_prefix}.pooler")
    return found


def begin_heads(model: nn.Module, base_dir, names: list[str], seed: int, anew: bool = False) -> None:
    """Give each head weight that the base's files do not hold its beginning, the same for the same seed wherever it was loaded from.

    Args:
        anew: begin all of them, also those that the files hold: they are of other classes.
    """
    stored = {name: shape for name, (_, shape) in sizes.headers_in(base_dir).items()}
    random = torch.Generator().manual_seed(seed)
    spread = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    for name, weight in model.named_parameters():
        if not name.startswith(tuple(names)):
            continue
        known = next((shape for its, shape in stored.items() if its == name or its.endswith(f".{name}") or name.endswith(f".{its}")), None)
        if known == tuple(weight.shape) and not anew:
            continue
        with torch.no_grad():
            if weight.ndim >= 2:
                weight.copy_(torch.randn(weight.shape, generator=random) * spread)
            else:
                weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)


# The loss ---------------------------------------------------------------------------------------------------------


def weights(recipe, model: nn.Module, train_rows: list[dict]) -> torch.Tensor | None:
    """(C,) what each class weighs in training, 1 on average over the rows; None where all weigh alike.

    One label a row: the weight of its class. Several: what a row's having the class weighs, against not having it.
    """
    if recipe.class_weights != "balanced" or not train_rows:
        return None
    ids, several = model.config.label2id, model.config.problem_type.startswith("multi")
    counts = np.bincount([ids[name] for row in train_rows for name in names_in(row)], minlength=len(ids)).clip(1)
    found = (len(train_rows) - counts).clip(1) / counts if several else len(train_rows) / (np.count_nonzero(counts) * counts)
    return torch.tensor(found, dtype=torch.float32)


class Path:
    """How a classifier's losses are computed; what is laid into a batch is its heirs' to say.

    Args:
        model: a PeftModel whose config names the classes.
        weights: what each class weighs in training; measuring weighs all rows alike.
    """

    decoder, why_plain, lost = None, "", ()
    plan: dict = {"prepacked": False}  # what a quote asks of any path
    checkpointing = False

    def __init__(self, model: nn.Module, weights: torch.Tensor | None = None):
        self.model, self.weights = model, weights
        config = plain_model(model).config
        self.ids, self.several = dict(config.label2id), config.problem_type.startswith("multi")
        self.names = [name for name, _ in sorted(self.ids.items(), key=lambda its: its[1])]
        speed_up_lora(model)

    def varied(self, rows: list, indices: list[int], epoch: int) -> list:
        """Training rows as they are met in an epoch: as they are."""
        return rows

    def labelled(self, rows: list) -> dict:
        """What of a batch says what is right: "labels", one a row, which the Trainer counts, and "targets"."""
        targets = self.targets(rows)
        return {"labels": torch.zeros(len(rows), dtype=torch.long) if self.several else targets, "targets": targets}

    def targets(self, rows: list) -> torch.Tensor:
        """(B,) class numbers; (B, C) zeros and ones where a row may have several."""
        if not self.several:
            return torch.tensor([self.ids[row.label] for row in rows])
        found = torch.zeros(len(rows), len(self.ids))
        for place, row in enumerate(rows):
            found[place, [self.ids[name] for name in row.labels if name in self.ids] if row.labels is not None else [self.ids[row.label]]] = 1
        return found

    def losses(self, part: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy in nats, with gradients; balanced only while it is learned from.

        Returns:
            losses: (B,) fp32; rows: (B,) the row that each belongs to.
        """
        logits, targets = self.logits(part), part["targets"]
        weights = self.weights.to(logits.device) if self.weights is not None and torch.is_grad_enabled() else None
        if self.several:
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weights).mean(1)
        else:
            losses = F.cross_entropy(logits, targets, reduction="none", weight=weights)
        return losses, torch.arange(len(losses), device=losses.device)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, C): they add up to 1, or each stands for itself where a row may have several labels."""
        return logits.sigmoid() if self.several else logits.softmax(-1)

    @torch.no_grad()
    def judge(self, rows: list, tokens_at_once: int = 2048) -> np.ndarray:
        """(B, C) float64 probabilities of encoded rows, in the order given; in evaluation mode."""
        return np.concatenate(self.over(rows, lambda part: self.probabilities(self.logits(part).double()), tokens_at_once))

    @torch.no_grad()
    def over(self, rows: list, act, tokens_at_once: int = 2048) -> list[np.ndarray]:
        """What `act` gives for rows of like length together, put back into the order given: one array a row, (1, ...)."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        found: list = [None] * len(rows)
        device, start = next(self.model.parameters()).device, 0
        for lengths in plans.cut([len(rows[index].ids) for index in order], tokens_at_once):
            chosen = order[start : start + len(lengths)]
            start += len(lengths)
            part = {name: its.to(device) if torch.is_tensor(its) else its for name, its in self.collate([rows[index] for index in chosen]).items()}
            for index, its in zip(chosen, act(part).cpu().numpy()):
                found[index] = its[None]
        return found


class TextPath(Path):
    """Texts, laid end to end in a batch and padded on the right for the model's own forward."""

    def __init__(self, model: nn.Module, pad_id: int, weights: torch.Tensor | None = None):
        super().__init__(model, weights)
        self.pad_id = pad_id
        # See `distillation`: who teaches, what the head read in the newest pass, and whether a pooler made it.
        self.teacher, self.read, self.is_pooled = None, None, False
        self.tells_two_apart = (getattr(plain_model(model).config, "type_vocab_size", 0) or 0) > 1

    def varied(self, rows: list, indices: list[int], epoch: int) -> list:
        """Training rows as they are, each with its goal where there is a teacher."""
        return rows if self.teacher is None else [replace(row, goal=self.teacher.goals[index]) for row, index in zip(rows, indices)]

    def collate(self, rows: list) -> dict:
        """input_ids, types: (N,) of all rows end to end; labels, targets: see `labelled`; goals: (B, D) where rows have one; lengths: tokens in each row."""
        ids, types = [], []
        for row in rows:
            ids += row.ids
            types += [0] * row.second + [1] * (len(row.ids) - row.second)
        goals = {"goals": torch.stack([row.goal for row in rows])} if all(row.goal is not None for row in rows) else {}
        return {"input_ids": torch.tensor(ids), "types": torch.tensor(types), **self.labelled(rows), **goals, "lengths": [len(row.ids) for row in rows]}

    def parts(self, batch: dict, most_tokens: int, most_rows: int = 0) -> list[dict]:
        """The rows in their order, in as few and as equal parts as the limits allow; see `batching.micro_batches`."""
        found, start, row = [], 0, 0
        for its in plans.parts(batch["lengths"], most_tokens, most_rows):
            end = start + sum(its)
            part = {name: batch[name][start:end] for name in ("input_ids", "types")}
            part |= {name: batch[name][row : row + len(its)] for name in ("labels", "targets", "goals") if name in batch}
            found.append({**part, "lengths": its})
            start, row = end, row + len(its)
        return found

    def losses(self, part: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Path.losses`; where a teacher is, the gradients are those of the cross-entropy and of the distance to the goals."""
        losses, rows = super().losses(part)
        if self.teacher is not None and "goals" in part and torch.is_grad_enabled():
            pull = self.teacher.weight * self.teacher.distance(self.read, part["goals"], self.is_pooled)
            # Told is the cross-entropy alone: the curve beside it is the held-out rows', which have no goals.
            losses = losses + (pull - pull.detach())
        self.read = None
        return losses, rows

    def padded(self, part: dict) -> dict:
        """The rows side by side, as the model's forward takes them: (B, T) each."""
        lengths = torch.tensor(part["lengths"], device=part["input_ids"].device)
        # In steps: each new shape costs a CPU's library time and memory of its own.
        longest = -(-int(lengths.max()) // LENGTH_STEP) * LENGTH_STEP
        real = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
        ids = part["input_ids"].new_full(real.shape, self.pad_id)
        ids[real] = part["input_ids"]
        found = {"input_ids": ids, "attention_mask": real.long()}
        if self.tells_two_apart:
            found["token_type_ids"] = torch.zeros_like(ids)
            found["token_type_ids"][real] = part["types"]
        return found

    def logits(self, part: dict) -> torch.Tensor:
        """(B, C) fp32."""
        with torch.autocast(part["input_ids"].device.type, enabled=False):
            return self.model(**self.padded(part)).logits.float()

    @torch.no_grad()
    def features(self, rows: list) -> np.ndarray:
        """(B, D) float32: the mean over each row's tokens of what the base's last layer gives; the adapter has to be off."""
        base = getattr(plain_model(self.model), plain_model(self.model).base_model_prefix)

        def mean(part: dict) -> torch.Tensor:
            padded = self.padded(part)
            mask = padded["attention_mask"].unsqueeze(-1)
            hidden = base(**padded).last_hidden_state.float()
            return (hidden * mask).sum(1) / mask.sum(1)

        return np.concatenate(self.over(rows, mean)) if rows else np.zeros((0, 0), np.float32)

