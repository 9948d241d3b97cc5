r"""The clients of ICEADMM and IIADMM: linearised steps that start at the client's previous model."""

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

    Each step minimises the augmented Lagrangian with ``f_i`` linearised at ``w_i`` and ``proximity/2 ||v - w_i||^2``
    added. ``w_i`` starts at the client's model of its previous round, and in its first round at the global model.
    State: ``dual`` ``pi_i`` and ``local`` ``w_i`` ``(P,)``, and the scalar ``seen``, 1 after the first round.

    Parameters
    ----------
    sigma
        Penalty on the distance between local and global model.
    proximity
        Weight of the proximal term; an upper bound of the clients' curvature is safe.
    mu
        Local L2 coefficient: ``F_i = f_i + mu/2 ||w||^2``.
    batch_size
        Samples per mini-batch, or ``"full"``.
    drop_last
        Whether a smaller last mini-batch is left out, unless it is a client's only one.
    local_epochs
        Passes over the client's samples per round.
    local_steps
        Number of mini-batch steps per round; overrides ``local_epochs``.
    """

    sigma: InverseStepSize = 0.3
    proximity: NonNegativeInverseStepSize = 3.0
    mu: NonNegative = 0.0
    batch_size: PositiveInt | Literal["full"] = 32
    drop_last: bool = False
    local_epochs: PositiveInt = 1
    local_steps: PositiveInt | None = None

    def batch_sampler(self) -> Epochs:
        """Return shuffled epochs."""
        return Epochs(self.batch_size, self.local_epochs, self.local_steps, self.drop_last)

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``pi_i = 0`` and no ``w_i`` yet."""
        return {**super().init(params_P), "local": torch.zeros_like(params_P), "seen": scalar_like(params_P)}

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin at the client's previous model and dual."""
        return {"drift": kept_or(state, "local", down["params"]) - down["params"], "dual": state["dual"]}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take one linearised step."""
        local_P = down["params"] + work["drift"]
        _, g_P = gradient(local_P, batch)
        if self.mu:
            g_P = g_P + self.mu * local_P
        gradient_P = g_P + work["dual"] + self.sigma * work["drift"]
        return {**work, "drift": work["drift"] - gradient_P / (self.proximity + self.sigma)}

    def ascend(self, work: Arrays) -> Arrays:
        """Return the working variables after ``pi_i <- pi_i + sigma (w_i - w)``."""
        return {**work, "dual": work["dual"] + self.sigma * work["drift"]}

    def state_and_metrics(self, down: Arrays, work: Arrays) -> tuple[Arrays, Arrays]:
        """Return the client's new state and its metrics."""
        local_P = down["params"] + work["drift"]
        state = {"dual": work["dual"], "local": local_P, "seen": scalar_like(local_P, 1.0)}
        return state, {"squared-drift": squared(work["drift"])}


@final
@dataclass(frozen=True)
class ICEADMMUpdate(LinearisedADMM):
    r"""Each local step updates the model (see `LinearisedADMM`), then the dual; uploads ``z_i = w_i + pi_i / sigma``.

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
        """Take one linearised step and one dual step."""
        return self.ascend(super().step(gradient, down, state, work, batch))

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload ``z_i``."""
        z_P = down["params"] + (work["drift"] + work["dual"] / self.sigma)
        return LocalResult({"z": z_P}, *self.state_and_metrics(down, work))


@final
@dataclass(frozen=True)
class IIADMMUpdate(LinearisedADMM):
    r"""Local steps update the model, see `LinearisedADMM`; the dual follows after the last one. Uploads ``w_i``.

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
        """Update the dual and upload the local model."""
        upload = {"params": down["params"] + work["drift"]}
        return LocalResult(upload, *self.state_and_metrics(down, self.ascend(work)))
