"""Multi-label classification: several labels for each sample, each of them or not.

Shapes: ``B`` samples of a mini-batch, ``n`` samples in all, ``L`` labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.nn import functional as F

from fedpisa.tasks.criterion import Criterion
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import ACCURACY, LOSS, Measure
from fedpisa.tasks.scores import MEASURES, LabelMetric, of_labels, require_distinct


def multi_label(*, metrics: tuple[LabelMetric, ...] = ()) -> Criterion:
    """Binary cross-entropy, the mean over a sample's labels ``(L,)``, each 0 or 1.

    Accuracy is the share of labels that are predicted correctly.

    Parameters
    ----------
    metrics
        Further measures: ``f1-macro``, ``f1-micro``, ``exact-match``, ``auroc``.

    Raises
    ------
    ValueError
        If a metric is named twice.
    """
    require_distinct(metrics)
    return MultiLabel(metrics)


@final
@dataclass(frozen=True)
class MultiLabel(Criterion):
    """Binary cross-entropy of several labels; see `multi_label`.

    Examples
    --------
    >>> import torch
    >>> outputs, y = torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 1.0]])
    >>> MultiLabel().loss(outputs, y), MultiLabel().sample_scores(outputs, y)["accuracy"]
    (tensor([1.1269]), tensor([0.5000]))
    """

    metrics: tuple[LabelMetric, ...] = ()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Accuracy, loss and the further metrics."""
        return (ACCURACY, LOSS, *(MEASURES[name] for name in self.metrics))

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return ``None``: the closed forms have one target for each sample."""
        return None

    def check(self, y: Tensor) -> None:
        """Refuse targets that are not several labels for each sample, each 0 or 1."""
        if y.dim() != 2 or not bool(((y == 0) | (y == 1)).all()):
            what = f"targets of shape {tuple(y.shape[1:])}" if y.dim() != 2 else "other values"
            raise ValueError(
                "task = 'multi-label' needs targets (samples, labels), each 0 or 1, and the data have "
                f"{what}: change the targets, or take another task"
            )

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss ``(B,)`` from the labels' logits ``(B, L)``."""
        return F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), reduction="none").mean(-1)

    def sample_scores(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the share of each sample's labels that are predicted correctly ``(B,)``."""
        return {"accuracy": ((outputs > 0) == (y > 0.5)).to(outputs.dtype).mean(-1)}

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means, which are measures."""
        return dict(means)

    def set_scores(self) -> Callable[[Tensor, Tensor], Mapping[str, float]] | None:
        """Return the further metrics as a function, or ``None`` if there are none."""
        return self._scores if self.metrics else None

    def _scores(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        probs_nL, y_nL = outputs.double().sigmoid().numpy(), y.numpy()
        return {MEASURES[name].column: of_labels(name, probs_nL, y_nL) for name in self.metrics}
