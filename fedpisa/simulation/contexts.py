"""Grids of Flower client apps: a context for each client, and arrays as bytes in transit."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, RecordDict
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.flower.client_app import STATE
from fedpisa.flower.compat import decode, encode
from fedpisa.simulation.grid import InProcessGrid
from fedpisa.strategies.base import ClientStates


class ContextGrid(InProcessGrid, ABC):
    """A Grid that keeps every client's Flower context.

    Parameters
    ----------
    num_clients
        ``N``; client ``i`` finds ``partition-id = i`` and ``num-partitions = N`` in its node config.
    run_config
        Flower's run config, the same for all clients.
    """

    def __init__(self, num_clients: int, run_config: Mapping[str, bool | float | int | str] = {}) -> None:
        super().__init__(num_clients)
        self.run_config = dict(run_config)
        self.contexts: dict[int, Context] = {}

    @property
    def client_states(self) -> ClientStates:
        """The clients' states, which are in this process."""
        return self

    def context(self, client_id: int) -> Context:
        """Return a client's context, which keeps its state between rounds."""
        if client_id not in self.contexts:
            self.contexts[client_id] = Context(
                run_id=0,
                node_id=self.get_node_ids()[client_id],
                node_config={"partition-id": client_id, "num-partitions": self.num_clients},
                state=RecordDict(),
                run_config=dict(self.run_config),
            )
        return self.contexts[client_id]

    def state(self, client_id: int) -> Arrays | None:
        """Return one client's state; see `fedpisa.strategies.base.ClientStates`."""
        context = self.contexts.get(client_id)
        if context is None or STATE not in context.state:
            return None
        record = context.state.array_records[STATE]
        return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]``; see `fedpisa.strategies.base.ClientStates`."""
        total = torch.zeros((), device=weights_N.device)
        for client_id in sorted(self.contexts):
            state = self.state(client_id)
            if state is not None:
                value = state[name].to(weights_N.device)
                total = total + weights_N[client_id].to(value.dtype) * value
        return total

    def snapshot(self) -> dict[str, Tensor]:
        """Return the state of each client's context as bytes, for `restore`."""
        return {
            str(client_id): torch.from_numpy(np.frombuffer(bytearray(encode(context.state)), dtype=np.uint8))
            for client_id, context in self.contexts.items()
        }

    def restore(self, kept: Arrays) -> None:
        """Replace all contexts by those of a `snapshot`."""
        self.contexts.clear()
        for client_id, content in kept.items():
            self.context(int(client_id)).state = decode(content.numpy().tobytes())


def transport(content: RecordDict) -> RecordDict:
    """Return a copy of a record dict as a network would deliver it: arrays as bytes, nothing shared.

    Examples
    --------
    >>> sent = RecordDict({"arrays": ArrayRecord([torch.zeros(2).numpy()])})
    >>> received = transport(sent)
    >>> received["arrays"]["0"].data == sent["arrays"]["0"].data, received["arrays"] is sent["arrays"]
    (True, False)
    """
    copy = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copy[name] = arrays = ArrayRecord()
            for key, array in record.items():
                arrays[key] = Array(array.dtype, tuple(array.shape), array.stype, array.data)
        else:
            copy[name] = deepcopy(record)
    return copy
