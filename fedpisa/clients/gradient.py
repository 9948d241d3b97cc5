"""The client of FedSGD: it uploads one mean gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from fedpisa.clients.base import Arrays, Gradient, LocalResult, LocalUpdate, MiniBatches
from fedpisa.clients.batches import Periodic
from fedpisa.typing import NonNegative, PositiveInt


@final
@dataclass(frozen=True)
class MeanGradient(LocalUpdate):
    """One mean gradient at the global model ``w``: ``g = mean_b grad f_i(w; B_b) + mu w``.

    Parameters
    ----------
    batch_size
        Samples per mini-batch, or ``"full"``.
    drop_last
        Whether a smaller last mini-batch is left out, unless it is a client's only one.
    batches_per_round
        Number of periodic mini-batches whose gradients are averaged, or ``"all"``.
    mu
        Local L2 coefficient.

    Examples
    --------
    >>> update, down = MeanGradient(), {"params": torch.tensor([4.0])}
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, {}, update.start(down, {}), None)
    >>> update.finish(down, {}, work).upload["gradient"]
    tensor([4.])
    """

    batch_size: PositiveInt | Literal["full"] = 32
    drop_last: bool = False
    batches_per_round: PositiveInt | Literal["all"] = 1
    mu: NonNegative = 0.0

    def batch_sampler(self) -> Periodic:
        """Return periodic mini-batches."""
        return Periodic(self.batch_size, self.batches_per_round, drop_last=self.drop_last)

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin with a zero gradient."""
        return {"gradient": torch.zeros_like(down["params"])}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Evaluate the gradient at the global model."""
        _, g_P = gradient(down["params"], batch)
        return {"gradient": g_P + self.mu * down["params"] if self.mu else g_P}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload the gradient."""
        return LocalResult(work, state, {})
