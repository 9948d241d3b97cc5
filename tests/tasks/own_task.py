"""A user's own tasks, as a configuration names them."""

from typing import Any

import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional as F


class SquaredHinge:
    """The squared multi-class hinge loss, with macro F1 and the share of wrong answers."""

    lower_is_better = ("wrong",)

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = margin

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        right = outputs.gather(1, y[:, None])
        violation = (self.margin + outputs - right).clamp(min=0) ** 2
        return violation.sum(1) - self.margin**2

    def metrics(self, outputs: Tensor, y: Tensor) -> dict[str, Any]:
        found = outputs.argmax(1)
        return {"f1": f1_score(y, found, average="macro"), "wrong": (found != y).double().mean()}


class CrossEntropy:
    """The loss of a classification, written by a user."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="none")


class MeanLoss:
    """A mistake: the mean instead of each sample's loss."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y)


class Changing(CrossEntropy):
    """A mistake: metrics whose names depend on the samples."""

    def metrics(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        return {f"recall_{label}": 1.0 for label in torch.unique(y).tolist()}


class NoNumber(CrossEntropy):
    """A mistake: a metric that is no number."""

    def metrics(self, outputs: Tensor, y: Tensor) -> dict[str, Any]:
        return {"f1": outputs}


class Backwards(CrossEntropy):
    """A mistake: a direction for a metric that there is not."""

    lower_is_better = ("perplexity",)


class PerCent(CrossEntropy):
    """A mistake: an accuracy in per cent, which is shown as a share would be."""

    def metrics(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        return {"top_accuracy": 100.0}


class Perfect(CrossEntropy):
    """An accuracy of 1, but for the rounding of float32, beside a number that is no share."""

    def metrics(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        return {"top_accuracy": 1 + 2**-23, "accuracy_in_per_cent": 100.0}


class Nothing:
    """A mistake: no loss."""


class Next(SquaredHinge):
    """The same for the next class."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss."""
        return super().loss(outputs, (y + 1) % 10)


class Writing(SquaredHinge):
    """The same as `Next`, but it writes into its targets."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss."""
        return super().loss(outputs, y.add_(1).remainder_(10))
