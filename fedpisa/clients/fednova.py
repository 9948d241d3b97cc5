"""The client of FedNova: local SGD that uploads a normalised direction and its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.base import Arrays, LocalResult
from fedpisa.clients.sgd import SGDUpdate


@final
@dataclass(frozen=True)
class NormalisedSGDUpdate(SGDUpdate):
    r"""SGD, see `SGDUpdate`; uploads ``d_i = (w - v_K) / tau_i`` and ``tau_i``.

    ``tau_i`` is the sum of the gradients' weights in ``w - v_K``: ``K`` for plain SGD, and with momentum
    ``(K - momentum (1 - momentum^K) / (1 - momentum)) / (1 - momentum)``. ``d_i`` includes the learning rate.

    References
    ----------
    Wang, Liu, Liang, Joshi, Poor, Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization, NeurIPS 2020, arXiv 2007.07481.

    Examples
    --------
    Two steps of length 0.5 with momentum 0.5 on ``f(v) = v``: the first gradient has weight ``1 + 1/2``.

    >>> import torch
    >>> update, down = NormalisedSGDUpdate(learning_rate=0.5, momentum=0.5), {"params": torch.zeros(1)}
    >>> work = update.start(down, {})
    >>> for _ in range(2):
    ...     work = update.step(lambda v, b: (v.sum(), torch.ones(1)), down, {}, work, None)
    >>> update.finish(down, {}, work).upload
    {'direction': tensor([0.5000]), 'tau': tensor(2.5000)}
    """

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload the normalised direction and ``tau_i``."""
        tau = self.path_length(work)
        return LocalResult({"direction": -work["drift"] / tau, "tau": tau}, state, {})
