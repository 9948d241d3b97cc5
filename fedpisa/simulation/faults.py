"""What goes wrong in a federation, on purpose: lost messages, crashes, bad replies, slow and absent clients.

A `FaultyGrid` stands between a strategy and a Grid. What it lets through are ordinary messages, so the server
meets a simulated fault by the code by which it meets a real one.

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
"""Flower's code of an error of the client app."""


@final
@dataclass(frozen=True)
class Faults:
    """How often, per client and round, what goes wrong; and how fast clients are.

    Parameters
    ----------
    seed
        The run's seed.
    dropout
        Probability that the request is lost, so that the client does nothing.
    crash
        That the client fails in the middle of its work: it keeps what it had, and the server hears of it.
    late
        That the reply comes after the server stopped waiting: the client has moved, and the server does not know.
    nan
        That the reply's numbers are NaN.
    corrupt
        That the reply is damaged in some other way.
    pace
        Seconds per gradient of the clients in a round; see `fedpisa.clients.devices`.
    reachable
        Who of the clients can be reached in a round.
    round_timeout
        Seconds that the server waits.
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
        """Return to whom one of the faults happens in a round, ``(S,)``."""
        rate: float = getattr(self, what)
        return uniform(self.seed, f"fault-{what}", clients_S, server_round) < rate


@final
class FaultyGrid(InProcessGrid):
    """A Grid on which `Faults` happen to training messages.

    Parameters
    ----------
    grid
        What carries the messages.
    faults
        What happens to them.
    """

    def __init__(self, grid: InProcessGrid, faults: Faults) -> None:
        super().__init__(grid.num_clients)
        self.grid, self.faults, self.engine = grid, faults, grid.engine
        self.simulated_seconds: float | None = None

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Deliver what is not lost, and return what comes back in time."""
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
        # A message is known by its node: each has one.
        answers = {reply.metadata.src_node_id: reply for reply in self.grid.exchange(delivered)}
        late_S = self._late(clients_S, answers, server_round, all_answer=not lost_S.any())
        spoilt_S = [faults.happens(what, clients_S, server_round) for what in ("nan", "corrupt")]
        replies: list[Message] = []
        for position, message in enumerate(messages):
            if crashed_S[position]:
                error = Error(CRASHED, "the client crashed")
                replies.append(Message(error, reply_to=message))
            elif not (lost_S[position] or late_S[position]):
                reply = answers[message.metadata.dst_node_id]
                rng = generator(faults.seed, "corruption", int(clients_S[position]), server_round)
                if spoilt_S[0][position]:
                    _not_finite(reply, rng)
                elif spoilt_S[1][position]:
                    CORRUPTIONS[int(rng.integers(len(CORRUPTIONS)))](reply, rng)
                replies.append(reply)
        return replies

    def _late(
        self,
        clients_S: NDArray[np.int64],
        answers: Mapping[int, Message],
        server_round: int,
        *,
        all_answer: bool,
    ) -> NDArray[np.bool_]:
        """Return whose replies come too late, and set the clock to how long the server waited."""
        late_S = self.faults.happens("late", clients_S, server_round)
        if self.faults.pace is None:
            return late_S
        nodes = self.get_node_ids()
        steps_S = np.zeros(len(clients_S))
        for position, client in enumerate(clients_S):
            if nodes[client] in answers:
                metrics = answers[nodes[client]].content.metric_records[METRICS]
                steps_S[position] = float(str(metrics["local-steps"]))
        seconds_S = steps_S * self.faults.pace(clients_S, server_round)
        late_S |= seconds_S > self.faults.round_timeout
        # A client that does not answer keeps the server waiting to the end.
        waits = bool(late_S.any()) or not all_answer
        self.simulated_seconds = self.faults.round_timeout if waits else float(seconds_S.max())
        return late_S

    @property
    def client_states(self) -> ClientStates | None:
        """What the Grid has: faults change no state."""
        return self.grid.client_states

    def snapshot(self) -> dict[str, Tensor]:
        """Return the clients' states; faults have none."""
        return self.grid.snapshot()

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take up a `snapshot`."""
        self.grid.restore(kept)

    def close(self) -> None:
        """End what the Grid started."""
        self.grid.close()


def _replace(reply: Message, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Change the numbers of a reply's first array."""
    arrays = reply.content.array_records[ARRAYS]
    name = next(iter(arrays))
    arrays[name] = Array(change(arrays[name].numpy()))


def _not_finite(reply: Message, rng: np.random.Generator) -> None:
    _replace(reply, lambda values: np.full_like(values, np.nan))


def _longer(reply: Message, rng: np.random.Generator) -> None:
    _replace(reply, lambda values: np.append(values, values[:1]))


def _absurd(reply: Message, rng: np.random.Generator) -> None:
    # In float32 still finite, and far beyond any model.
    _replace(reply, lambda values: np.full_like(values, 1e30))


def _cut(reply: Message, rng: np.random.Generator) -> None:
    """Lose the end of an array's bytes."""
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
"""Ways in which a reply can be damaged."""
