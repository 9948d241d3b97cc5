r"""The client of FedDyn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedpisa.clients.base import Arrays, LocalResult
from fedpisa.clients.dual import LagrangianSGD


@final
@dataclass(frozen=True)
class FedDynUpdate(LagrangianSGD):
    r"""SGD on ``f_i(v) - <h_i, v> + sigma/2 ||v - w||^2``, ``h_i <- h_i - sigma (v_K - w)``; uploads ``v_K``.

    State: ``dual`` ``pi_i = -h_i``, see `LagrangianSGD`.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, one step of length 1/2, ``sigma = 1``: ``v = 2``, ``pi_i = -2``.

    >>> import torch
    >>> update = FedDynUpdate(learning_rate=0.5, sigma=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> outcome = update.finish(down, state, work)
    >>> outcome.upload["params"], outcome.state["dual"]
    (tensor([2.]), tensor([-2.]))
    """

    incremental: ClassVar[bool] = True

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Update the dual and upload the local model."""
        local_P, dual_P, metrics = self.ascend(down, state, work)
        return LocalResult({"params": local_P}, {"dual": dual_P}, metrics)
