"""Simulated faults: lost messages, crashes, bad replies, slow and absent clients.

A `FaultyGrid` passes messages between a strategy and a Grid. Faulty replies are ordinary messages, so the server
handles simulated and real faults with the same code.

Shapes: ``S`` clients of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from flwr.app import Array, Error, Message, MessageType
from numpy.typing import NDArray
from torch import Tensor

from fedpisa.clients.devices import Pace, Reachable, uniform
from fedpisa.flower.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND, Broadcast
from fedpisa.rng import generator
from fedpisa.simulation.grid import InProcessGrid
from fedpisa.strategies.base import ClientStates

CRASHED: Final = 1
"""Flower's error code for a failed client app."""


@final
@dataclass(frozen=True)
class Faults:
    """Rates of the faults per client and round, and the clients' speed.

    Parameters
    ----------
    seed
        The run's seed.
    dropout
        Probability that the request is lost; the client does nothing.
    crash
        Probability that the client fails during its work; it keeps its old state, and the server gets an error.
    late
        Probability that the reply arrives after the server stopped waiting; the client keeps its new state.
    nan
        Probability that the reply's numbers are NaN.
    corrupt
        Probability that the reply is damaged in one of the ways in `CORRUPTIONS`.
    pace
        Function of clients and round that returns seconds per gradient; see `fedpisa.clients.devices`.
    reachable
        Function of clients and round that returns whether each client can be reached.
    round_timeout
        Seconds that the server waits for replies.
    """

    seed: int = 0
    dropout: float = 0.0
    crash: float = 0.0
    late: float = 0.0
    nan: float = 0.0
    corrupt: float = 0.0
    pace: Callable[[NDArray[np.int64], int], Pace] | None = None
    reachable: Callable[[NDArray[np.int64], int], Reachable] | None = None
    round_timeout: float = 3600.0

    def happens(self, what: str, clients_S: NDArray[np.int64], server_round: int) -> NDArray[np.bool_]:
        """Return whether a fault happens to each client in a round, ``(S,)``."""
        rate: float = getattr(self, what)
        return uniform(self.seed, f"fault-{what}", clients_S, server_round) < rate


@final
class FaultyGrid(InProcessGrid):
    """A Grid that adds `Faults` to the training messages of another Grid.

    Parameters
    ----------
    grid
        The Grid that delivers the messages.
    faults
        The faults and the clients' speed.
    """

    def __init__(self, grid: InProcessGrid, faults: Faults) -> None:
        super().__init__(grid.num_clients)
        self.grid, self.faults, self.engine = grid, faults, grid.engine
        self.simulated_seconds: float | None = None

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Deliver the requests that are not lost, and return the replies that arrive in time."""
        messages = list(requests)
        if not messages or messages[0].metadata.message_type != MessageType.TRAIN:
            return list(self.grid.exchange(messages))
        faults, server_round = self.faults, int(str(messages[0].content.config_records[CONFIG][SERVER_ROUND]))
        clients_S = np.array([self.client_of(message.metadata.dst_node_id) for message in messages])
        lost_S = faults.happens("dropout", clients_S, server_round)
        if faults.reachable is not None:
            lost_S |= ~faults.reachable(clients_S, server_round)
        crashed_S = faults.happens("crash", clients_S, server_round) & ~lost_S
        delivered = [m for m, gone in zip(messages, lost_S | crashed_S, strict=True) if not gone]
        by_node = {reply.metadata.src_node_id: reply for reply in self.grid.exchange(delivered)}
        replies_S = [by_node.get(message.metadata.dst_node_id) for message in messages]
        late_S = self._late(clients_S, lost_S, replies_S, server_round)
        nan_S, corrupt_S = (faults.happens(what, clients_S, server_round) for what in ("nan", "corrupt"))
        arrived: list[Message] = []
        for position, (message, reply) in enumerate(zip(messages, replies_S, strict=True)):
            if crashed_S[position]:
                arrived.append(Message(Error(CRASHED, "the client crashed"), reply_to=message))
            elif reply is not None and not late_S[position]:
                rng = generator(faults.seed, "corruption", int(clients_S[position]), server_round)
                uploads = reply.has_content() and bool(reply.content.array_records[ARRAYS])
                if nan_S[position] and uploads:
                    _not_finite(reply, rng)
                elif corrupt_S[position] and reply.has_content():
                    ways = CORRUPTIONS if uploads else WITHOUT_ARRAYS
                    ways[int(rng.integers(len(ways)))](reply, rng)
                arrived.append(reply)
        return arrived

    def _late(
        self,
        clients_S: NDArray[np.int64],
        lost_S: NDArray[np.bool_],
        replies_S: list[Message | None],
        server_round: int,
    ) -> NDArray[np.bool_]:
        """Return whether each client's reply is late, and set the simulated seconds of the round."""
        late_S = self.faults.happens("late", clients_S, server_round)
        if self.faults.pace is None:
            return late_S
        steps_S = np.zeros(len(clients_S))
        for position, reply in enumerate(replies_S):
            if reply is not None and reply.has_content():
                steps_S[position] = float(str(reply.content.metric_records[METRICS]["local-steps"]))
        seconds_S = steps_S * self.faults.pace(clients_S, server_round)
        late_S |= seconds_S > self.faults.round_timeout
        # The server waits for the whole timeout if a reply is missing.
        waits = bool((late_S | lost_S).any())
        self.simulated_seconds = self.faults.round_timeout if waits else float(seconds_S.max())
        return late_S

    @property
    def info(self) -> Mapping[str, object]:
        """What ``run.json`` says about the inner Grid."""
        return self.grid.info

    @property
    def client_states(self) -> ClientStates | None:
        """The client states of the inner Grid."""
        return self.grid.client_states

    def snapshot(self) -> dict[str, Tensor]:
        """Return the `snapshot` of the inner Grid; faults have no state."""
        return self.grid.snapshot()

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Restore a `snapshot` of the inner Grid."""
        self.grid.restore(kept)

    def close(self) -> None:
        """Close the inner Grid."""
        self.grid.close()


def _replace(reply: Message, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Apply a function to the numbers of a reply's first array."""
    arrays = reply.content.array_records[ARRAYS]
    name = next(iter(arrays))
    arrays[name] = Array(change(arrays[name].numpy()))


def _not_finite(reply: Message, rng: np.random.Generator) -> None:
    _replace(reply, lambda values: np.full_like(values, np.nan))


def _longer(reply: Message, rng: np.random.Generator) -> None:
    _replace(reply, lambda values: np.append(values, values[:1]))


def _absurd(reply: Message, rng: np.random.Generator) -> None:
    # Finite in float32, and far larger than any model.
    _replace(reply, lambda values: np.full_like(values, 1e30))


def _cut(reply: Message, rng: np.random.Generator) -> None:
    """Cut off the end of the first array's bytes."""
    arrays = reply.content.array_records[ARRAYS]
    name = next(iter(arrays))
    array = arrays[name]
    data = array.data[: int(rng.integers(len(array.data)))]
    arrays[name] = Array(array.dtype, tuple(array.shape), array.stype, data)


def _renamed(reply: Message, rng: np.random.Generator) -> None:
    arrays = reply.content.array_records[ARRAYS]
    name = next(iter(arrays))
    arrays["unknown"] = arrays.pop(name)


def _stale(reply: Message, rng: np.random.Generator) -> None:
    config = reply.content.config_records[CONFIG]
    config[SERVER_ROUND] = int(str(config[SERVER_ROUND])) - 1


def _miscounted(reply: Message, rng: np.random.Generator) -> None:
    reply.content.metric_records[METRICS][NUM_EXAMPLES] = -1


CORRUPTIONS: Final = (_longer, _absurd, _cut, _renamed, _stale, _miscounted)
"""Functions that each damage a reply in one way."""
WITHOUT_ARRAYS: Final = (_stale, _miscounted)
"""The same for replies without arrays, which the reference `local` has."""
