r"""Clients with a dual, and local SGD on the augmented Lagrangian.

All clients use the same sign: the augmented Lagrangian is ``f_i(v) + <pi_i, v - w> + sigma/2 ||v - w||^2``, and
``pi_i = -grad F_i(w)`` at a solution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.clients.sgd import SGDUpdate
from fedpisa.typing import InverseStepSize


class DualUpdate(LocalUpdate, ABC):
    """A client's update on ``F_i(w_i) + <pi_i, w_i - w> + sigma/2 ||w_i - w||^2``.

    Its state has the ``dual`` ``pi_i`` ``(P,)``, zero at first. Its metrics have ``squared-drift``,
    ``||w_i - w||^2``.
    """

    sigma: InverseStepSize

    @property
    @abstractmethod
    def mu(self) -> float:
        """Local L2 coefficient: ``F_i = f_i + mu/2 ||w||^2``."""

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``pi_i = 0``."""
        return {"dual": torch.zeros_like(params_P)}

    def sigma_at(self, server_round: int) -> float:
        """Return the penalty of a round (1, 2, ...), or for round 0 the initial penalty."""
        return self.sigma


@dataclass(frozen=True)
class LagrangianSGD(SGDUpdate, DualUpdate, ABC):
    r"""SGD on ``f_i(v) + weight-decay/2 ||v||^2 + <pi_i, v - c> + sigma/2 ||v - c||^2`` from ``v = c``.

    After K steps, ``pi_i <- pi_i + sigma (v_K - c)``. ``c`` is the `centre`, by default the global model ``w``.
    State: ``dual`` ``pi_i`` ``(P,)``, zero at first.

    Parameters
    ----------
    sigma
        Penalty on the distance between local and global model.
    """

    sigma: InverseStepSize = 0.1

    @property
    def mu(self) -> float:
        """Return ``weight-decay``."""
        return self.weight_decay

    def correction(self, down: Arrays, state: Arrays) -> Tensor:
        """Return ``pi_i``."""
        return state["dual"]

    def proximal_weight(self, down: Arrays) -> float:
        """Return ``sigma``."""
        return self.sigma

    def ascend(self, down: Arrays, state: Arrays, work: Arrays) -> tuple[Tensor, Tensor, Arrays]:
        """Return ``v_K`` and the dual after its step, both ``(P,)``, and the metrics."""
        drift_P = work["drift"]
        dual_P = state["dual"] + self.sigma * drift_P
        return self.centre(down, state) + drift_P, dual_P, {"squared-drift": squared(drift_P)}


def squared(vector_P: Tensor) -> Tensor:
    """Return ``||vector||^2``, a scalar ``()``."""
    return (vector_P * vector_P).sum()


def kept_or(state: Arrays, name: str, first_P: Tensor) -> Tensor:
    """Return the state's vector ``name`` ``(P,)``, or ``first`` in the client's first round.

    A client's state is zero before its first broadcast. The scalar ``seen`` is 1 once it has taken part.

    Examples
    --------
    >>> state = {"z": torch.zeros(1), "seen": torch.zeros(())}
    >>> kept_or(state, "z", torch.ones(1)), kept_or({**state, "seen": torch.ones(())}, "z", torch.ones(1))
    (tensor([1.]), tensor([0.]))
    """
    return torch.where(state["seen"] > 0, state[name], first_P)
