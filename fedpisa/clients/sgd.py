r"""Local stochastic gradient descent, the client of FedAvg and its relatives."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalUpdate, MiniBatches, Outcome, scalar_like
from fedpisa.clients.schedule import Epochs
from fedpisa.typing import NonNegative, Positive, PositiveInt, Probability


@dataclass(frozen=True)
class SGDUpdate(LocalUpdate, ABC):
    r"""SGD on the client's own samples, starting at the global model ``w``, with room for a correction.

    ``v_0 = w``, ``g = grad f_i(v_k; B_k) + weight-decay v_k + correction``,
    ``m = momentum m + g``, ``v_{k+1} = v_k - learning-rate m``.

    The momentum buffer starts at zero every round, as a fresh `torch.optim.SGD` would. Working variables:
    ``v``, the number ``steps`` of steps taken, and ``m`` if there is momentum.

    Parameters
    ----------
    learning_rate
        Step size.
    momentum
        Heavy-ball momentum in [0, 1].
    weight_decay
        Local L2 coefficient, added to the gradient.
    batch_size
        Samples per mini-batch, or ``"full"``.
    local_epochs
        Passes over the client's samples per round.
    local_steps
        Number of mini-batch steps per round; takes the place of ``local_epochs`` when given.
    """

    learning_rate: Positive = 0.1
    momentum: Probability = 0.0
    weight_decay: NonNegative = 0.0
    batch_size: PositiveInt | Literal["full"] = 32
    local_epochs: PositiveInt = 1
    local_steps: PositiveInt | None = None

    def schedule(self) -> Epochs:
        """Return shuffled epochs."""
        return Epochs(self.batch_size, self.local_epochs, self.local_steps)

    def correction(self, down: Arrays, state: Arrays, v_P: Tensor) -> Tensor | None:
        """Return what is added to the gradient at ``v`` ``(P,)``; ``None`` for nothing."""
        return None

    def point(self, down: Arrays, state: Arrays, v_P: Tensor) -> Tensor:
        """Return where the gradient is taken ``(P,)``: at ``v``, unless ``v`` is counted from somewhere else."""
        return v_P

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin at the global model."""
        work = {"v": down["params"], "steps": scalar_like(down["params"])}
        return {**work, "m": torch.zeros_like(down["params"])} if self.momentum else work

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take one SGD step."""
        v_P = work["v"]
        point_P = self.point(down, state, v_P)
        _, g_P = gradient(point_P, batch)
        if self.weight_decay:
            g_P = g_P + self.weight_decay * point_P
        correction_P = self.correction(down, state, v_P)
        if correction_P is not None:
            g_P = g_P + correction_P
        steps = work["steps"] + 1
        if not self.momentum:
            return {"v": v_P - self.learning_rate * g_P, "steps": steps}
        m_P = self.momentum * work["m"] + g_P
        return {"v": v_P - self.learning_rate * m_P, "steps": steps, "m": m_P}


@final
@dataclass(frozen=True)
class LocalSGDUpdate(SGDUpdate):
    r"""Plain local SGD, see `SGDUpdate`; uploads the local model ``v_K``.

    If the server's config carries ``proximal-mu``, as Flower's FedProx sends it, ``mu_prox (v - w)`` is the
    correction.

    References
    ----------
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.

    Examples
    --------
    One step of length 0.5 on ``f(v) = v^2 / 2`` from ``w = 4``:

    >>> update = LocalSGDUpdate(learning_rate=0.5)
    >>> down = {"params": torch.tensor([4.0])}
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, {}, update.start(down, {}), None)
    >>> update.finish(down, {}, work).upload["params"]
    tensor([2.])
    """

    def correction(self, down: Arrays, state: Arrays, v_P: Tensor) -> Tensor | None:
        """Return the proximal term, if the server asks for one."""
        return down["proximal-mu"] * (v_P - down["params"]) if "proximal-mu" in down else None

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> Outcome:
        """Upload the local model."""
        return Outcome({"params": work["v"]}, state, {})
