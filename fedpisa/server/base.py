"""The base class of the servers: it holds the model, samples the cohort and stacks the replies."""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.client import BUFFERS
from fedpisa.clients.rollouts import ENV_STEPS
from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule
from fedpisa.components import LOG, printable
from fedpisa.flower.compat import payload_bytes, to_record, to_tensors
from fedpisa.flower.messages import StackedReplies, stack_replies
from fedpisa.rng import generator
from fedpisa.server.limited_log import LimitedLog
from fedpisa.server.privacy import PrivateMean, secretly_sampled
from fedpisa.server.reply_filter import ReplyFilter
from fedpisa.server.reply_spec import contract_of, idle_uploads
from fedpisa.storage import client_rows
from fedpisa.strategies.base import Algorithm, Cohort, norm, weighted_mean
from fedpisa.tasks.buffers import BufferLayout
from fedpisa.tasks.layout import ParamLayout


class Options(TypedDict, total=False):
    """The keyword arguments of a `ServerStrategy`."""

    fraction_train: float
    seed: int
    device: torch.device | str
    reply_filter: ReplyFilter | None
    memory_limit: int
    schedule: StepSizeSchedule
    buffer_layout: BufferLayout | None
    privacy: PrivateMean | None


class ServerStrategy(Strategy, ABC):
    """A Flower strategy for an algorithm, without the server's step.

    ``server`` is the state of the algorithm's server. ``reported`` has the numbers of the latest round's clients and
    their metrics. ``bytes_up`` is the size of the arrays in the latest round's valid replies.

    Parameters
    ----------
    algorithm
        The algorithm.
    layout
        The module's parameters.
    fraction_train
        Share of the clients in a round: ``max(1, round(fraction * N))`` of them.
    seed
        The run's seed. The cohort depends on it and the round alone.
    device
        Device of the server's state.
    reply_filter
        The checks of replies; ``None`` trusts all replies, as those of simulated clients can be.
    memory_limit
        Bytes of memory for the vectors that the server keeps of all clients; see `fedpisa.storage.client_rows`.
    schedule
        Factors of the algorithm's step sizes by round.
    buffer_layout
        The module's buffers; without it, all entries of their vector are averaged.
    privacy
        What takes the place of the clients' uploads: their mean with noise.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        layout: ParamLayout,
        *,
        fraction_train: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        reply_filter: ReplyFilter | None = None,
        memory_limit: int = client_rows.UNLIMITED,
        schedule: StepSizeSchedule = UNSCHEDULED,
        buffer_layout: BufferLayout | None = None,
        privacy: PrivateMean | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.layout = layout
        self.fraction_train = fraction_train
        self.seed = seed
        self.device = torch.device(device)
        self.reply_filter = reply_filter
        self.memory_limit = memory_limit
        self.schedule = schedule
        self.buffer_layout = buffer_layout
        self.privacy = privacy
        self.server: Arrays | None = None
        self.reported: tuple[Tensor, Arrays] | None = None
        self.bytes_up = 0
        self.log = LimitedLog()
        self._model: ArrayRecord | None = None
        self._buffers: Arrays = {}
        self._said_differing = False
        self._nodes: Sequence[int] = ()
        self._client_of: dict[int, int] = {}

    def algorithm_at(self, server_round: int) -> Algorithm:
        """Return the algorithm with its hyper-parameters of a round (1, 2, ...); round 0 is the start."""
        return self.schedule.scaled(self.algorithm, server_round).at_round(server_round)

    def start_from(self, arrays: ArrayRecord) -> ArrayRecord:
        """Set the server's state from an initial model, and return the first model to broadcast."""
        tensors = to_tensors(arrays, self.layout.dtype, self.device)
        self.server = self.algorithm_at(0).init(tensors["params"], self.layout)
        self._buffers = {BUFFERS: tensors[BUFFERS]} if BUFFERS in tensors else {}
        return self._record()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no messages, because the server evaluates the model itself."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return ``None``, because no client evaluates."""
        return None

    def number(self, client_of: Mapping[int, int]) -> None:
        """Set the nodes' client numbers ``0 .. N-1``; without them, nodes are numbered as they appear."""
        self._client_of = in_order(client_of)
        self._nodes = ()

    def weights_of_all(self, sizes_N: Tensor) -> Tensor:
        """Return the algorithm's weights ``alpha`` ``(N,)`` in a round of all clients."""
        ids_N = torch.arange(len(sizes_N), device=sizes_N.device)
        return self.algorithm.weights(Cohort(ids_N, sizes_N.double(), 0, len(sizes_N), self.layout))

    def _with_model(self, server_round: int, arrays: ArrayRecord) -> Arrays:
        """Return the server's state with ``arrays`` as its model.

        A wrapper around a strategy may change the model between rounds. In round 1, a changed model is the initial
        model of a new run. Later it replaces the global model.
        """
        if arrays is not self._model:
            if self.server is None or server_round == 1:
                self.start_from(arrays)
            else:
                tensors = to_tensors(arrays, self.layout.dtype, self.device)
                self.server = {**self.server, "params": tensors["params"]}
                self._buffers = {name: tensors[name] for name in self._buffers}
        assert self.server is not None
        return self.server

    def _sampled(self, server_round: int, grid: Grid) -> list[int]:
        """Return the cohort's nodes in the order of their client numbers, and number new nodes."""
        nodes = grid.get_node_ids()
        nodes = nodes if isinstance(nodes, range) else sorted(nodes)
        if nodes != self._nodes:
            for node in nodes:
                self._client_of.setdefault(node, len(self._client_of))
            self._nodes = nodes
        if not isinstance(nodes, range):
            nodes = sorted(nodes, key=self._client_of.__getitem__)
        if self.privacy is not None and self.privacy.secret_cohorts and nodes:
            return secretly_sampled(nodes, cohort_size(len(nodes), self.fraction_train))
        return sampled(nodes, self.fraction_train, self.seed, server_round)

    def _valid(
        self, server_round: int, replies: Iterable[Message], asked: Collection[int], down: Arrays
    ) -> tuple[StackedReplies | None, dict[str, float]]:
        """Return the valid replies, ``None`` if there are too few, and columns that count them.

        Without a reply filter, only error replies are left out, and only they add columns.
        """
        refused = 0
        if self.reply_filter is not None:
            replies, refused = self._filtered(self.reply_filter, server_round, replies, asked, down)
        elif not isinstance(replies, StackedReplies):
            replies = list(replies)
            failed = [reply for reply in replies if reply.has_error()]
            refused = len(failed)
            for reply in failed:
                name, reason = self._name(reply.metadata.src_node_id), printable(reply.error.reason)
                self.log.warning(server_round, f"{name} failed: {reason}")
        stacked = (
            replies
            if isinstance(replies, StackedReplies)
            else stack_replies(replies, self.layout.dtype, self.device, self._client_of)
        )
        count = 0 if stacked is None else len(stacked)
        self.bytes_up = 0 if stacked is None else payload_bytes(stacked.uploads_S)
        counted = self.reply_filter is not None or refused > 0
        columns = {"replies": float(count), "dropped-replies": float(refused)} if counted else {}
        if self.reply_filter is not None and count < self.reply_filter.min_replies:
            self.log.warning(
                server_round,
                f"{count} replies, and min-replies is {self.reply_filter.min_replies}: the model stays as it is",
            )
            return None, columns
        return stacked, columns

    def _filtered(
        self,
        reply_filter: ReplyFilter,
        server_round: int,
        replies: Iterable[Message],
        asked: Collection[int],
        down: Arrays,
    ) -> tuple[list[Message], int]:
        """Return the replies that pass the filter, and the number of the others."""
        update = self.algorithm_at(server_round).local_update
        clients = {node: self._client_of[node] for node in asked}
        sizes = reply_filter.sizes_N
        known = {node: sizes[client] for node, client in clients.items() if client < len(sizes)}
        contract = contract_of(
            update,
            server_round,
            down,
            self._buffers,
            self.layout,
            known,
            clients,
            self.seed,
            reply_filter.further,
        )
        idle_of = None
        if reply_filter.max_upload_norm is not None:
            idle_of = idle_uploads(update, down, self._float_buffers(), self.layout, contract)
        names = {node: self._name(node) for node in asked}
        start = 1 + norm(down["params"])
        found = reply_filter.check(replies, names, contract, idle_of, start, self.log)
        self._forget([clients[node] for node in found.repeated])
        return list(found.accepted.values()), found.refused

    def _forget(self, clients: Sequence[int]) -> None:
        """Drop what the server keeps of some clients, because their replies were refused several times in a row."""
        if clients:
            assert self.server is not None
            ids_S = torch.tensor(clients, device=self.device)
            self.server = self.algorithm.forget(self.server, ids_S)

    def _filter_snapshot(self) -> dict[str, Tensor]:
        """Return the scale of the bound on updates, for `_restore_filter`."""
        scale = {} if self.reply_filter is None else self.reply_filter.scale
        return {f"scale/{name}": torch.tensor(value, dtype=torch.float64) for name, value in scale.items()}

    def _restore_filter(self, kept: Mapping[str, Tensor]) -> None:
        """Restore a `_filter_snapshot`."""
        if self.reply_filter is not None:
            names = [path for path in kept if path.startswith("scale/")]
            self.reply_filter.scale = {path.removeprefix("scale/"): float(kept[path]) for path in names}

    def _float_buffers(self) -> Arrays:
        """Return the broadcast buffers, NaN in place of integers, which no norm measures."""
        if self.buffer_layout is None or BUFFERS not in self._buffers:
            return self._buffers
        measured_Q = self.buffer_layout.is_averaged.to(self.device)
        return {BUFFERS: torch.where(measured_Q, self._buffers[BUFFERS], torch.nan)}

    def _name(self, node: int) -> str:
        """Return how the log calls a node."""
        return f"client {self._client_of[node]}" if node in self._client_of else f"node {node}"

    def _combined(self, weights_S: Tensor, buffers_SQ: Tensor) -> Tensor:
        """Return the global model's buffers ``(Q,)``; log once where integers differ between clients."""
        if self.buffer_layout is None:
            return weighted_mean(weights_S, buffers_SQ)
        buffers_Q, differing = self.buffer_layout.combine(weights_S, buffers_SQ)
        if differing and not self._said_differing:
            self._said_differing = True
            LOG.info("clients' integer buffers differ, such as %r: the largest is kept", differing[0])
        return buffers_Q

    def _cohort(self, server_round: int, replies: StackedReplies) -> Cohort:
        """Return the cohort of the replies, and set ``reported``."""
        cohort = Cohort(
            ids_S=torch.tensor([self._client_of[node] for node in replies.node_ids], device=self.device),
            num_examples_S=replies.num_examples_S.to(self.device),
            server_round=server_round,
            num_clients=len(self._client_of),
            layout=self.layout,
            memory_limit=self.memory_limit,
        )
        self.reported = (cohort.ids_S, replies.metrics_S)
        return cohort

    def _record(self) -> ArrayRecord:
        assert self.server is not None
        self._model = to_record({"params": self.server["params"], **self._buffers})
        return self._model


def in_order(client_of: Mapping[int, int]) -> dict[int, int]:
    """Return the nodes with their client numbers, in the order of these numbers.

    Raises
    ------
    ValueError
        If the numbers are not ``0 .. N-1``.
    """
    ordered = dict(sorted(client_of.items(), key=lambda pair: pair[1]))
    if list(ordered.values()) != list(range(len(ordered))):
        raise ValueError(f"the nodes' clients are {[*ordered.values()]}: number them 0 to {len(ordered) - 1}")
    return ordered


def cohort_size(num_clients: int, fraction: float) -> int:
    """Return the number of clients in a round: ``max(1, round(fraction * N))``."""
    return max(1, round(fraction * num_clients))


def sampled(nodes: Sequence[int], fraction: float, seed: int, server_round: int) -> list[int]:
    """Return the round's cohort in the order of ``nodes``; it depends on the seed and the round alone.

    Raises
    ------
    ValueError
        If there are no nodes.
    """
    if not nodes:
        raise ValueError(
            f"no node is connected in round {server_round}: connect the clients before the first round"
        )
    rng = generator(seed, "sampling", server_round)
    size = cohort_size(len(nodes), fraction)
    positions = np.sort(rng.choice(len(nodes), size, replace=False, shuffle=False))
    return [nodes[position] for position in positions]


def averaged(weights_S: Tensor, replies: StackedReplies) -> dict[str, float]:
    """Return the clients' metrics averaged by weight; ``local-steps`` and ``env-steps`` are the cohort's sums."""
    names = list(replies.metrics_S)
    table = torch.stack([replies.metrics_S[name].to(weights_S) for name in names])
    means = dict(zip(names, (table @ weights_S).tolist(), strict=True))
    for name in {"local-steps", ENV_STEPS} & {*names}:
        means[name] = float(replies.metrics_S[name].sum())
    return means
