"""Regression: a number for each sample.

Shapes: ``B`` samples of a mini-batch, ``n`` samples in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from fedpisa.tasks.criterion import Criterion
from fedpisa.tasks.losses import Loss, sample_losses
from fedpisa.tasks.measures import LOSS, Measure
from fedpisa.tasks.scores import MEASURES, NumberMetric, of_numbers, require_distinct


def regression(*, metrics: tuple[NumberMetric, ...] = ()) -> Criterion:
    """Half the squared error: ``(o - y)^2 / 2``.

    Parameters
    ----------
    metrics
        Further measures: ``mae``, ``rmse``, ``r2``.

    Raises
    ------
    ValueError
        If a metric is named twice.
    """
    require_distinct(metrics)
    return Regression(metrics)


@final
@dataclass(frozen=True)
class Regression(Criterion):
    """Half the squared error; see `regression`.

    Examples
    --------
    >>> import torch
    >>> Regression().loss(torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor([2.])
    """

    metrics: tuple[NumberMetric, ...] = ()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Loss and the further metrics."""
        return (LOSS, *(MEASURES[name] for name in self.metrics))

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return half the squared error."""
        return "half-squared-error"

    def check(self, y: Tensor) -> None:
        """Refuse targets that are not one number for each sample."""
        if not y.is_floating_point() or y.dim() != 1:
            what = f"targets of shape {tuple(y.shape[1:])}" if y.dim() != 1 else "class labels"
            raise ValueError(
                f"task = 'regression' needs one number for each sample, and the data have {what}: take "
                f"{'classification' if y.dim() == 1 else 'multi-label'}"
            )

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss ``(B,)`` from the outputs ``(B, 1)``."""
        return sample_losses("half-squared-error", outputs, y)

    def sample_scores(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return no scores beside the loss."""
        return {}

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means, which are measures."""
        return dict(means)

    def set_scores(self) -> Callable[[Tensor, Tensor], Mapping[str, float]] | None:
        """Return the further metrics as a function, or ``None`` if there are none."""
        return self._scores if self.metrics else None

    def _scores(self, outputs: Tensor, y_n: Tensor) -> dict[str, float]:
        outputs_n, y = outputs.reshape(y_n.shape).double().numpy(), y_n.double().numpy()
        return {MEASURES[name].column: of_numbers(name, outputs_n, y) for name in self.metrics}
