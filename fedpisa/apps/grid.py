"""The Grid of real nodes, which repeats requests whose messages were lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Final, Self, final

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedpisa.apps.records import NO_CLIENT, NodeRecord, RunRecord
from fedpisa.components import printable
from fedpisa.flower.compat import TRANSPORT_ERRORS, Run
from fedpisa.flower.engine_grid import EngineGrid
from fedpisa.flower.messages import CONFIG, SERVER_ROUND
from fedpisa.server.limited_log import LimitedLog
from fedpisa.server.reply_checks import MOST_EXAMPLES

PAUSE: Final = 0.5
"""Seconds between two queries for replies."""
PAUSES: Final = 4
"""Number of pauses between two queries for the connected nodes."""
_LOG: Final = getLogger("flwr")


@final
class NodeGrid(EngineGrid):
    """The Grid to the nodes of a run.

    The same nodes take part from the first round to the last. A request is sent again if its node was restarted, or if
    Flower reports its loss, as soon as the node is connected. A client gives the same reply to a repeated request; see
    `fedpisa.flower.client_app.state_before`. Only the first reply to a request counts.

    Parameters
    ----------
    grid
        Flower's Grid.
    nodes
        Each node's description of itself.
    run_record
        The description of the run. Each node gets it with its client number.
    pause
        Function that waits for a number of seconds.
    """

    engine = "flower"

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[int, NodeRecord],
        run_record: RunRecord,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.grid, self.nodes, self.run_record, self.pause = grid, dict(nodes), run_record, pause
        self.log = LimitedLog()

    @classmethod
    def connect(
        cls,
        grid: Grid,
        run_record: RunRecord,
        expected: NodeRecord,
        timeout: float,
        pause: Callable[[float], None] = time.sleep,
    ) -> Self:
        """Wait for the nodes, and ask each for a description of its samples.

        Parameters
        ----------
        grid
            Flower's Grid.
        run_record
            The description of the run.
        expected
            The description that each node must give, apart from its client number and its number of samples.
        timeout
            Seconds to wait for the nodes, and then for their answers.
        pause
            Function that waits for a number of seconds.

        Raises
        ------
        ValueError
            If a node is missing or does not fit.
        """
        num_clients, deadline = run_record.num_clients, time.monotonic() + timeout
        _LOG.info("waiting for %d nodes", num_clients)
        while len(node_ids := sorted(grid.get_node_ids())) < num_clients:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{len(node_ids)} of num-clients = {num_clients} nodes were connected after {timeout:g} s: "
                    "start the others, or increase connect-timeout"
                )
            pause(PAUSE)
        if len(node_ids) > num_clients:
            raise ValueError(
                f"{len(node_ids)} nodes are connected, and num-clients = {num_clients}: make the numbers equal"
            )
        asking = cls(grid, {}, run_record, pause)
        questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in node_ids]
        replies = asking.send_and_receive(questions, timeout=timeout)
        answers = {reply.metadata.src_node_id: reply for reply in replies}
        nodes: dict[int, NodeRecord] = {}
        for node_id in node_ids:
            if node_id not in answers:
                raise ValueError(f"node {node_id} did not answer within {timeout:g} s: see its log")
            nodes[node_id] = _checked(node_id, answers[node_id], expected)
        return cls(grid, _numbered(nodes), run_record, pause)

    @property
    def client_states(self) -> None:
        """``None``, because the nodes keep them."""
        return

    @property
    def clients(self) -> Mapping[int, int]:
        """Every node's client number."""
        return {node_id: node.client for node_id, node in self.nodes.items()}

    @property
    def sizes_N(self) -> list[int]:
        """The number of samples that each client reported before round 1."""
        return [node.num_examples for node in sorted(self.nodes.values(), key=lambda node: node.client)]

    @property
    def info(self) -> Mapping[str, object]:
        """The run's number, and each client's node and number of samples."""
        ordered = sorted(self.nodes.items(), key=lambda pair: pair[1].client)
        nodes = [{"node": str(node_id), "num_examples": node.num_examples} for node_id, node in ordered]
        return {"run": self.run_record.run, "nodes": nodes}

    def snapshot(self) -> dict[str, Tensor]:
        """Return nothing, because the nodes keep their states."""
        return {}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Do nothing, because the nodes keep their states."""

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's run."""
        return self.grid.run

    def get_node_ids(self) -> list[int]:
        """Return all nodes of the run, connected or not."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages unchanged."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send requests, and return the replies that arrive within ``timeout`` seconds, at most one for each node."""
        exchange = _Exchange(self, {message.metadata.dst_node_id: message for message in messages})
        deadline = None if timeout is None else time.monotonic() + timeout
        exchange.send(list(exchange.requests))
        while exchange.missing and (deadline is None or time.monotonic() < deadline):
            for _ in range(PAUSES):
                exchange.receive()
                if not exchange.missing:
                    break
                self.pause(PAUSE)
            else:
                exchange.send_again()
        for node_id in exchange.missing:
            exchange.warn(f"client {self.name_of(node_id)} did not reply within {timeout:g} s")
        return list(exchange.replies.values())

    def addressed(self, request: Message) -> Message:
        """Return a new message with the content of a request and the description of the run."""
        node_id, content = request.metadata.dst_node_id, request.content
        node = self.nodes.get(node_id)
        record = self.run_record if node is None else replace(self.run_record, client=node.client)
        config = content.config_records.get(CONFIG, ConfigRecord())
        return Message(
            RecordDict({**content, RunRecord.NAME: record.to_record()}),
            node_id,
            request.metadata.message_type,
            group_id=str(config.get(SERVER_ROUND, "")),
        )

    def activations(self) -> dict[int, str]:
        """Return the connected nodes, with the times of their last starts."""
        return {node.node_id: node.last_activated_at for node in self.grid.get_nodes()}

    def name_of(self, node_id: int) -> str:
        """Return a node's client number as text, or the node's own number."""
        return str(self.nodes[node_id].client if node_id in self.nodes else f"of node {node_id}")


@final
@dataclass
class _Exchange:
    """The requests of a round, and the replies so far."""

    grid: NodeGrid
    requests: dict[int, Message]

    def __post_init__(self) -> None:
        self.replies: dict[int, Message] = {}
        self.sent: dict[str, int] = {}
        self.started: dict[int, str] = self.grid.activations()

    def warn(self, text: str) -> None:
        """Log a text about the round of the requests."""
        records = [request.content.config_records for request in self.requests.values()]
        rounds = [record[CONFIG][SERVER_ROUND] for record in records if CONFIG in record]
        self.grid.log.warning(int(str(rounds[0])) if rounds else 0, text)

    @property
    def missing(self) -> list[int]:
        """The nodes without a reply."""
        return [node_id for node_id in self.requests if node_id not in self.replies]

    def send(self, node_ids: list[int]) -> None:
        messages = [self.grid.addressed(self.requests[node_id]) for node_id in node_ids]
        if messages:
            numbers = self.grid.push_messages(messages)
            self.sent |= {n: node_id for n, node_id in zip(numbers, node_ids, strict=True) if n is not None}

    def receive(self) -> None:
        for reply in self.grid.pull_messages(list(self.sent)) if self.sent else ():
            node_id = self.sent.pop(reply.metadata.reply_to_message_id, None)
            if node_id is None or node_id in self.replies:
                continue
            if reply.has_error() and reply.error.code in TRANSPORT_ERRORS:
                reason = printable(reply.error.reason)
                self.warn(f"a message to client {self.grid.name_of(node_id)} got lost: {reason}")
            elif reply.metadata.src_node_id == node_id:
                self.replies[node_id] = reply

    def send_again(self) -> None:
        """Send the requests of connected nodes again that have no message in transit or were restarted."""
        activations, in_transit = self.grid.activations(), set(self.sent.values())
        lost = [
            node_id
            for node_id in self.missing
            if node_id in activations
            and (node_id not in in_transit or activations[node_id] != self.started.get(node_id))
        ]
        for node_id in lost:
            self.warn(f"client {self.grid.name_of(node_id)} is asked again")
            self.started[node_id] = activations[node_id]
        self.send(lost)


def _checked(node_id: int, answer: Message, expected: NodeRecord) -> NodeRecord:
    """Return a node's description of itself, if it is as expected."""
    if answer.has_error():
        raise ValueError(f"node {node_id} cannot take part: {printable(answer.error.reason, 400)}")
    try:
        node = NodeRecord.of(answer.content)
    except ValueError as error:
        raise ValueError(f"node {node_id} cannot take part: {error}") from error
    plays = bool(expected.actions)
    same = "observations, actions" if plays else "columns, classes"
    for what, of_node, of_server in (
        ("actions of the kind", node.actions or "none", expected.actions or "none"),
        ("observations of shape" if plays else "samples of shape", node.shape, expected.shape),
        (
            f"outputs for its {'actions' if plays else 'labels'},",
            node.num_outputs,
            expected.num_outputs,
        ),
        ("a model with the fingerprint", node.layout, expected.layout),
    ):
        if of_node != of_server:
            raise ValueError(
                f"node {node_id} has {what} {printable(of_node)}, the server {of_server}: use the same {same}, "
                "model and version of fedpisa on all nodes"
            )
    if not 1 <= node.num_examples <= MOST_EXAMPLES:
        raise ValueError(
            f"node {node_id} has {printable(node.num_examples, 30)} samples: it needs 1 to {MOST_EXAMPLES}"
        )
    return node


def _numbered(nodes: Mapping[int, NodeRecord]) -> dict[int, NodeRecord]:
    """Return the nodes with client numbers: those that the nodes name, or the nodes' order if none names one."""
    numbers = [node.client for node in nodes.values()]
    if all(number == NO_CLIENT for number in numbers):
        return {n: replace(node, client=i) for i, (n, node) in enumerate(sorted(nodes.items()))}
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"the nodes' partition-ids are {sorted(numbers)}: give each of the {len(numbers)} nodes one of "
            f"0 to {len(numbers) - 1}, or give none"
        )
    return dict(nodes)
