r"""The client of FedGiA."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch

from fedpisa.clients.base import Arrays, Gradient, LocalResult, MiniBatches, scalar_like
from fedpisa.clients.batches import BatchIndices, BatchSampler, BatchSize, CarryState, Ints, Periodic
from fedpisa.clients.dual import DualUpdate, squared
from fedpisa.rng import hashed, stream_key
from fedpisa.typing import InverseStepSize, NonNegative, NonNegativeInverseStepSize, PositiveInt, Probability


@final
@dataclass(frozen=True)
class ShareWithExtraSteps(BatchSampler):
    """One gradient for each client, then ``extra_steps`` steps without samples with probability ``share``.

    The draw depends on the seed, the client and the round.

    Examples
    --------
    >>> sampler = ShareWithExtraSteps(Periodic(), extra_steps=3, share=0.5)
    >>> indices = sampler.draw(np.array([2, 2, 2]), np.arange(3), 1, seed=0)
    >>> indices.steps_S.tolist(), indices.gradients_S.tolist()
    ([1, 1, 4], [1, 1, 1])
    """

    gradient: BatchSampler
    extra_steps: int
    share: float

    @property
    def batch_size(self) -> BatchSize:
        """The gradient's."""
        return self.gradient.batch_size

    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the round's samples; see `BatchSampler.draw`."""
        index_S1CB, weight_S1CB, steps_S, fresh_S1C, _ = self.gradient.draw(
            sizes_S, ids_S, server_round, seed
        )
        draw_S = hashed(stream_key(seed, "who-goes-on"), ids_S, server_round, np.zeros_like(ids_S)) / 2.0**64
        steps_S = steps_S + self.extra_steps * (draw_S < self.share)
        padding = ((0, 0), (0, int(steps_S.max()) - 1), (0, 0), (0, 0))
        fresh_SKC = None if fresh_S1C is None else np.pad(fresh_S1C, padding[:3])
        return BatchIndices(np.pad(index_S1CB, padding), np.pad(weight_S1CB, padding), steps_S, fresh_SKC)

    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the rule with the gradient's samples in order."""
        return replace(self, gradient=self.gradient.in_order(carry_state))


@final
@dataclass(frozen=True)
class FedGiAUpdate(DualUpdate):
    r"""One gradient ``g`` at ``w``; then some clients take K inexact ADMM steps with it, the others one gradient step.

    ADMM, K times: ``w_i = w - (g + pi_i) / (proximity + sigma)``, ``pi_i <- pi_i + sigma (w_i - w)``.
    Gradient: ``w_i = w``, ``pi_i = -g``. Both upload ``z_i = w_i + pi_i / sigma``.

    State: ``dual`` ``pi_i`` ``(P,)``, zero at first.

    Parameters
    ----------
    sigma
        Penalty on the distance between local and global model.
    proximity
        The paper's ``H_i = proximity I``, an upper bound of the clients' curvature.
    admm_share
        Probability that a client takes ADMM steps in a round.
    mu
        Local L2 coefficient: ``F_i = f_i + mu/2 ||w||^2``.
    batch_size
        Samples per mini-batch, or ``"full"``.
    drop_last
        Whether a smaller last mini-batch is left out, unless it is a client's only one.
    batches_per_round
        Number of periodic mini-batches whose gradients ``g`` averages, or ``"all"``.
    local_steps
        ADMM steps K, the paper's ``k_0``.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, ``sigma = proximity = 1``, two ADMM steps: ``w_i = 2``, ``pi_i = -2``; then
    ``w_i = 3``, ``pi_i = -3``, ``z_i = 0``.

    >>> update = FedGiAUpdate(sigma=1.0, proximity=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.start(down, state)
    >>> for _ in range(3):
    ...     work = update.step(lambda v, b: (v @ v / 2, v), down, state, work, None)
    >>> outcome = update.finish(down, state, work)
    >>> outcome.upload["z"], outcome.state["dual"]
    (tensor([0.]), tensor([-3.]))
    """

    sigma: InverseStepSize = 1.0
    proximity: NonNegativeInverseStepSize = 10.0
    admm_share: Probability = 0.5
    mu: NonNegative = 0.0
    batch_size: PositiveInt | Literal["full"] = 32
    drop_last: bool = False
    batches_per_round: PositiveInt | Literal["all"] = "all"
    local_steps: PositiveInt = 5

    def batch_sampler(self) -> ShareWithExtraSteps:
        """Return periodic mini-batches for the gradient, and the draw of the clients that take ADMM steps."""
        gradient = Periodic(self.batch_size, self.batches_per_round, drop_last=self.drop_last)
        return ShareWithExtraSteps(gradient, self.local_steps, self.admm_share)

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin with the dual; the first `step` adds the gradient."""
        return {"dual": state["dual"]}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Evaluate the gradient in the first step, and take one ADMM step with it in each later step."""
        w_P = down["params"]
        if "gradient" not in work:
            _, g_P = gradient(w_P, batch)
            g_P = g_P + self.mu * w_P if self.mu else g_P
            zero = {"drift": torch.zeros_like(w_P), "steps": scalar_like(w_P)}
            return {**work, **zero, "gradient": g_P}
        drift_P = -(work["gradient"] + work["dual"]) / (self.proximity + self.sigma)
        dual_P = work["dual"] + self.sigma * drift_P
        return {**work, "drift": drift_P, "dual": dual_P, "steps": work["steps"] + 1}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload ``z_i``. Without ADMM steps, ``w_i = w`` and ``pi_i = -g``."""
        dual_P = torch.where(work["steps"] > 0, work["dual"], -work["gradient"])
        return LocalResult(
            upload={"z": down["params"] + (work["drift"] + dual_P / self.sigma)},
            state={"dual": dual_P},
            metrics={"squared-drift": squared(work["drift"])},
        )
