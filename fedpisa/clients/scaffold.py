"""The client of SCAFFOLD: local SGD with control variates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult
from fedpisa.clients.sgd import SGDUpdate


@final
@dataclass(frozen=True)
class ScaffoldUpdate(SGDUpdate):
    r"""SGD along ``g - c_i + c``, then option II: ``c_i <- c_i - c + (w - v_K) / (K learning-rate)``.

    The new ``c_i`` is the mean of the round's gradients. With momentum, K is replaced by `SGDSteps.path_length`,
    and the mean is weighted as in ``w - v_K``. Uploads the ``drift`` ``v_K - w`` and the ``length``
    ``K learning-rate``. The server computes the change of ``c_i`` from both.

    State: ``control`` ``c_i`` ``(P,)``, zero at first.

    References
    ----------
    Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
    arXiv 1910.06378.

    Examples
    --------
    One step of length 0.5 on ``f(v) = v^2 / 2`` from ``w = 4`` with ``c = 1``: along ``4 - 0 + 1``.

    >>> update = ScaffoldUpdate(learning_rate=0.5)
    >>> down, state = {"params": torch.tensor([4.0]), "control": torch.ones(1)}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> outcome = update.finish(down, state, work)
    >>> outcome.upload["drift"], outcome.state["control"]
    (tensor([-2.5000]), tensor([4.]))
    """

    incremental: ClassVar[bool] = True

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``c_i = 0``."""
        return {"control": torch.zeros_like(params_P)}

    def correction(self, down: Arrays, state: Arrays) -> Tensor:
        """Return ``c - c_i``."""
        return down["control"] - state["control"]

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload the drift and the path length, and keep the new ``c_i``."""
        length = self.learning_rate * self.path_length(work)
        control_P = state["control"] - down["control"] - work["drift"] / length
        return LocalResult({"drift": work["drift"], "length": length}, {"control": control_P}, {})
