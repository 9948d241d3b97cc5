"""No preconditioner: plain PISA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fedpisa.clients.base import Arrays, scalar_like
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner


@final
@dataclass(frozen=True)
class Identity(Preconditioner):
    """Plain PISA: ``Q = min(1, eta) I``.

    Examples
    --------
    >>> import torch
    >>> Identity(eta=0.5)(torch.ones(2), None, {})
    (tensor(0.5000), {})
    """

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return ``min(1, eta)``."""
        return scalar_like(q_P, min(1.0, self.eta)), {}
