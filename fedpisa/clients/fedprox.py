"""The client of FedProx: local SGD with a proximal term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.base import Arrays
from fedpisa.clients.sgd import SGDUpdate
from fedpisa.typing import NonNegative


@final
@dataclass(frozen=True)
class ProximalSGDUpdate(SGDUpdate):
    r"""SGD on ``f_i(v) + proximal-mu/2 ||v - w||^2``, see `SGDUpdate`; uploads the local model ``v_K``.

    Parameters
    ----------
    proximal_mu
        Coefficient of the squared distance to the global model.

    References
    ----------
    Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv 1812.06127.

    Examples
    --------
    Two steps of length 0.5 on ``f(v) = v^2 / 2`` from ``w = 4``: at ``v = 2`` the gradient is ``2 + 1 (2 - 4)``.

    >>> import torch
    >>> update, down = ProximalSGDUpdate(learning_rate=0.5, proximal_mu=1.0), {"params": torch.tensor([4.0])}
    >>> work = update.start(down, {})
    >>> for _ in range(2):
    ...     work = update.step(lambda v, b: (v @ v / 2, v), down, {}, work, None)
    >>> update.finish(down, {}, work).upload["params"]
    tensor([2.])
    """

    proximal_mu: NonNegative = 0.1

    def proximal_weight(self, down: Arrays) -> float:
        """Return ``proximal-mu``."""
        return self.proximal_mu
