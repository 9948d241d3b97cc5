r"""SISA's three schemes: ``Q`` is the square root of a second moment of ``q = pi_i + g``.

At a solution ``q = 0``. Schemes II and III forget, so there ``Q`` goes to zero and the step grows to ``q / sigma``.
For equal clients of curvature ``h``, constant ``Q``, one local step and ``lambda = 0``, PISA converges if and only if
``3 h < 2 sigma + 4 rho Q``. So SISA leaves a solution that it has reached if ``sigma < 3/2 h``. Scheme I does not
forget. With ``amsgrad``, Schemes II and III use the largest moment so far. Then ``q`` cannot grow for ever, because
``Q`` grows with it until the condition holds.

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
    amsgrad
        Whether ``Q`` never decreases: the root is that of the largest ``n`` so far. SISA then stays at a solution that
        it has reached, also if ``sigma`` is below 3/2 of the curvature. It costs one more vector in the client.

    Examples
    --------
    >>> rmsprop = RMSprop(beta=0.75, eps=0.0)
    >>> q = torch.tensor([2.0])
    >>> rmsprop(q, None, rmsprop.init(q))[0]
    tensor([1.])
    """

    beta: Decay = 0.999
    eps: NonNegative = 1e-8
    amsgrad: bool = False

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``n = 0``, and its maximum 0 with ``amsgrad``."""
        return {"second-moment": torch.zeros_like(params_P), **_no_maximum(params_P, self.amsgrad)}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Average the second moment."""
        n_P = torch.lerp(memory["second-moment"], q_P * q_P, 1 - self.beta)
        used_P, maximum = _with_maximum(n_P, memory)
        return _bounded_root(used_P, self.eta) + self.eps, {"second-moment": n_P, **maximum}


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
    amsgrad
        Whether ``Q`` never decreases: the root is that of the largest ``n / (1 - beta^t)`` so far. SISA then stays at a
        solution that it has reached, also if ``sigma`` is below 3/2 of the curvature. It costs one more vector in the
        client.

    References
    ----------
    Reddi, Kale, Kumar, On the convergence of Adam and beyond, 2018.

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
    amsgrad: bool = False

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``n = 0``, ``t = 0``, and the maximum 0 with ``amsgrad``."""
        return {
            "second-moment": torch.zeros_like(params_P),
            "count": scalar_like(params_P),
            **_no_maximum(params_P, self.amsgrad),
        }

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Average the second moment and correct its bias."""
        n_P = torch.lerp(memory["second-moment"], q_P * q_P, 1 - self.beta)
        count = memory["count"] + 1
        # expm1 avoids the cancellation in 1 - beta^t, which loses half of float32's digits.
        log_beta = log(self.beta) if self.beta else -inf
        share = -torch.expm1(count * log_beta) if self.bias_correction == "adam" else 1 - self.beta
        used_P, maximum = _with_maximum(n_P / share, memory)
        return _bounded_root(used_P, self.eta).add_(self.eps), {
            "second-moment": n_P,
            "count": count,
            **maximum,
        }


def _no_maximum(params_P: Tensor, amsgrad: bool) -> Arrays:
    """Return the maximum before the first step, if it is kept."""
    return {"largest-moment": torch.zeros_like(params_P)} if amsgrad else {}


def _with_maximum(moment_P: Tensor, memory: Arrays) -> tuple[Tensor, Arrays]:
    """Return the moment under the root, and the memory's maximum if it keeps one."""
    if "largest-moment" not in memory:
        return moment_P, {}
    largest_P = torch.maximum(memory["largest-moment"], moment_P)
    return largest_P, {"largest-moment": largest_P}


def _bounded_root(n_P: Tensor, eta: float) -> Tensor:
    """Return ``sqrt(min(n, eta^2))``."""
    return n_P.sqrt() if eta == inf else n_P.clamp(max=eta**2).sqrt_()
