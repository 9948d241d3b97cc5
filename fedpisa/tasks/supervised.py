"""A supervised task: a module's outputs are compared with targets.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``B`` samples of a mini-batch, ``n`` samples in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, final

import torch
from torch import Tensor, nn

from fedpisa.datasets.client_data import ClientData
from fedpisa.datasets.inputs import require_one
from fedpisa.rng import seeded
from fedpisa.tasks.base import Pass, Samples, Task
from fedpisa.tasks.classification import Classification
from fedpisa.tasks.criterion import Criterion
from fedpisa.tasks.features import FeatureLoss, with_features
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.module_values import own_attributes
from fedpisa.tasks.recurrent import state_size, texts_side_by_side
from fedpisa.tasks.regression import Regression

_NO_FEATURES: Final = (
    "the algorithm compares features, which carry-state and the penalties on a recurrent state change: "
    'set carry-state = "none" and both penalties to 0, or take another algorithm'
)


@final
@dataclass(frozen=True)
class Supervised(Task):
    """The loss and measures of a `Criterion` on a module's outputs.

    Parameters
    ----------
    criterion
        The loss and the measures.
    module, autocast, max_grad_norm, micro_batch_size, augment, inputs
        See `Task`.

    Examples
    --------
    >>> task = supervised(nn.Linear(3, 2), num_classes=2)
    >>> task.layout.size, task.buffer_layout.size, task.closed_form(2)
    (8, 0, 'cross-entropy')
    """

    criterion: Criterion

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion.recurrence is not None:
            require_one(self.inputs, "a recurrent state that is carried or penalised", "remove these keys")
            self.criterion.recurrence.check(self.module)

    @property
    def carry_state(self) -> Literal["none", "round", "epoch"]:
        """How far a recurrent module's state is carried; see `fedpisa.tasks.recurrent.Recurrence`."""
        return "none" if self.criterion.recurrence is None else self.criterion.recurrence.carry_state

    def initial_memory(self, num_rows: int) -> dict[str, Tensor]:
        """Return a state of zero ``(num_rows, Z)`` under the name ``hidden`` if one is carried."""
        if self.carry_state == "none":
            return {}
        return {"hidden": self._no_state(num_rows)}

    def _no_state(self, num_rows: int) -> Tensor:
        one = next(self.module.parameters())
        return one.new_zeros(num_rows, state_size(self.module))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The criterion's measures."""
        return self.criterion.measures

    def with_module(self, module: nn.Module, *, autocast: bool = False) -> Supervised:
        """Return the same task with another module."""
        return replace(self, module=module, autocast=autocast)

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return the criterion's closed form."""
        return self.criterion.closed_form(num_outputs)

    def losses(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        samples: Samples,
        extra: FeatureLoss | None = None,
        memory: Mapping[str, Tensor] = MappingProxyType({}),
        player: str | None = None,
    ) -> Pass:
        """Return the samples' losses in training mode, and buffers and memory after the pass; see `Task.losses`."""
        x, y, mask_B, key = samples
        recurrence, penalties_B = self.criterion.recurrence, None
        if recurrence is not None and extra is not None:
            raise ValueError(_NO_FEATURES)
        if recurrence is not None:
            state_BZ = memory["hidden"] if memory else self._no_state(len(x))
            # PyTorch adds into the state, which must be stacked if the input of stacked clients is.
            state_BZ = state_BZ + torch.zeros_like(x.flatten(1)[:, :1], dtype=state_BZ.dtype)
            steps, buffers = self.steps(params, buffers_Q, samples, state_BZ)
            outputs, penalties_B = steps.outputs, recurrence.penalties(steps)
            memory = {"hidden": steps.state_BZ.detach()} if memory else memory
        elif extra is None:
            outputs, buffers = self.outputs(params, buffers_Q, x, mask_B, key)
        else:
            held = params is None
            anchors = [self.features(anchor_P, buffers_Q, x, mask_B, held=held) for anchor_P in extra.anchors]
            (outputs, buffers), features_BF = with_features(
                self.module, lambda: self.outputs(params, buffers_Q, x, mask_B, key)
            )
        losses_B = self.criterion.loss(outputs, y)
        if penalties_B is not None:
            losses_B = losses_B + penalties_B
        if extra is not None:
            extra_B = extra.loss(features_BF.to(self.dtype), *anchors)
            losses_B = losses_B + (extra_B - extra_B.detach())
        if self.buffer_layout.names:
            buffers_Q = self.buffer_layout.flatten(buffers, buffers_Q.dtype)
        return Pass(losses_B, buffers_Q, memory)

    def features(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None, *, held: bool = False
    ) -> Tensor:
        """Return the samples' features; refuse them if a state is carried or penalised. See `Task.features`."""
        if self.criterion.recurrence is not None:
            raise ValueError(_NO_FEATURES)
        return super().features(params_P, buffers_Q, x, mask_B, held=held)

    def sample_scores(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the samples' losses and the criterion's scores, all ``(B,)``; see `Task.sample_scores`."""
        return self._scores_of(self.eval_outputs(x), y)

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the criterion's measures of means."""
        return self.criterion.combine(means)

    def _scores_of(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": self.criterion.loss(outputs, y), **self.criterion.sample_scores(outputs, y)}

    def evaluate(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor, batch_size: int = 4096
    ) -> dict[str, float]:
        """Return the measures on ``n`` samples by column, ``loss`` first; see `Task.evaluate`.

        All are NaN but the loss if the loss is not finite.
        """
        batch_size -= len(x) % batch_size == 1  # a single sample has no batch statistics
        batches = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        return self._measured(params_P, buffers_Q, batches, len(x))

    def evaluate_set(
        self, params_P: Tensor, buffers_Q: Tensor, data: ClientData, batch_size: int = 4096
    ) -> dict[str, float]:
        """Return the measures on all samples of a set; see `Task.evaluate_set`."""
        if self.carry_state == "none":
            batch_size = data.bounded(batch_size)
            batch_size -= data.num_samples % batch_size == 1
            return self._measured(params_P, buffers_Q, data.batches(batch_size), data.num_samples)
        scores = self.scores(params_P, buffers_Q, data, batch_size)
        return self._of_means({name: float(score_n.double().mean()) for name, score_n in scores.items()})

    @torch.no_grad()
    def scores(
        self, params_P: Tensor, buffers_Q: Tensor, data: ClientData, batch_size: int = 8192
    ) -> dict[str, Tensor]:
        """Return the scores of all samples of a set; see `Task.scores`."""
        if self.carry_state == "none":
            return super().scores(params_P, buffers_Q, data, batch_size)
        (x, y), state_BZ, rows, parts = data.all(), self._no_state(0), list[Tensor](), []
        with seeded(0, "evaluation"), own_attributes(self.module):
            for rows_B, begins in texts_side_by_side(data, batch_size):
                state_BZ = self._no_state(len(rows_B)) if begins else state_BZ[: len(rows_B)]
                with self.holding(params_P, buffers_Q):
                    steps = self.eval_steps(x[rows_B], state_BZ)
                    parts.append(self._scores_of(steps.outputs, y[rows_B]))
                state_BZ = steps.state_BZ
                rows.append(rows_B)
        order_n = torch.cat(rows).argsort()
        return {name: torch.cat([part[name] for part in parts])[order_n] for name in parts[0]}

    @torch.no_grad()
    def _measured(
        self, params_P: Tensor, buffers_Q: Tensor, batches: Iterable[tuple[Tensor, Tensor]], count: int
    ) -> dict[str, float]:
        of_set, all_outputs, all_y = self.criterion.set_scores(), list[Tensor](), list[Tensor]()
        totals: dict[str, Tensor] = {}
        with seeded(0, "evaluation"), own_attributes(self.module):
            for x_B, y_B in batches:
                with self.holding(params_P, buffers_Q):
                    outputs = self.eval_outputs(x_B)
                    scores = self._scores_of(outputs, y_B)
                for name, score_B in scores.items():
                    total = score_B.sum(dtype=torch.float64)
                    totals[name] = totals[name] + total if name in totals else total
                if of_set:
                    all_outputs.append(outputs.cpu())
                    all_y.append(y_B.cpu())
        measures = self._of_means({name: float(total) / count for name, total in totals.items()})
        if of_set and math.isfinite(measures["loss"]):
            measures |= of_set(torch.cat(all_outputs), torch.cat(all_y))
        return measures

    def _of_means(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the measures of the scores' means; all are NaN but the loss if the loss is not finite."""
        measures = dict(self.combine(means))
        further = [measure.column for measure in self.measures if measure.column not in measures]
        if not math.isfinite(measures["loss"]):  # outputs that are not finite have no measure
            return {"loss": measures["loss"], **dict.fromkeys([*list(measures)[1:], *further], math.nan)}
        return measures


def supervised(module: nn.Module, num_classes: int | None, *, autocast: bool = False) -> Supervised:
    """Return the plain task of a number of classes; ``None`` for a regression.

    Examples
    --------
    >>> supervised(nn.Linear(2, 1), None).closed_form(1)
    'half-squared-error'
    """
    criterion = Regression() if num_classes is None else Classification(num_classes)
    return Supervised(module, criterion, autocast=autocast)
