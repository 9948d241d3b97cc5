"""Simulated nodes: the real client app, server and files, behind a Grid that loses chosen messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from fedpisa.apps.client_app import app
from fedpisa.apps.environments import actions, playing
from fedpisa.apps.grid import NodeGrid
from fedpisa.apps.records import NO_CLIENT, NodeRecord, RunRecord
from fedpisa.config.flower import NodeSettings, to_run_config
from fedpisa.config.run import RunConfig
from fedpisa.flower.messages import CONFIG, SERVER_ROUND
from fedpisa.runs.events import Event
from fedpisa.runs.results import Result
from fedpisa.runs.runner import train
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.loop import LoopGrid

NODE_UNAVAILABLE = 3


class Network(LoopGrid):
    """Nodes with separate folders, which lose their contexts when they restart.

    Node ``i + 2`` has the partition ``order[i]``. ``trouble`` decides before a delivery what happens to a
    request. None delivers it. ``request`` and ``reply`` lose the request or the reply and restart the node.
    ``report`` loses the reply, and Flower reports this. ``files`` deletes the node's files before the
    delivery.
    """

    def __init__(self, folder: Path, run_config: Any, order: list[int], **node_config: Any) -> None:
        super().__init__(app, len(order), run_config)
        self.folder, self.order, self.node_config = folder, order, node_config
        self.trouble: Callable[[int, int], str | None] = lambda server_round, client: None
        self.starts = dict.fromkeys(self.get_node_ids(), 0)
        self.delivered = 0

    def context(self, client_id: int) -> Context:
        if client_id not in self.contexts:
            own = {"partition-id": self.order[client_id], "num-partitions": len(self.order)}
            own |= {key: value[client_id] for key, value in self.node_config.items()}
            own = {key: value for key, value in own.items() if value is not None}
            state = str(self.folder / f"node-{client_id}")
            self.contexts[client_id] = Context(
                run_id=0,
                node_id=client_id + 2,
                node_config={**own, "state-dir": state},
                state=RecordDict(),
                run_config=dict(self.run_config),
            )
        return self.contexts[client_id]

    def restart(self, node_id: int) -> None:
        """Restart a node, which loses what it had in memory."""
        self.starts[node_id] += 1
        self.contexts.pop(node_id - 2, None)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=n, last_activated_at=str(starts)) for n, starts in self.starts.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            config = message.content.config_records.get(CONFIG)
            server_round = int(str(config[SERVER_ROUND])) if config else 0
            what = self.trouble(server_round, self.order[node_id - 2])
            if what == "request":
                self._pushed += 1
                numbers.append(f"lost-{self._pushed}")
                self.restart(node_id)
                continue
            if what == "files":
                self.restart(node_id)
                for file in (self.folder / f"node-{node_id - 2}").rglob("*.safetensors"):
                    file.unlink()
            self.delivered += 1
            try:
                (number,) = super().push_messages([message])
            except RuntimeError as error:  # Flower sends an error reply if the app fails
                number = message.metadata.message_id
                self._replies[number] = Message(Error(1, str(error.__cause__)), reply_to=message)
            numbers.append(number)
            if what == "reply":
                self._replies.pop(number)
                self.restart(node_id)
            elif what == "report":
                self._replies[number] = Message(Error(NODE_UNAVAILABLE, "away"), reply_to=message)
        return numbers


def once(what: str, *when: tuple[int, int]) -> Callable[[int, int], str | None]:
    """Return a trouble that occurs once at each ``(round, client)``."""
    left = set(when)

    def trouble(server_round: int, client: int) -> str | None:
        if (server_round, client) not in left:
            return None
        left.discard((server_round, client))
        return what

    return trouble


def start(
    network: Network,
    config: RunConfig,
    out: Path | None,
    *,
    resume: Path | None = None,
    run: str = "7",
    own_data: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Run the server app's work without waiting."""

    def connect(federation: Federation) -> NodeGrid:
        model, layout = str(federation.config.model), federation.task.layout.fingerprint
        about = federation.classes, federation.columns, federation.vocabulary is not None
        tokenizer = federation.tokenizer or ""
        inputs = "" if federation.inputs is None else federation.inputs.to_text()
        more = tokenizer, inputs, playing(federation.environments)
        record = RunRecord(run, NO_CLIENT, config.num_clients, model, *about, *more)
        shapes = federation.shape, federation.num_outputs, layout
        wanted = NodeRecord(NO_CLIENT, own_data, 0, *shapes, actions(federation.environments))
        return NodeGrid.connect(network, record, wanted, timeout=600, pause=lambda seconds: None)

    config = config.replace({"checkpoint-every": 1})
    return train(
        config,
        out,
        resume=resume,
        on_event=on_event,
        simulation_of=lambda resolved, partition=None: Simulation(
            resolved, connect, clients_have_data=own_data
        ),
    )


@pytest.fixture
def nodes() -> Any:
    def network(
        folder: Path, config: RunConfig, order: list[int] | None = None, **node_config: Any
    ) -> Network:
        settings = NodeSettings(node_data="own") if "data" in node_config else NodeSettings()
        order = list(range(config.num_clients)) if order is None else order
        return Network(folder, to_run_config(settings, config), order, **node_config)

    return SimpleNamespace(network=network, start=start, once=once)
