"""The cost of a node that lies within all bounds: SISA on three nodes, one of which lies.

Prints the test accuracy after 12 rounds for each lie. No lie changes the number of samples, so the node has its own
weight, about a third.

    python experiments/lies.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import final

import numpy as np
from flwr.app import Array, Error, Message

from fedpisa.config.run import RunConfig
from fedpisa.flower.client_app import make_client_app
from fedpisa.flower.messages import ARRAYS, CONFIG, SERVER_ROUND, Broadcast
from fedpisa.runs.simulation import Simulation
from fedpisa.server.reply_filter import FLOOR, MAX_UPLOAD_NORM
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.loop import LoopGrid

RUN: Mapping[str, object] = {
    "algorithm": "sisa",
    "dataset": "digits",
    "model": "logistic",
    "partitioner": "label-dirichlet",
    "dirichlet-alpha": 10,
    "num-clients": 3,
    "num-server-rounds": 12,
}
LIAR = 2
"""The client that lies."""

Lie = Callable[[Message, Message, Sequence[Message]], Message | None]
"""Function of the request, the honest reply and the other replies; it returns the reply that is sent, if any."""


@final
class LyingGrid(LoopGrid):
    """Simulated clients that the server does not trust, one of which lies.

    Parameters
    ----------
    federation
        The run's model and data.
    lie
        Replaces the replies of the client `LIAR`.
    """

    def __init__(self, federation: Federation, lie: Lie) -> None:
        app = make_client_app(lambda context: federation.client(int(context.node_config["partition-id"])))
        super().__init__(app, federation.config.num_clients)
        self.lie = lie

    @property
    def client_states(self) -> None:  # type: ignore[override]
        """They stay with the clients."""
        return

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Return the replies, one of them replaced."""
        messages = list(requests)
        replies = list(super().exchange(messages))
        for request, reply in zip(messages, replies, strict=True):
            if self.client_of(request.metadata.dst_node_id) == LIAR:
                others = [other for other in replies if other is not reply]
                replies = others if (lied := self.lie(request, reply, others)) is None else [*others, lied]
        return replies


def round_of(request: Message) -> int:
    """Return the round of a request."""
    return int(str(request.content.config_records[CONFIG][SERVER_ROUND]))


def vector(message: Message) -> np.ndarray:
    """Return the first array of a message."""
    values: np.ndarray = next(iter(message.content.array_records[ARRAYS].values())).numpy()
    return values.astype(np.float64)


def scaled(factor: float) -> Lie:
    """Return the lie that multiplies the upload."""

    def lie(request: Message, reply: Message, others: Sequence[Message]) -> Message:
        reply.content.array_records[ARRAYS]["z"] = Array((factor * vector(reply)).astype(np.float32))
        return reply

    return lie


def at_the_bound() -> Lie:
    """Return the lie that sends the largest update that is accepted, in the direction opposite to the honest one."""
    start: list[float] = []

    def lie(request: Message, reply: Message, others: Sequence[Message]) -> Message:
        w = vector(request)
        honest = max(float(np.linalg.norm(vector(other) - w)) for other in others)
        start.append(max(1 + float(np.linalg.norm(w)), honest))
        length = 0.999 * MAX_UPLOAD_NORM * max(min(honest, start[0]), FLOOR * start[0])
        update = w - vector(reply)
        z = w + length * update / np.linalg.norm(update)
        reply.content.array_records[ARRAYS]["z"] = Array(z.astype(np.float32))
        return reply

    return lie


def only(first: int, last: int, lie: Lie, afterwards: str = "honest") -> Lie:
    """Return a lie that is told in some rounds; afterwards the client is ``honest`` or sends an ``error``."""

    def some(request: Message, reply: Message, others: Sequence[Message]) -> Message | None:
        if first <= round_of(request) <= last:
            return lie(request, reply, others)
        return reply if afterwards == "honest" else Message(Error(1, "gone"), reply_to=request)

    return some


LIES: Mapping[str, Lie] = {
    "none": lambda request, reply, others: reply,
    "no reply at all": lambda request, reply, others: None,
    "`-z` in each round": scaled(-1),
    "`10 z` in each round": scaled(10),
    "an update at the bound in each round": at_the_bound(),
    "an update at the bound in round 1, then honest": only(1, 1, at_the_bound()),
    "an update at the bound in round 1, then errors": only(1, 1, at_the_bound(), "error"),
}


def accuracy(lie: Lie) -> float:
    """Return the test accuracy after the last round."""
    config = RunConfig.from_mapping(RUN)
    simulation = Simulation(config, lambda federation: LyingGrid(federation, lie))
    *_, last = simulation.rows()
    return float(str(last["test_accuracy"]))


if __name__ == "__main__":
    print("| lie | accuracy |", "| --- | --- |", sep="\n")
    for name, lie in LIES.items():
        print(f"| {name} | {accuracy(lie):.3f} |", flush=True)
