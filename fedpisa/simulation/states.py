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
    incremental
        Whether to keep a client's state from before its last round too, for `settle`.

    Examples
    --------
    >>> import torch
    >>> states = StackedStates({"dual": torch.zeros(2)}, num_clients=3)
    >>> states.write(torch.tensor([1]), {"dual": torch.ones(1, 2)}, server_round=1)
    >>> states.read(torch.tensor([1, 2]))["dual"].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, initial: Arrays, num_clients: int, incremental: bool = False) -> None:
        self._stacks = _stacked(initial, num_clients)
        self._earlier = _stacked(initial, num_clients) if incremental else {}
        self._initial = {name: value.clone() for name, value in initial.items()}
        device = next((value.device for value in initial.values()), None)
        # The round that each row is of; 0 for a client that never took part.
        self._round_N = torch.zeros(num_clients, dtype=torch.int64, device=device)

    def read(self, ids_S: Tensor) -> dict[str, Tensor]:
        """Return copies of the rows of these clients."""
        return {name: stack.index_select(0, ids_S) for name, stack in self._stacks.items()}

    def settle(self, ids_S: Tensor, confirmed_S: Tensor) -> None:
        """Take back the last round of those whose reply in it was not confirmed; see `LocalUpdate.incremental`."""
        lost_S = self._round_N[ids_S] != confirmed_S
        lost = ids_S[lost_S]
        for name, stack in self._stacks.items():
            stack[lost] = self._earlier[name][lost]
        self._round_N[lost] = confirmed_S[lost_S]

    def write(self, ids_S: Tensor, states_S: Arrays, server_round: int) -> None:
        """Replace the rows of these clients."""
        if states_S.keys() != self._stacks.keys():
            raise ValueError(
                f"the local update's state became {sorted(states_S)}; its init made {sorted(self._stacks)}: "
                "return the same names from both"
            )
        for name, stack in self._stacks.items():
            if self._earlier:
                self._earlier[name].index_copy_(0, ids_S, stack.index_select(0, ids_S))
            stack.index_copy_(0, ids_S, states_S[name])
        self._round_N[ids_S] = server_round

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]``; see `fedpisa.strategies.base.ClientStates`."""
        stack = self._stacks[name]
        return (weights_N * (self._round_N > 0)).to(stack.dtype) @ stack

    def row(self, client_id: int) -> Arrays | None:
        """Return one client's state, as views; ``None`` if it was never written."""
        if not self._round_N[client_id]:
            return None
        return {name: stack[client_id] for name, stack in self._stacks.items()}

    def snapshot(self) -> dict[str, Tensor]:
        """Return what `restored` needs: the rows that were written, and the state that all others have.

        Examples
        --------
        >>> states = StackedStates({"dual": torch.zeros(1)}, num_clients=1000)
        >>> states.write(torch.tensor([7]), {"dual": torch.ones(1, 1)}, server_round=3)
        >>> kept = states.snapshot()
        >>> sorted(kept), kept["rows/dual"].shape
        (['clients', 'initial/dual', 'rounds', 'rows/dual'], torch.Size([1, 1]))
        >>> StackedStates.restored(kept, 1000).row(7)
        {'dual': tensor([1.])}
        """
        ids_S = self._round_N.nonzero().flatten()
        return {
            "clients": ids_S,
            "rounds": self._round_N[ids_S],
            **{f"initial/{name}": value for name, value in self._initial.items()},
            **{f"rows/{name}": stack[ids_S] for name, stack in self._stacks.items()},
            **{f"earlier/{name}": stack[ids_S] for name, stack in self._earlier.items()},
        }

    @classmethod
    def restored(cls, kept: Arrays, num_clients: int) -> StackedStates:
        """Return the states of a `snapshot`."""
        states = cls(_below(kept, "initial/"), num_clients, bool(_below(kept, "earlier/")))
        states._round_N[kept["clients"]] = kept["rounds"]
        for stacks, prefix in ((states._stacks, "rows/"), (states._earlier, "earlier/")):
            for name, rows_S in _below(kept, prefix).items():
                stacks[name].index_copy_(0, kept["clients"], rows_S)
        return states


def _below(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _stacked(initial: Arrays, num_clients: int) -> dict[str, Tensor]:
    """Return ``N`` copies of a state; zeros take no memory until somebody writes to them."""
    return {
        name: value.expand(num_clients, *value.shape).clone()
        if bool(value.any())
        else value.new_zeros(num_clients, *value.shape)
        for name, value in initial.items()
    }
