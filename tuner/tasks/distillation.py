"""Feature distillation: what a classifier's head reads learns to carry the mean of the base's own features, and the head begins as the baseline.

A BERT's head reads one vector, made of its first token. In a sentence encoder that vector was never trained: what the base knows
of a text lies in the mean over its tokens. So each training row's vector is pulled towards that row's mean, as it was before
tuning (hints from a teacher's inner layer: FitNets, Romero et al. 2015; here the teacher is the untouched base), and a head of one
linear layer begins as the logistic regression on those means (linear probing, then fine-tuning: Kumar et al. 2022).
"""

import numpy as np
import torch
from torch import nn

from tuner import cost
from tuner.fast import plain_model
from tuner.home import write_whole

FILE = "teacher.safetensors"
# A pooler ends in a tanh: the standardised features are halved, so that nearly all of them lie where it can follow.
HALF = 0.5
# The C of the logistic regression that the head begins as: a calm one, since it goes on learning.
STRENGTH = 0.003
# Training rows that may have a goal each: it is for few rows, and each takes as many numbers as the features have.
MOST_ROWS = 50_000


def read_by_head(model: nn.Module, output) -> torch.Tensor | None:
    """(B, D) what the head reads of the base's output; None where that is not made of the first token.

    Args:
        output: what the base gave: with `last_hidden_state` and perhaps `pooler_output`.
    """
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output
    # A decoder's head reads the last token, and ModernBERT's may read the mean already.
    if isinstance(getattr(model, "score", None), nn.Module) or getattr(model.config, "classifier_pooling", "cls") != "cls":
        return None
    return output.last_hidden_state[:, 0]


def watch(path, model: nn.Module) -> None:
    """Let each pass through the base leave at the path what its head reads (`read`), and whether a pooler made it."""
    def note(_module, _given, output):
        path.read, path.is_pooled = read_by_head(model, output), getattr(output, "pooler_output", None) is not None

    getattr(model, model.base_model_prefix).register_forward_hook(note)


class Teacher:
    """The base's own features of the training rows.

    Args:
        features: (N, D) float32: the mean over each row's tokens of what the untouched base's last layer gives.
        weight: how strongly what the head reads is pulled there, beside the cross-entropy.
    """

    def __init__(self, features: np.ndarray, weight: float):
        self.weight = weight
        self.mean = torch.tensor(features.mean(0))
        # What never varies teaches nothing and must not be blown up.
        self.spread = torch.tensor(features.std(0)).clamp(min=1e-4)
        self.goals = (torch.tensor(features) - self.mean) / self.spread

    def distance(self, read: torch.Tensor, goals: torch.Tensor, is_pooled: bool) -> torch.Tensor:
        """(B,) fp32: the mean squared distance between what the head reads of each row and its goal, in standard deviations."""
        read = read.float()
        its = read / HALF if is_pooled else (read - self.mean.to(read.device)) / self.spread.to(read.device)
        return (its - goals).square().mean(1)


def begin(path, rows: list, truth: np.ndarray, recipe, kept) -> str:
    """Give the path its teacher and the head its beginning; what is to be said of it, "" where nothing is.

    Args:
        path: a `label_model.TextPath` whose adapter changes nothing yet.
        rows: the encoded training rows; truth: (N, C) booleans.
        kept: where the features are kept, so that a resumed run has the very same.
    """
    from safetensors.numpy import load_file, save

    if not recipe.feature_distillation:
        return ""
    if len(rows) > MOST_ROWS:
        return f"Feature distillation is left out: it is for few rows, at most {MOST_ROWS:,}, and here are {len(rows):,}."
    model = plain_model(path.model)
    path.model.eval()
    watch(path, model)
    with path.model.disable_adapter():
        path.over(rows[:1], path.logits)
    seen, path.read = path.read, None
    if seen is None:
        return "Feature distillation has no effect on this model: its head does not read the first token."
    if kept.is_file():
        features = load_file(kept)["features"]
    else:
        with path.model.disable_adapter():
            features = path.features(rows)
        write_whole(kept, save({"features": features}))  # a run may be killed at any moment
    if features.shape[1] != seen.shape[1]:
        return "Feature distillation has no effect on this model: its head reads a vector of another width than its features."
    path.teacher = Teacher(features, recipe.feature_distillation)
    _begin_head(path, model, truth, recipe)
    return ""


def _begin_head(path, model: nn.Module, truth: np.ndarray, recipe) -> None:
    """Write the logistic regression on the goals into a head of one linear layer; other heads begin as they do."""
    from tuner.tasks.label_report import fitted

    own = [child for name, child in model.named_children() if name != model.base_model_prefix and any(True for _ in child.parameters())]
    head = own[0] if len(own) == 1 else None
    if hasattr(head, "modules_to_save"):  # PEFT's wrapper: the copy that learns
        head = head.modules_to_save["default"]
    teacher = path.teacher
    if not isinstance(head, nn.Linear):
        return
    some = np.sort(np.random.default_rng(recipe.seed).choice(len(truth), min(len(truth), cost.LINE_ROWS), replace=False))
    weight, bias = fitted(teacher.goals[some].double().numpy(), truth[some], path.several, STRENGTH, recipe)
    weight, bias = torch.tensor(weight), torch.tensor(bias)
    if path.is_pooled:
        weight = weight / HALF
    else:
        weight = weight / teacher.spread.double().unsqueeze(1)
        bias = bias - teacher.mean.double() @ weight
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(bias)
