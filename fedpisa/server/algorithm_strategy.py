"""The Flower strategy around an algorithm: messages, and the server's own step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import getLogger
from typing import Unpack, final

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.client import BUFFERS
from fedpisa.components import LOG
from fedpisa.flower.compat import to_record
from fedpisa.flower.messages import ARRAYS, CONFIG, SERVER_ROUND, Broadcast, StackedReplies, lost_states
from fedpisa.server.base import Options, ServerStrategy, averaged
from fedpisa.storage import client_rows
from fedpisa.strategies.base import Algorithm
from fedpisa.tasks.layout import ParamLayout


@final
class AlgorithmStrategy(ServerStrategy):
    """A Flower strategy around an `Algorithm`; it holds the server's state.

    Parameters
    ----------
    algorithm
        The algorithm.
    layout
        The module's parameters.
    options
        See `fedpisa.server.base.ServerStrategy`.

    Examples
    --------
    >>> from fedpisa.strategies.fedavg import FedAvg
    >>> layout = ParamLayout.of([("weight", torch.zeros(3))])
    >>> strategy = AlgorithmStrategy(FedAvg(), layout)
    >>> strategy.server is None
    True
    """

    def __init__(self, algorithm: Algorithm, layout: ParamLayout, **options: Unpack[Options]) -> None:
        super().__init__(algorithm, layout, **options)
        self._confirmed: dict[int, int] = {}
        self._begun_anew: set[int] = set()
        self._cohort_nodes: frozenset[int] = frozenset()
        self._asked: list[int] = []

    def summary(self) -> None:
        """Log the algorithm and the share of the clients in a round."""
        getLogger("flwr").info(
            "\t└──> %s, %.2f of the clients per round", self.algorithm, self.fraction_train
        )

    def start_from(self, arrays: ArrayRecord) -> ArrayRecord:
        """Set the server's state from an initial model, and return the first model to broadcast."""
        self._confirmed.clear()
        self._begun_anew.clear()
        return super().start_from(arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort, and return the broadcast to it."""
        server = self._with_model(server_round, arrays)
        cohort = self._sampled(server_round, grid)
        self._asked = [self._client_of[node] for node in cohort] if self.privacy else []
        content = RecordDict(
            {
                ARRAYS: to_record({**self._broadcast(server_round, server), **self._buffers}),
                CONFIG: ConfigRecord({**config, SERVER_ROUND: server_round}),
            }
        )
        self._cohort_nodes = frozenset(cohort) if self.reply_filter else frozenset()
        if not self.algorithm.local_update.incremental:
            return Broadcast(content, cohort)
        return Broadcast(content, cohort, [self._confirmed.get(self._client_of[node], 0) for node in cohort])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the server's step with the replies that arrived.

        If a client reports that it has lost a state on which the algorithm counts, the algorithm begins anew from that
        model. A client can cause this once in a run. Its later reports are error replies like any other.
        """
        replies = replies if isinstance(replies, StackedReplies) else list(replies)
        lost = [] if isinstance(replies, StackedReplies) else self._without_state(replies)
        arrays, metrics = self._step(server_round, replies)
        if not lost:
            return arrays, metrics
        text = "round %d: client %s lost its state: all clients begin anew from the model of this round"
        LOG.warning(text, server_round, ", ".join(map(str, lost)))
        assert self.server is not None
        self.server = self.algorithm_at(0).init(self.server["params"], self.layout)
        self._confirmed.clear()
        self._begun_anew.update(lost)
        return self._record(), metrics

    def _step(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert self.server is not None
        down = self._broadcast(server_round, self.server)
        stacked, counts = self._valid(server_round, replies, self._cohort_nodes, down)
        if stacked is None:
            return None, MetricRecord({**counts}) if counts else None
        cohort, algorithm = self._cohort(server_round, stacked), self.algorithm_at(server_round)
        self._confirmed.update(dict.fromkeys(cohort.ids_S.tolist(), server_round))
        uploads_S = dict(stacked.uploads_S)
        weights_S = algorithm.weights(cohort)
        if BUFFERS in uploads_S:
            self._buffers = {BUFFERS: self._combined(weights_S, uploads_S.pop(BUFFERS))}
        before, seen = self.server, cohort
        if self.privacy is not None:
            # The step sees one noised model in place of every client's, and not which clients replied.
            ((name, uploads_SP),) = uploads_S.items()
            mean_P = self.privacy(server_round, before["params"], uploads_SP, len(self._asked))
            uploads_S = {name: mean_P.expand(len(self._asked), -1)}
            ids_S = torch.tensor(self._asked, device=self.device)
            seen = replace(cohort, ids_S=ids_S, num_examples_S=torch.ones_like(ids_S, dtype=torch.float64))
        self.server = algorithm.step(before, uploads_S, seen)
        metrics = averaged(weights_S, stacked)
        columns = algorithm.diagnostics(before, self.server, metrics, cohort)
        return self._record(), MetricRecord({**columns, **counts})

    def _broadcast(self, server_round: int, server: Arrays) -> Arrays:
        """Return the algorithm's broadcast in a round."""
        return self.algorithm_at(server_round).broadcast(server)

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all state that a round changes, for `restore`.

        It has the server's state, the buffers, the nodes in the order of their clients and the confirmed rounds. If the
        server keeps its vectors of all clients in a file, it has only the rows of clients that have replied.
        """
        # Flower's node numbers use all 64 bits, and torch has no unsigned arithmetic.
        nodes = np.array(list(self._client_of), dtype=np.uint64).view(np.int64)
        seen = torch.tensor(sorted(self._confirmed), dtype=torch.int64)
        whole, rows = {}, {}
        for name, value in (self.server or {}).items():
            if client_rows.is_on_disk(value):
                rows[name] = client_rows.read(value, seen)
            else:
                whole[name] = value
        return {
            **{f"server/{name}": value.clone() for name, value in whole.items()},
            **{f"rows/{name}": value for name, value in rows.items()},
            **{f"buffers/{name}": value.clone() for name, value in self._buffers.items()},
            "nodes": torch.from_numpy(nodes),
            "confirmed": torch.tensor([*self._confirmed.items()], dtype=torch.int64).view(-1, 2),
            **({"begun-anew": torch.tensor(sorted(self._begun_anew))} if self._begun_anew else {}),
            **self._filter_snapshot(),
        }

    def restore(self, kept: Arrays) -> None:
        """Restore a `snapshot`, which is not modified."""
        parts: dict[str, dict[str, Tensor]] = {"server": {}, "rows": {}, "buffers": {}}
        for path, value in kept.items():
            part, _, name = path.partition("/")
            if part in parts:
                parts[part][name] = value.to(self.device, copy=True)
        self._confirmed = dict(kept["confirmed"].tolist())
        self._begun_anew = set(kept["begun-anew"].tolist()) if "begun-anew" in kept else set()
        self._restore_filter(kept)
        seen = torch.tensor(sorted(self._confirmed), dtype=torch.int64, device=self.device)
        all_nodes = torch.arange(len(kept["nodes"]), device=self.device)
        for name, value in parts["server"].items():
            if value.dim() > 1 and len(value) == len(all_nodes):
                # The memory limit of a resumed run may be lower than before.
                stack = client_rows.zeros(tuple(value.shape), value, self.memory_limit)
                parts["server"][name] = client_rows.write(stack, all_nodes, value)
        for name, rows_S in parts["rows"].items():
            stack = client_rows.zeros((len(all_nodes), *rows_S.shape[1:]), rows_S, self.memory_limit)
            parts["server"][name] = client_rows.write(stack, seen, rows_S)
        self.server, self._buffers = parts["server"] or None, parts["buffers"]
        nodes = kept["nodes"].cpu().numpy().view(np.uint64)
        self._client_of = {int(node): number for number, node in enumerate(nodes)}
        self._nodes = ()

    def _without_state(self, replies: Iterable[Message]) -> list[int]:
        """Return the clients that report, for the first time, the loss of a state on which the server counts."""
        clients = {self._client_of[node] for node in lost_states(replies) if node in self._client_of}
        return sorted(client for client in clients - self._begun_anew if self._confirmed.get(client))

    def _forget(self, clients: Sequence[int]) -> None:
        """Drop what the server keeps of some clients, which then start from their initial state.

        If it keeps only sums over clients, it drops nothing, and the clients go on from their confirmed states.
        """
        before = self.server
        super()._forget(clients)
        if self.server is not before:
            for client in clients:
                self._confirmed.pop(client, None)
