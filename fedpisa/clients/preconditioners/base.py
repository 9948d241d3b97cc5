r"""Base classes of preconditioners, the rules for ``Q`` with ``0 <= Q <= eta I`` in (2.11).

Shapes: ``P`` parameters, ``C`` mini-batches, ``()`` scalars. ``Q`` is diagonal and functions return its diagonal,
unless a rule overrides `Preconditioner.solve`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, MiniBatches, scalar_like
from fedpisa.tasks.layout import ParamLayout
from fedpisa.typing import Positive, Probability


class Derivatives(NamedTuple):
    """A client's loss ``f_i`` and its derivatives at one point.

    Parameters
    ----------
    loss
        Value of ``f_i`` ``()``.
    gradient_P
        Gradient of ``f_i`` ``(P,)``, without dual and L2 term.
    curvature_P
        Estimate of the diagonal of the Hessian of ``F_i`` ``(P,)``, if the rule needs it.
    layout
        Names and shapes of the parameters, if the rule needs them.
    """

    loss: Tensor
    gradient_P: Tensor
    curvature_P: Tensor | None = None
    layout: ParamLayout | None = None


@dataclass(frozen=True)
class Preconditioner(ABC):
    """A rule for ``Q`` in (2.11), with a memory that is part of the client's state.

    A local step calls `evaluate`, `direction`, the preconditioner itself and `solve`, in this order. A subclass must
    define ``__call__``. It overrides `evaluate` to use more than the gradient, `direction` to step along another
    vector, and `solve` if ``Q`` is not diagonal.

    Parameters
    ----------
    eta
        Upper bound of ``Q``, ``inf`` for none.
    """

    family: ClassVar[str] = "preconditioner"
    exact: ClassVar[bool] = True
    """Whether the direction is zero at ``pi_i = -grad F_i``; PISA is then stationary only at the optimum."""
    by_parameter: ClassVar[bool] = False
    """Whether the rule needs the names and shapes of the parameters, as ``derivatives.layout``."""

    eta: Positive = inf

    def init(self, params_P: Tensor) -> Arrays:
        """Return the memory before the first step, by default empty."""
        return {}

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Return the derivatives at ``v``: by default the loss and its gradient.

        Parameters
        ----------
        gradient
            Gradient of the loss ``f_i``.
        v_P, batch
            The point and the samples.
        mu
            L2 coefficient of ``F_i = f_i + mu/2 ||v||^2``. Only ``curvature_P`` includes this term.
        """
        layout = gradient.layout if self.by_parameter else None
        return Derivatives(*gradient(v_P, batch), layout=layout)

    def direction(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return the step direction ``(P,)``, by default ``q = pi_i + g``, and the new memory."""
        return q_P, memory

    @abstractmethod
    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return the diagonal of ``Q``, or what `solve` needs of it, (``(P,)`` or ``()``) and the new memory.

        Parameters
        ----------
        q_P
            The step direction, as `direction` returned it; by default ``pi_i + g`` with ``g`` the gradient of ``F_i``.
            Must not be modified.
        derivatives
            The result of `evaluate`.
        memory
            The client's memory from its previous step, or from `init`.
        """

    def solve(
        self, uphill_P: Tensor, scale_P: Tensor, derivatives: Derivatives, sigma: float, rho: float
    ) -> Tensor:
        """Return the step ``-(sigma I + rho Q)^{-1} uphill`` ``(P,)``, by default for the diagonal ``scale`` of ``Q``.

        Parameters
        ----------
        uphill_P
            Direction of the step. In the first local step it is ``q``, afterwards ``q + sigma (v - w)``.
        scale_P
            The result of the call.
        derivatives
            The result of `evaluate`.
        sigma, rho
            The round's penalty, and the scale of ``Q``.
        """
        return uphill_P / torch.sub(scalar_like(uphill_P, -sigma), scale_P, alpha=rho)


def parameters(derivatives: Derivatives, *vectors_P: Tensor) -> Iterator[tuple[Any, ...]]:
    """Yield the rows and columns of each parameter, and its parts of the vectors.

    A kernel is a matrix with one row for each output channel. Vectors and scalars have None.
    """
    assert derivatives.layout is not None
    parts = (torch.split(vector_P, derivatives.layout.sizes) for vector_P in vectors_P)
    for shape, *own in zip(derivatives.layout.real_shapes, *parts, strict=True):
        yield ((shape[0], prod(shape[1:])) if len(shape) > 1 else None), *own


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
