r"""Spectral PISA: ``Q = (q q')^{1/2}`` of each parameter's matrix.

Shapes: ``P`` parameters, ``()`` scalars. A parameter of ``m x n`` has ``k = min(m, n)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log
from typing import ClassVar, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, scalar_like
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner, parameters
from fedpisa.typing import Decay


@final
@dataclass(frozen=True)
class Spectral(Preconditioner):
    r"""``Q = min((q q')^{1/2}, eta)`` of each parameter as a matrix, on its smaller side; vectors entry by entry.

    With the singular values ``q = U diag(s) V'`` the step is ``-U diag(s / (sigma + rho s)) V'``, for ``s < eta``. No
    singular value of a step exceeds ``1 / rho``. Where ``s`` is well above ``sigma / rho``, the step is Muon's
    direction ``U V'`` of length ``1 / rho``; well below it is that of plain PISA, ``q / sigma``. For a kernel, ``q``
    has one row for each output channel. For an entry ``q`` of a vector or a scalar, the step is
    ``-q / (sigma + rho |q|)``.

    ``Q`` acts on a matrix as ``Q (x) I``, which is symmetric with eigenvalues ``min(s, eta)``. So (2.11) holds. The
    step is zero only at ``q = 0``, and PISA is stationary only at the optimum.

    The eigenvalues come from `torch.linalg.eigh` on a CPU; those below the rounding error of the largest are 0. There
    it takes a fifth of the time of `root` for k = 64, and a twelfth for k = 768. On other devices, where ``eigh`` is
    slow for many matrices, ``Q`` is `root`, unless ``eta`` is finite.

    Parameters
    ----------
    beta
        Decay of a running mean of ``q q'``, which replaces ``q q'``. 0 keeps none. The mean needs one vector in the
        client, because ``k^2 <= m n``.
    momentum
        Decay of a running mean of the gradient ``g``. The step then follows Nesterov's look-ahead,
        ``pi_i + momentum * mean + (1 - momentum) g``. The weights of the mean sum to 1, so a constant gradient is its
        own mean, and the stationary point stays the optimum. 0 keeps none.

    Examples
    --------
    The singular values 4 and 1 become ``4 / (1 + 4)`` and ``1 / (1 + 1)``:

    >>> from fedpisa.tasks.layout import ParamLayout
    >>> rule, q = Spectral(), torch.tensor([0.0, 4.0, 1.0, 0.0])
    >>> derivatives = Derivatives(torch.zeros(()), q, layout=ParamLayout.of([("weight", torch.zeros(2, 2))]))
    >>> rule.solve(q, rule(q, derivatives, {})[0], derivatives, 1.0, 1.0).round(decimals=4)
    tensor([ 0.0000, -0.8000, -0.5000,  0.0000])
    """

    by_parameter: ClassVar[bool] = True

    beta: Decay = 0.0
    momentum: Decay = 0.0

    def init(self, params_P: Tensor) -> Arrays:
        """Return the means at 0 and the number of steps, as far as the rule has them."""
        means = {"squares": self.beta, "momentum": self.momentum}
        memory = {name: torch.zeros_like(params_P) for name, decay in means.items() if decay}
        return {**memory, "count": scalar_like(params_P)} if memory else {}

    def direction(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Look ahead along the mean gradient, and count the step."""
        if not memory:
            return q_P, memory
        memory = {**memory, "count": memory["count"] + 1}
        if not self.momentum:
            return q_P, memory
        g_P = derivatives.gradient_P
        mean_P = _mean(memory["momentum"], g_P, self.momentum, memory["count"])
        return q_P + self.momentum * (mean_P - g_P), {**memory, "momentum": mean_P}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return ``Q^2`` without ``eta``: for a matrix its ``k k`` numbers, padded with zeros to ``m n``."""
        parts = []
        for shape, q in parameters(derivatives, q_P):
            if shape is None:
                parts.append(q * q)
            else:
                matrix = q.view(shape)
                gram = matrix @ matrix.mT if shape[0] <= shape[1] else matrix.mT @ matrix
                parts += [gram.flatten(), q[gram.numel() :] * 0]
        squares_P = torch.cat(parts)
        if not self.beta:
            return squares_P, memory
        squares_P = _mean(memory["squares"], squares_P, self.beta, memory["count"])
        return squares_P, {**memory, "squares": squares_P}

    def solve(
        self, uphill_P: Tensor, scale_P: Tensor, derivatives: Derivatives, sigma: float, rho: float
    ) -> Tensor:
        """Return the step; ``scale`` is ``Q^2``."""
        parts = []
        for shape, uphill, square in parameters(derivatives, uphill_P, scale_P):
            k = min(shape or (1,))
            if k > 1:
                matrix = square[: k * k].view(k, k)
                wide = uphill.view(shape) if shape[0] <= shape[1] else uphill.view(shape).mT
                step = self._solve(wide, matrix, sigma, rho)
                parts.append((step if shape[0] <= shape[1] else step.mT).reshape(-1))
            else:  # each entry, or a matrix of one row or column, has one eigenvalue
                value = square if shape is None else square[:1]
                parts.append(uphill / (-sigma - rho * value.sqrt().clamp(max=self.eta)))
        return torch.cat(parts)

    def _solve(self, uphill: Tensor, square: Tensor, sigma: float, rho: float) -> Tensor:
        """Return the step ``(k, n)`` of a matrix."""
        if self.eta == inf and not decomposes(square.device):
            unit = torch.eye(len(square), dtype=square.dtype, device=square.device)
            factor = torch.linalg.cholesky_ex(sigma * unit + rho * root(square)).L
            return -torch.cholesky_solve(uphill, factor)
        # eigh raises on NaN, and a client that diverged must not stop the others.
        values, basis = torch.linalg.eigh(square.nan_to_num(0.0, 0.0, 0.0))
        # Rounding makes zeros small numbers, whose roots would be large: 1e-8 in float64.
        cut = 4 * len(values) ** 0.5 * torch.finfo(values.dtype).eps * values[-1:]
        by = -1 / (sigma + rho * torch.where(values > cut, values, 0).sqrt().clamp(max=self.eta))
        step: Tensor = (basis * by) @ basis.mT @ uphill + 0 * square.sum()
        return step


def _mean(mean_P: Tensor, value_P: Tensor, decay: float, count: Tensor) -> Tensor:
    """Return the exponential mean of ``count`` values, whose weights sum to 1, from that of all but the last."""
    return torch.lerp(mean_P, value_P, (1 - decay) / -torch.expm1(count * log(decay)))


def decomposes(device: torch.device) -> bool:
    """Return whether eigenvalue decompositions are quicker than matrix products on a device."""
    return device.type == "cpu"


def root(square: Tensor) -> Tensor:
    r"""Return ``(M + d I)^{1/2}`` of a positive semidefinite matrix ``(k, k)`` by coupled Newton-Schulz steps.

    ``Y <- Y T``, ``Z <- T Z``, ``T = (3 I - Z Y) / 2`` from ``Y = M / ||M||_F + r^2 I``, ``Z = I``, with
    ``d = r^2 ||M||_F``. ``r`` is 1.7e-3 in float32 and 5e-7 in float64. Without it the steps diverge if ``M`` is
    singular. So ``Q`` is at most ``r ||M||_F^{1/2}`` too large.

    References
    ----------
    Higham, Functions of Matrices, 2008, section 6.7.

    Examples
    --------
    >>> root(torch.diag(torch.tensor([9.0, 4.0]))).round(decimals=3)
    tensor([[3., 0.],
            [0., 2.]])
    """
    finfo, unit = torch.finfo(square.dtype), torch.eye(len(square), dtype=square.dtype, device=square.device)
    smallest = finfo.eps**0.4
    norm = torch.linalg.vector_norm(square).clamp(min=finfo.tiny)
    y = square / norm + smallest**2 * unit
    z = unit
    # Each step multiplies a small eigenvalue of the root by 1.5; a few more make the last digits right.
    for _ in range(ceil(-log(smallest) / log(1.5)) + 5):
        t = 1.5 * unit - 0.5 * z @ y
        y, z = y @ t, t @ z
    q: Tensor = y * norm.sqrt()
    return q
