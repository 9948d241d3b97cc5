"""The clients' states in the stacked engine."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.storage import client_rows


@final
class StackedStates:
    """The states of all clients, stacked along a first axis ``N``.

    The states are in memory, or in files if all of them take more than ``limit`` bytes; see
    `fedpisa.storage.client_rows`. A client that has never taken part uses neither: its state is the initial one.

    Parameters
    ----------
    initial
        One client's state before its first round.
    num_clients
        ``N``.
    incremental
        Whether to keep also each client's state from before its last round, for `roll_back_unconfirmed`.
    limit
        Bytes that the states may take in memory.

    Examples
    --------
    >>> import torch
    >>> states = StackedStates({"dual": torch.zeros(2)}, num_clients=3)
    >>> states.write(torch.tensor([1]), {"dual": torch.ones(1, 2)}, server_round=1)
    >>> states.read(torch.tensor([1, 2]))["dual"].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        initial: Arrays,
        num_clients: int,
        incremental: bool = False,
        limit: int = client_rows.UNLIMITED,
    ) -> None:
        row = sum(value.numel() * value.element_size() for value in initial.values()) * (1 + incremental)
        # Either all tensors are in memory or all are in files, except tensors of at most 16 bytes per client.
        limit = client_rows.UNLIMITED if num_clients * row <= limit else min(limit, 16 * num_clients)
        self._initial = {name: value.clone() for name, value in initial.items()}
        self._starts_at_zero = {name: not bool(value.any()) for name, value in initial.items()}
        self._stacks = self._zeros(num_clients, limit)
        self._earlier = self._zeros(num_clients, limit) if incremental else {}
        device = next((value.device for value in initial.values()), None)
        # The last round of each client; 0 for a client that has never taken part.
        self._round_N = torch.zeros(num_clients, dtype=torch.int64, device=device)

    def read(self, ids_S: Tensor) -> dict[str, Tensor]:
        """Return copies of these clients' states."""
        return {name: self._read(name, ids_S) for name in self._stacks}

    def roll_back_unconfirmed(self, ids_S: Tensor, confirmed_S: Tensor) -> None:
        """Undo the last round of clients whose reply the server did not receive; see `LocalUpdate.incremental`."""
        lost_S = self._round_N[ids_S] != confirmed_S
        lost = ids_S[lost_S]
        if not len(lost):
            return
        for name, stack in self._stacks.items():
            client_rows.write(stack, lost, client_rows.read(self._earlier[name], lost))
        self._round_N[lost] = confirmed_S[lost_S]

    def write(self, ids_S: Tensor, states_S: Arrays, server_round: int) -> None:
        """Replace these clients' states."""
        if states_S.keys() != self._stacks.keys():
            raise ValueError(
                f"the local update returned the state {sorted(states_S)}, and its init {sorted(self._stacks)}: "
                "return the same names from both"
            )
        for name, stack in self._earlier.items():
            client_rows.write(stack, ids_S, self._read(name, ids_S))
        for name, stack in self._stacks.items():
            client_rows.write(stack, ids_S, states_S[name])
        self._round_N[ids_S] = server_round

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]``; see `fedpisa.strategies.base.ClientStates`."""
        stack = self._stacks[name]
        return client_rows.weighted_sum(weights_N * (self._round_N > 0), stack).to(stack.dtype)

    def row(self, client_id: int) -> Arrays | None:
        """Return a client's state; ``None`` if the client has never taken part."""
        if not self._round_N[client_id]:
            return None
        ids_S = torch.tensor([client_id], device=self._round_N.device)
        return {name: rows_S[0] for name, rows_S in self.read(ids_S).items()}

    def snapshot(self) -> dict[str, Tensor]:
        """Return the states of clients that have taken part and the initial state, for `restored`.

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
            **{f"rows/{name}": client_rows.read(stack, ids_S) for name, stack in self._stacks.items()},
            **{f"earlier/{name}": client_rows.read(stack, ids_S) for name, stack in self._earlier.items()},
        }

    @classmethod
    def restored(cls, kept: Arrays, num_clients: int, limit: int = client_rows.UNLIMITED) -> StackedStates:
        """Return the states from a `snapshot`."""
        states = cls(_below(kept, "initial/"), num_clients, bool(_below(kept, "earlier/")), limit)
        states._round_N[kept["clients"]] = kept["rounds"]
        for stacks, prefix in ((states._stacks, "rows/"), (states._earlier, "earlier/")):
            for name, rows_S in _below(kept, prefix).items():
                client_rows.write(stacks[name], kept["clients"], rows_S)
        return states

    def _zeros(self, num_clients: int, limit: int) -> dict[str, Tensor]:
        return {
            name: client_rows.zeros((num_clients, *value.shape), value, limit)
            for name, value in self._initial.items()
        }

    def _read(self, name: str, ids_S: Tensor) -> Tensor:
        """Return copies of rows; a client that has never taken part has the initial state."""
        stack, initial = self._stacks[name], self._initial[name]
        rows_S = client_rows.read(stack, ids_S)
        if self._starts_at_zero[name]:
            return rows_S
        seen_S = self._round_N[ids_S] > 0
        return torch.where(seen_S.view(-1, *(1,) * initial.dim()), rows_S, initial)


def _below(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
