r"""SISA's three schemes: ``Q`` is the square root of a second moment of ``q = pi_i + g``.

Shapes: ``P`` parameters, ``()`` scalars.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, scalar_like
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner
from fedpisa.typing import Decay, NonNegative


@final
@dataclass(frozen=True)
class Adagrad(Preconditioner):
    """SISA's Scheme I: ``n = n + q q``, ``Q = sqrt(min(n, eta^2)) + eps``.

    Parameters
    ----------
    eps
        Added to the square root.

    Examples
    --------
    >>> adagrad = Adagrad(eps=0.0)
    >>> q = torch.tensor([3.0])
    >>> adagrad(q, None, adagrad.init(q))[0]
    tensor([3.])
    """

    eps: NonNegative = 1e-8

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``n = 0``."""
        return {"second-moment": torch.zeros_like(params_P)}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Accumulate the second moment."""
        n_P = memory["second-moment"] + q_P * q_P
        return _bounded_root(n_P, self.eta) + self.eps, {"second-moment": n_P}


@final
@dataclass(frozen=True)
class RMSprop(Preconditioner):
    """SISA's Scheme II: ``n = beta n + (1 - beta) q q``, ``Q = sqrt(min(n, eta^2)) + eps``.

    Parameters
    ----------
    beta
        Decay of the second moment.
    eps
        Added to the square root.

    Examples
    --------
    >>> rmsprop = RMSprop(beta=0.75, eps=0.0)
    >>> q = torch.tensor([2.0])
    >>> rmsprop(q, None, rmsprop.init(q))[0]
    tensor([1.])
    """

    beta: Decay = 0.999
    eps: NonNegative = 1e-8

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``n = 0``."""
        return {"second-moment": torch.zeros_like(params_P)}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Average the second moment."""
        n_P = torch.lerp(memory["second-moment"], q_P * q_P, 1 - self.beta)
        return _bounded_root(n_P, self.eta) + self.eps, {"second-moment": n_P}


@final
@dataclass(frozen=True)
class Adam(Preconditioner):
    """SISA's Scheme III, the paper's choice: Scheme II with ``n / (1 - beta^t)`` under the root.

    ``t`` is the number of this client's updates, so that a client that joins late starts with ``t = 1``.

    Parameters
    ----------
    beta
        Decay of the second moment.
    eps
        Added to the square root.
    bias_correction
        ``"adam"`` divides by ``1 - beta^t``. ``"constant"`` always divides by ``1 - beta``, as the authors' public code
        does, whose step counter stays at 1. It hides a decay of the step, 9.8-fold by round 100.

    Examples
    --------
    >>> adam = Adam(beta=0.75, eps=0.0)
    >>> q = torch.tensor([2.0])
    >>> adam(q, None, adam.init(q))[0]
    tensor([2.])
    """

    beta: Decay = 0.999
    eps: NonNegative = 1e-8
    bias_correction: Literal["adam", "constant"] = "adam"

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``n = 0``, ``t = 0``."""
        return {"second-moment": torch.zeros_like(params_P), "count": scalar_like(params_P)}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Average the second moment and correct its bias."""
        n_P = torch.lerp(memory["second-moment"], q_P * q_P, 1 - self.beta)
        count = memory["count"] + 1
        # expm1 avoids the cancellation in 1 - beta^t, which loses half of float32's digits.
        log_beta = log(self.beta) if self.beta else -inf
        share = -torch.expm1(count * log_beta) if self.bias_correction == "adam" else 1 - self.beta
        return _bounded_root(n_P / share, self.eta).add_(self.eps), {"second-moment": n_P, "count": count}


def _bounded_root(n_P: Tensor, eta: float) -> Tensor:
    """Return ``sqrt(min(n, eta^2))``."""
    return n_P.sqrt() if eta == inf else n_P.clamp(max=eta**2).sqrt_()
