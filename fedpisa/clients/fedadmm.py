r"""The client of FedADMM and its base class, shared with FedDR: both upload the change of ``z_i``."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, scalar_like
from fedpisa.clients.dual import LagrangianSGD, kept_or


@dataclass(frozen=True)
class DifferenceSGD(LagrangianSGD, ABC):
    r"""Local SGD on the augmented Lagrangian that uploads the change of ``z_i = w_i + pi_i / sigma``, ``w_i = v_K``.

    In a client's first round, the change is relative to the global model.
    State: ``dual`` and ``z`` ``(P,)``, and the scalar ``seen``, 1 after the first round.
    """

    incremental: ClassVar[bool] = True

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``pi_i = 0`` and no ``z_i`` yet."""
        return {**super().init(params_P), "z": torch.zeros_like(params_P), "seen": scalar_like(params_P)}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Update the dual and upload the change of ``z_i``."""
        local_P, dual_P, metrics = self.ascend(down, state, work)
        z_P = local_P + dual_P / self.sigma
        return LocalResult(
            upload={"change": z_P - kept_or(state, "z", down["params"])},
            state={"dual": dual_P, "z": z_P, "seen": scalar_like(z_P, 1.0)},
            metrics=metrics,
        )


@final
@dataclass(frozen=True)
class FedADMMUpdate(DifferenceSGD):
    r"""SGD on ``f_i(v) + <pi_i, v - w> + sigma/2 ||v - w||^2`` from ``w``, ``pi_i <- pi_i + sigma (v_K - w)``.

    Uploads the change of ``v_K + pi_i / sigma``; see `DifferenceSGD`.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, one step of length 1/2, ``sigma = 1``: ``v = 2``, ``pi_i = -2``, ``z_i = 0``.

    >>> update = FedADMMUpdate(learning_rate=0.5, sigma=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> outcome = update.finish(down, state, work)
    >>> outcome.upload["change"], outcome.state["dual"]
    (tensor([-4.]), tensor([-2.]))
    """
