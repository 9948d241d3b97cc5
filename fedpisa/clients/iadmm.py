r"""The clients of ICEADMM and IIADMM: linearised steps that go on from the client's own model."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalResult, MiniBatches, scalar_like
from fedpisa.clients.batches import Epochs
from fedpisa.clients.dual import DualUpdate, kept_or, squared
from fedpisa.typing import InverseStepSize, NonNegative, NonNegativeInverseStepSize, PositiveInt


@dataclass(frozen=True)
class LinearisedADMM(DualUpdate, ABC):
    r"""Steps ``w_i <- w_i - (g + pi_i + sigma (w_i - w)) / (proximity + sigma)``, ``g = grad f_i(w_i; B) + mu w_i``.

    That is the minimiser of the augmented Lagrangian with ``f_i`` linearised at ``w_i`` and
    ``proximity/2 ||v - w_i||^2`` added. ``w_i`` goes on where the client's last round ended; in its first it
    is the model that it receives.
    State: ``dual`` ``pi_i`` and ``local`` ``w_i`` ``(P,)``, and the mark ``seen``.

    Parameters
    ----------
    sigma
        Penalty ``sigma``, the stiffness of the consensus.
    proximity
        Weight of the proximal term; a bound of the clients' curvature is safe.
    mu
        Local L2 coefficient: ``F_i = f_i + mu/2 ||w||^2``.
    batch_size
        Samples per mini-batch, or ``"full"``.
    local_epochs
        Passes over the client's samples per round.
    local_steps
        Number of mini-batch steps per round; takes the place of ``local_epochs`` when given.
    """

    sigma: InverseStepSize = 0.3
    proximity: NonNegativeInverseStepSize = 3.0
    mu: NonNegative = 0.0
    batch_size: PositiveInt | Literal["full"] = 32
    local_epochs: PositiveInt = 1
    local_steps: PositiveInt | None = None

    def batch_sampler(self) -> Epochs:
        """Return shuffled epochs."""
        return Epochs(self.batch_size, self.local_epochs, self.local_steps)

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``pi_i = 0`` and no ``w_i`` yet."""
        return {**super().init(params_P), "local": torch.zeros_like(params_P), "seen": scalar_like(params_P)}

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Go on from the client's own model and dual."""
        return {"drift": kept_or(state, "local", down["params"]) - down["params"], "dual": state["dual"]}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take one linearised step."""
        local_P = down["params"] + work["drift"]
        _, g_P = gradient(local_P, batch)
        if self.mu:
            g_P = g_P + self.mu * local_P
        pull_P = g_P + work["dual"] + self.sigma * work["drift"]
        return {**work, "drift": work["drift"] - pull_P / (self.proximity + self.sigma)}

    def ascend(self, work: Arrays) -> Arrays:
        """Return the working variables after ``pi_i <- pi_i + sigma (w_i - w)``."""
        return {**work, "dual": work["dual"] + self.sigma * work["drift"]}

    def leave(self, down: Arrays, work: Arrays) -> tuple[Arrays, Arrays]:
        """Return the client's state and metrics."""
        local_P = down["params"] + work["drift"]
        state = {"dual": work["dual"], "local": local_P, "seen": scalar_like(local_P, 1.0)}
        return state, {"squared-drift": squared(work["drift"])}


@final
@dataclass(frozen=True)
class ICEADMMUpdate(LinearisedADMM):
    r"""Every local step moves the model, see `LinearisedADMM`, and then the dual; uploads ``z_i = w_i + pi_i / sigma``.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, ``sigma = proximity = 1``: ``w_i = 4 - 4/2``, ``pi_i = -2``, ``z_i = 0``.

    >>> update = ICEADMMUpdate(sigma=1.0, proximity=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> work["drift"], update.finish(down, state, work).upload["z"]
    (tensor([-2.]), tensor([0.]))
    """

    sigma: InverseStepSize = 2.0
    proximity: NonNegativeInverseStepSize = 10.0
    batch_size: PositiveInt | Literal["full"] = "full"
    local_steps: PositiveInt | None = 10

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take one linearised step, and one of the dual."""
        return self.ascend(super().step(gradient, down, state, work, batch))

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload ``z_i``."""
        z_P = down["params"] + (work["drift"] + work["dual"] / self.sigma)
        return LocalResult({"z": z_P}, *self.leave(down, work))


@final
@dataclass(frozen=True)
class IIADMMUpdate(LinearisedADMM):
    r"""The local steps move the model, see `LinearisedADMM`, and the round's end the dual; uploads ``w_i``.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, ``sigma = proximity = 1``: ``w_i = 4 - 4/2``, ``pi_i = -2``.

    >>> update = IIADMMUpdate(sigma=1.0, proximity=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> outcome = update.finish(down, state, work)
    >>> outcome.upload["params"], outcome.state["dual"]
    (tensor([2.]), tensor([-2.]))
    """

    incremental: ClassVar[bool] = True

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Move the dual and upload the local model."""
        return LocalResult({"params": down["params"] + work["drift"]}, *self.leave(down, self.ascend(work)))
