r"""The client of FedPD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, scalar_like
from fedpisa.clients.dual import LagrangianSGD
from fedpisa.rng import generator
from fedpisa.typing import NonNegativeInt, Probability


@final
@dataclass(frozen=True)
class FedPDUpdate(LagrangianSGD):
    r"""SGD on ``f_i(v) + <pi_i, v - c> + sigma/2 ||v - c||^2`` from ``c``, ``pi_i <- pi_i + sigma (v_K - c)``.

    ``c`` is the client's copy of the global model. After its steps, the client computes ``c^+ = v_K + pi_i / sigma``.
    In a round that communicates, it uploads ``c^+`` as ``z``, and its next ``c`` is the next global model. In a skipped
    round it uploads nothing, and its next ``c`` is ``c^+``.

    The coin that decides depends on ``coin-seed`` and the round alone, so all clients agree on it without a message.
    State: ``dual`` ``pi_i``; with a positive ``skip-probability`` also ``centre`` ``c^+`` ``(P,)`` and the scalar
    ``ahead``, 1 if ``c^+`` has not been sent.

    Parameters
    ----------
    skip_probability
        Probability that a round does not communicate, the paper's ``p``.
    coin_seed
        Seed of the coin.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, one step of length 1/2, ``sigma = 1``: ``v = 2``, ``pi_i = -2``, ``c^+ = 0``.

    >>> update = FedPDUpdate(learning_rate=0.5, sigma=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> update.finish(down, state, work).upload["z"]
    tensor([0.])
    """

    skip_probability: Probability = 0.0
    coin_seed: NonNegativeInt = 0

    def skips(self, server_round: int) -> bool:
        """Return whether no client communicates in a round.

        Examples
        --------
        >>> update = FedPDUpdate(skip_probability=0.5)
        >>> [update.skips(server_round) for server_round in range(1, 7)]
        [False, True, True, False, True, True]
        """
        return bool(generator(self.coin_seed, "fedpd-coin", server_round).random() < self.skip_probability)

    def at_round(self, server_round: int) -> FedPDUpdate:
        """Return the update with the round's coin tossed: ``skip_probability`` is 0 or 1."""
        return replace(self, skip_probability=float(self.skips(server_round)))

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``pi_i = 0`` and, where rounds may be skipped, an unused ``c``."""
        state = super().init(params_P)
        if not self.skip_probability:
            return state
        return {**state, "centre": torch.zeros_like(params_P), "ahead": scalar_like(params_P)}

    def centre(self, down: Arrays, state: Arrays) -> Tensor:
        """Return ``c^+`` after a skipped round, and the global model otherwise."""
        if "ahead" not in state:
            return down["params"]
        return torch.where(state["ahead"] > 0, state["centre"], down["params"])

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Update the dual, and upload ``c^+`` unless the round is skipped."""
        local_P, dual_P, metrics = self.ascend(down, state, work)
        z_P = local_P + dual_P / self.sigma
        skipped = self.skip_probability == 1
        after = {"dual": dual_P}
        if "ahead" in state:
            after |= {"centre": z_P, "ahead": scalar_like(z_P, float(skipped))}
        return LocalResult({} if skipped else {"z": z_P}, after, metrics)
