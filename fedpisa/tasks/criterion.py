"""What a supervised task needs to know beside its module: the loss of an output, and its measures.

Shapes: ``B`` samples of a mini-batch, ``n`` samples in all, ``F`` outputs of a sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from fedpisa.components.names import one_line
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import LOSS, Measure
from fedpisa.tasks.recurrent import Recurrence

_ROUNDING: Final = 1e-6
"""How much a share may be above 1, as a mean of float32."""


class Criterion(ABC):
    """The loss of a module's outputs, and the measures of a model.

    `Supervised` makes a task of it. Your own criterion need not derive from it: a class with the method
    ``loss(outputs, y)`` is enough, see `OwnCriterion`.
    """

    @property
    @abstractmethod
    def measures(self) -> tuple[Measure, ...]:
        """The measures; the first is the headline, and the loss is one of them."""

    @abstractmethod
    def check(self, y: Tensor) -> None:
        """Raise a ValueError if targets ``(B, ...)`` are not what the loss needs."""

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss ``(B,)`` from the outputs ``(B, ...)``."""

    @abstractmethod
    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return which loss of `fedpisa.tasks.losses` this is, for a number of outputs; ``None`` for another loss."""

    @abstractmethod
    def sample_scores(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return scores ``(B,)`` by name; `combine` makes measures of their means over the samples."""

    @abstractmethod
    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return measures by column from the means of the loss and the scores: numbers, or arrays ``(N,)``."""

    @abstractmethod
    def set_scores(self) -> Callable[[Tensor, Tensor], Mapping[str, float]] | None:
        """Return a function from all outputs ``(n, ...)`` and targets to measures that are no means; or ``None``."""

    @property
    def recurrence(self) -> Recurrence | None:
        """How the loss uses a recurrent module's state: by default not at all."""
        return None


@final
@dataclass(frozen=True)
class OwnCriterion(Criterion):
    """A user's criterion: an object with ``loss(outputs, y)`` and, if wanted, ``metrics(outputs, y)``.

    ``loss`` returns each sample's loss ``(B,)``. ``metrics`` returns numbers by name, from the outputs and targets of
    all samples of a set. More is better, except for the names in the object's ``lower_is_better``. The first metric is
    the headline, or the loss if there is none. A metric whose name ends with ``accuracy`` is a share, at most 1.

    Parameters
    ----------
    own
        The user's object.
    name
        Its name in error messages.
    names
        Names of its metrics.

    Examples
    --------
    >>> import torch
    >>> class Hinge:
    ...     lower_is_better = ("wrong",)
    ...     def loss(self, outputs, y):
    ...         return (1 - outputs[:, 0] * (2 * y - 1)).clamp(min=0)
    ...     def metrics(self, outputs, y):
    ...         return {"wrong": ((outputs[:, 0] > 0) != y).double().mean()}
    >>> own = OwnCriterion.of(Hinge(), "task 'mine:Hinge'", torch.zeros(2, 1), torch.tensor([0, 1]))
    >>> [(m.column, m.higher_is_better) for m in own.measures]
    [('wrong', False), ('loss', False)]
    """

    own: Any
    name: str
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, own: Any, name: str, outputs: Tensor, y: Tensor) -> OwnCriterion:
        """Return the criterion of an object, tried on the outputs and targets of some samples.

        Raises
        ------
        ValueError
            If the object has no loss, or a method fails or returns something else.
        """
        if not callable(getattr(own, "loss", None)):
            raise ValueError(
                f"{name} gave an object of type {type(own).__name__}: it needs a method loss(outputs, y), which "
                "returns each sample's loss"
            )
        criterion = cls(own, name)
        criterion.loss(outputs, y)
        names = tuple(criterion._metrics(outputs, y)) if hasattr(own, "metrics") else ()
        lower = getattr(own, "lower_is_better", ())
        unknown = [one for one in (() if isinstance(lower, str) else lower) if one not in names]
        if isinstance(lower, str) or unknown:
            raise ValueError(
                f"{name}: lower_is_better = {lower!r} must be a tuple of its metrics "
                f"({', '.join(names) or 'it has none'})"
            )
        return cls(own, name, names)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The object's metrics, then the loss."""
        lower = getattr(self.own, "lower_is_better", ())
        own = [
            Measure(
                name,
                name.replace("_", " "),
                name not in lower,
                "percent" if _is_share(name) else "number",
            )
            for name in self.names
        ]
        return (*own, LOSS)

    def check(self, y: Tensor) -> None:
        """Accept all targets: `of` tries the loss on them."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the object's losses ``(B,)``.

        Raises
        ------
        ValueError
            If they are anything else.
        """
        try:
            losses_B = self.own.loss(outputs, y.clone())  # which it may write into
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a user's method may fail in any way
            raise ValueError(f"{self.name}: its loss fails ({one_line(error)[:200]}): correct it") from error
        if not isinstance(losses_B, Tensor) or losses_B.shape != (len(y),):
            got = tuple(losses_B.shape) if isinstance(losses_B, Tensor) else type(losses_B).__name__
            raise ValueError(
                f"{self.name}: its loss gives {got} for {len(y)} samples: return each sample's loss, a tensor "
                "(samples,), without taking their mean"
            )
        return losses_B

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return ``None``: nothing is known of the loss."""
        return None

    def sample_scores(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return no scores: a metric may be no mean over samples."""
        return {}

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mean loss."""
        return dict(means)

    def set_scores(self) -> Callable[[Tensor, Tensor], Mapping[str, float]] | None:
        """Return the object's metrics as a function, or ``None`` if it has none."""
        return self._named_metrics if self.names else None

    def _named_metrics(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        found = self._metrics(outputs, y)
        if set(found) != set(self.names):
            raise ValueError(
                f"{self.name}: its metrics are {', '.join(found)}, and they were {', '.join(self.names)}: return the "
                "same names for all samples, with float('nan') for a value that does not exist"
            )
        return {name: found[name] for name in self.names}

    def _metrics(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        try:
            found = self.own.metrics(outputs, y.clone())
            values = {key: math.nan if value is None else float(value) for key, value in found.items()}
        except Exception as error:  # a user's method may fail in any way
            raise ValueError(
                f"{self.name}: its metrics fail on {len(y)} samples ({one_line(error)[:200]}): return a dictionary of "
                "numbers"
            ) from error
        for key in values:
            if not isinstance(key, str) or not key.isidentifier() or key == "loss":
                raise ValueError(
                    f"{self.name}: a metric is called {key!r}: take letters, digits and _, and another name than loss"
                )
            if _is_share(key) and values[key] > 1 + _ROUNDING:
                raise ValueError(
                    f"{self.name}: the metric {key} is {values[key]:g}, and what ends with accuracy is shown in per "
                    "cent: return a share between 0 and 1, or another name"
                )
        return values


def _is_share(metric: str) -> bool:
    """Return whether a user's metric is a share, which is shown in per cent."""
    return metric.endswith("accuracy")


def trial_rows(num_samples: int, size: int = 256) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the positions of some samples, evenly spread over all of them.

    Examples
    --------
    >>> trial_rows(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, num_samples - 1, min(size, num_samples)).round().astype(np.int64))
