"""Where the clients' own tensors live in the stacked engine: keyed by client, written once per round, last."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays


@final
class StackedStates:
    """Every client's state along a first axis ``N``.

    Memory that starts at zero is taken from the system only when a client first writes to it.

    Parameters
    ----------
    initial
        One client's state before its first round.
    num_clients
        ``N``.

    Examples
    --------
    >>> import torch
    >>> states = StackedStates({"dual": torch.zeros(2)}, num_clients=3)
    >>> states.write(torch.tensor([1]), {"dual": torch.ones(1, 2)})
    >>> states.read(torch.tensor([1, 2]))["dual"].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, initial: Arrays, num_clients: int) -> None:
        self._stacks = {
            name: value.new_zeros(num_clients, *value.shape)
            if not bool(value.any())
            else value.expand(num_clients, *value.shape).clone()
            for name, value in initial.items()
        }
        device = next((value.device for value in initial.values()), None)
        self._seen_N = torch.zeros(num_clients, dtype=torch.bool, device=device)

    def read(self, ids_S: Tensor) -> dict[str, Tensor]:
        """Return copies of the rows of these clients."""
        return {name: stack.index_select(0, ids_S) for name, stack in self._stacks.items()}

    def write(self, ids_S: Tensor, states_S: Arrays) -> None:
        """Replace the rows of these clients."""
        if states_S.keys() != self._stacks.keys():
            raise ValueError(
                f"the local update's state became {sorted(states_S)}; its init made {sorted(self._stacks)}: "
                "return the same names from both"
            )
        for name, stack in self._stacks.items():
            stack.index_copy_(0, ids_S, states_S[name])
        self._seen_N[ids_S] = True

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]``; see `fedpisa.strategies.base.ClientStates`."""
        stack = self._stacks[name]
        return (weights_N * self._seen_N).to(stack.dtype) @ stack

    def row(self, client_id: int) -> Arrays | None:
        """Return one client's state, as views; ``None`` if it was never written."""
        if not self._seen_N[client_id]:
            return None
        return {name: stack[client_id] for name, stack in self._stacks.items()}
