r"""What a preconditioner is: a rule for ``Q`` with ``0 <= Q <= eta I`` in (2.11).

Shapes: ``P`` parameters, ``C`` mini-batches, ``()`` scalars. ``Q`` is diagonal, and is returned as its diagonal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, MiniBatches
from fedpisa.tasks.layout import ParamLayout
from fedpisa.typing import Positive, Probability


class Derivatives(NamedTuple):
    """What a client has learnt of its loss ``f_i`` at one point.

    Parameters
    ----------
    loss
        Its value ``()``.
    gradient_P
        Its gradient, without dual and ridge.
    curvature_P
        An estimate of the diagonal of the Hessian of ``F_i``, where the rule makes one.
    layout
        How the vectors are made up of the module's parameters, where the rule needs it.
    """

    loss: Tensor
    gradient_P: Tensor
    curvature_P: Tensor | None = None
    layout: ParamLayout | None = None


@dataclass(frozen=True)
class Preconditioner(ABC):
    """A rule for ``Q`` in (2.11), with memory of its own that lives in the client's state.

    A local step calls `evaluate`, `direction` and the rule itself, in this order. Only the last must be
    written: the others are for rules that look at more than the gradient, or follow something else.

    Parameters
    ----------
    eta
        Upper bound of ``Q``, ``inf`` for none.
    """

    family: ClassVar[str] = "preconditioner"
    exact: ClassVar[bool] = True
    """Whether the direction is zero at ``pi_i = -grad F_i``: PISA is then stationary at the optimum only."""

    eta: Positive = inf

    def init(self, params_P: Tensor) -> Arrays:
        """Return the memory before the first step; by default there is none."""
        return {}

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Return what is looked at in ``v``: by default the loss and its gradient, and no more.

        Parameters
        ----------
        gradient
            Of the loss ``f_i``.
        v_P, batch
            Where, and on which samples.
        mu
            The ridge of ``F_i = f_i + mu/2 ||v||^2``; only ``curvature_P`` counts it, the rest is of ``f_i``.
        """
        return Derivatives(*gradient(v_P, batch))

    def direction(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return what is followed ``(P,)``, by default ``q = pi_i + g``, and the memory."""
        return q_P, memory

    @abstractmethod
    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return the diagonal of ``Q`` (``(P,)`` or ``()``) and the new memory.

        Parameters
        ----------
        q_P
            What is preconditioned: ``pi_i + g``, ``g`` the gradient of ``F_i``, or what `direction` returned; not to be
            written into.
        derivatives
            What `evaluate` returned.
        memory
            What this client's last call, or `init`, returned.
        """


@dataclass(frozen=True)
class CurvatureAverage(Preconditioner, ABC):
    """``Q = clip(h, 0, eta)`` of an exponential average ``h = beta h + (1 - beta) curvature``, from ``h = 0``.

    ``h`` has no bias correction. It is not clipped, so that noise of either sign averages out.

    Parameters
    ----------
    beta
        Decay of ``h``.
    """

    beta: Probability = 0.9

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``h = 0``."""
        return {"curvature": torch.zeros_like(params_P)}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Average the curvature estimates."""
        assert derivatives.curvature_P is not None
        h_P = self.beta * memory["curvature"] + (1 - self.beta) * derivatives.curvature_P
        return h_P.clamp(0.0, self.eta), {"curvature": h_P}
