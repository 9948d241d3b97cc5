"""The client of Scaffnew: a random number of SGD steps along ``g - h_i``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, scalar_like
from fedpisa.clients.batches import BatchIndices, BatchSampler, BatchSize, CarryState, Epochs, Ints
from fedpisa.clients.sgd import SGDSteps
from fedpisa.rng import generator
from fedpisa.typing import Fraction


@final
@dataclass(frozen=True)
class GeometricSteps(BatchSampler):
    """Shuffled mini-batches for a random number of steps, the same for all clients.

    Clients communicate after each step with probability ``probability``. The number of steps in a round is therefore
    geometric, 1, 2, ... with mean ``1 / probability``. It depends on the seed and the round alone, so no message
    carries it.

    Examples
    --------
    >>> import numpy as np
    >>> sizes, ids = np.array([7, 2]), np.array([0, 1])
    >>> [GeometricSteps(2, 0.5).draw(sizes, ids, t, seed=0).steps_S.tolist() for t in (1, 2, 3)]
    [[2, 2], [1, 1], [2, 2]]
    """

    batch_size: BatchSize = 32
    probability: float = 0.1
    drop_last: bool = False
    carry_state: CarryState = "none"

    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the round's samples; see `BatchSampler.draw`."""
        rng = generator(seed, "local-steps", server_round)
        steps = int(rng.geometric(self.probability))
        epochs: BatchSampler = Epochs(self.batch_size, local_steps=steps, drop_last=self.drop_last)
        if self.carry_state != "none":
            epochs = epochs.in_order(self.carry_state)
        return epochs.draw(sizes_S, ids_S, server_round, seed)

    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the rule with windows of a text in order.

        Raises
        ------
        ValueError
            If the state is carried over rounds: their numbers of steps differ, so a round cannot know where the one
            before it ended.
        """
        if carry_state == "epoch":
            raise ValueError(
                "carry-state = 'epoch': the rounds of scaffnew have different numbers of steps, so a round does not go "
                'on where the one before it ended; set carry-state = "round", or take another algorithm'
            )
        return replace(self, carry_state=carry_state)


@final
@dataclass(frozen=True)
class ScaffnewUpdate(SGDSteps):
    r"""SGD along ``g - h_i`` from ``w``; when the next ``w`` arrives, ``h_i <- h_i + (p / learning-rate) (w - v_i)``.

    The client uploads and keeps the vector ``z_i = v_i - (learning-rate / p) h_i``. The rule for ``h_i`` is then
    ``h_i = (p / learning-rate) (w - z_i)``.

    State: ``z`` ``(P,)`` and the ``stiffness`` ``p / learning-rate`` of its round. Both are zero at first, so that
    ``h_i = stiffness (w - z)`` starts at zero.

    Parameters
    ----------
    probability
        Probability p of communicating after a local step; a round has ``1 / p`` steps on average.

    References
    ----------
    Mishchenko, Malinovsky, Stich, Richtarik, ProxSkip: Yes! Local Gradient Steps Provably Lead to
    Communication Acceleration! Finally!, ICML 2022, arXiv 2202.09357.

    Examples
    --------
    One step of length 0.5 on ``f(v) = v^2 / 2`` from ``w = 4``, ``p = 1/2``: ``v = 2``, ``h = 0``. If the mean
    stays at 4, then ``h = 1 * (4 - 2) = 2``, and ``v = 4 - 0.5 (4 - 2) = 3``, ``z = 3 - 2``.

    >>> update, down = ScaffnewUpdate(learning_rate=0.5, probability=0.5), {"params": torch.tensor([4.0])}
    >>> state = update.init(torch.zeros(1))
    >>> for _ in range(2):
    ...     work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    ...     state = update.finish(down, state, work).state
    ...     print(state["z"])
    tensor([2.])
    tensor([1.])
    """

    probability: Fraction = 0.1

    @property
    def stiffness(self) -> float:
        """Return ``p / learning-rate``."""
        return self.probability / self.learning_rate

    def batch_sampler(self) -> GeometricSteps:
        """Return a random number of mini-batches, the same for all clients."""
        return GeometricSteps(self.batch_size, self.probability, self.drop_last)

    def init(self, params_P: Tensor) -> Arrays:
        """Return a state with ``h_i = 0``."""
        return {"z": torch.zeros_like(params_P), "stiffness": scalar_like(params_P)}

    def correction(self, down: Arrays, state: Arrays) -> Tensor:
        """Return ``-h_i``."""
        return state["stiffness"] * (state["z"] - down["params"])

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload and keep ``z_i``."""
        correction_P = self.correction(down, state) / self.stiffness
        z_P = down["params"] + (work["drift"] + correction_P)
        return LocalResult(
            {"z": z_P}, {"z": z_P, "stiffness": torch.full_like(state["stiffness"], self.stiffness)}, {}
        )
