"""The Flower strategy around an algorithm: sampling, messages, the server's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import getLogger
from typing import final

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedpisa import stacks, streams
from fedpisa.clients.base import Arrays
from fedpisa.clients.local import BUFFERS
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.messages import (
    ARRAYS,
    CONFIG,
    SERVER_ROUND,
    Broadcast,
    StackedReplies,
    lost_states,
    stack_replies,
)
from fedpisa.layout import ParamLayout
from fedpisa.strategies.admission import Admission
from fedpisa.strategies.base import Algorithm, Cohort, weighted_mean

_LOG = getLogger("fedpisa")


@final
class AlgorithmStrategy(Strategy):
    """Any `Algorithm` as a Flower strategy; it holds the server's state, the one thing that changes.

    ``server`` is that state; ``reported`` are the numbers of the latest round's clients and their metrics.

    Parameters
    ----------
    algorithm
        What to run.
    layout
        The module's parameters.
    fraction_train
        Share of the clients in a round: ``max(1, round(fraction * N))`` of them.
    seed
        The run's seed; who is sampled depends on it and the round alone.
    device
        Where the server's state lives.
    admission
        Which replies are used; ``None`` trusts all of them, as those of simulated clients can be.
    memory_limit
        Bytes that what is kept of every client may take in memory; see `fedpisa.stacks`.

    Examples
    --------
    >>> from fedpisa.strategies.fedavg import FedAvg
    >>> layout = ParamLayout.of([("weight", torch.zeros(3))])
    >>> strategy = AlgorithmStrategy(FedAvg(), layout)
    >>> strategy.server is None
    True
    """

    def __init__(
        self,
        algorithm: Algorithm,
        layout: ParamLayout,
        *,
        fraction_train: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        admission: Admission | None = None,
        memory_limit: int = stacks.UNLIMITED,
    ) -> None:
        self.algorithm = algorithm
        self.layout = layout
        self.fraction_train = fraction_train
        self.seed = seed
        self.device = torch.device(device)
        self.admission = admission
        self.memory_limit = memory_limit
        self.server: Arrays | None = None
        self.reported: tuple[Tensor, Arrays] | None = None
        self._model: ArrayRecord | None = None
        self._buffers: Arrays = {}
        self._nodes: Iterable[int] = ()
        self._client_of: dict[int, int] = {}
        self._confirmed: dict[int, int] = {}
        self._asked: frozenset[int] = frozenset()

    def summary(self) -> None:
        """Log what is run."""
        getLogger("flwr").info(
            "\t└──> %s, %.2f of the clients per round", self.algorithm, self.fraction_train
        )

    def start_from(self, arrays: ArrayRecord) -> ArrayRecord:
        """Make the server's state from an initial model, and return the model that is broadcast first."""
        tensors = to_tensors(arrays, self.layout.dtypes[0], self.device)
        self.server = self.algorithm.init(tensors["params"], self.layout)
        self._buffers = {BUFFERS: tensors[BUFFERS]} if BUFFERS in tensors else {}
        self._confirmed.clear()
        return self._record()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort and broadcast to it.

        A model that is not the strategy's own starts it afresh in round 1; later it takes the global model's
        place, because whoever wraps a strategy may change the model between rounds.
        """
        if arrays is not self._model:
            if self.server is None or server_round == 1:
                self.start_from(arrays)
            else:
                tensors = to_tensors(arrays, self.layout.dtypes[0], self.device)
                self.server = {**self.server, "params": tensors["params"]}
                self._buffers = {name: tensors[name] for name in self._buffers}
        assert self.server is not None
        nodes = grid.get_node_ids()
        nodes = nodes if isinstance(nodes, range) else sorted(nodes)
        self._number(nodes)
        if not isinstance(nodes, range):
            nodes = sorted(nodes, key=self._client_of.__getitem__)
        cohort = sampled(nodes, self.fraction_train, self.seed, server_round)
        algorithm = self.algorithm.at_round(server_round)
        content = RecordDict(
            {
                ARRAYS: to_record({**algorithm.broadcast(self.server), **self._buffers}),
                CONFIG: ConfigRecord({**config, SERVER_ROUND: server_round}),
            }
        )
        self._asked = frozenset(cohort) if self.admission else frozenset()
        if not self.algorithm.local_update.incremental:
            return Broadcast(content, cohort)
        return Broadcast(content, cohort, [self._confirmed.get(self._client_of[node], 0) for node in cohort])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the server's step with the replies that arrived.

        If a client has lost the state on which the algorithm counts, the algorithm begins anew from that model.
        """
        replies = replies if isinstance(replies, StackedReplies) else list(replies)
        lost = [] if isinstance(replies, StackedReplies) else self._without_state(replies)
        arrays, metrics = self._step(server_round, replies)
        if not lost:
            return arrays, metrics
        text = "round %d: client %s lost its state: all clients begin anew from the model of this round"
        _LOG.warning(text, server_round, ", ".join(map(str, lost)))
        assert self.server is not None
        self.server = self.algorithm.init(self.server["params"], self.layout)
        self._confirmed.clear()
        return self._record(), metrics

    def _step(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert self.server is not None
        counts: dict[str, float] = {}
        if self.admission is not None:
            update, down = self.algorithm.local_update, self.algorithm.broadcast(self.server)
            replies, counts = self.admission.accepted(
                replies, self._asked, server_round, update, down, self._buffers, self.layout
            )
        if isinstance(replies, StackedReplies):
            stacked: StackedReplies | None = replies
        else:
            stacked = stack_replies(replies, self.layout.dtypes[0], self.device, self._client_of)
        if stacked is None:
            return None, MetricRecord({**counts}) if counts else None
        clients = [self._client_of[node] for node in stacked.node_ids]
        self._confirmed.update(dict.fromkeys(clients, server_round))
        cohort = Cohort(
            ids_S=torch.tensor(clients, device=self.device),
            num_examples_S=stacked.num_examples_S.to(self.device),
            server_round=server_round,
            num_clients=len(self._client_of),
            layout=self.layout,
            memory_limit=self.memory_limit,
        )
        self.reported = (cohort.ids_S, stacked.metrics_S)
        uploads_S = dict(stacked.uploads_S)
        weights_S = self.algorithm.weights(cohort)
        if BUFFERS in uploads_S:
            self._buffers = {BUFFERS: weighted_mean(weights_S, uploads_S.pop(BUFFERS))}
        before = self.server
        self.server = self.algorithm.step(before, uploads_S, cohort)
        metrics = averaged(weights_S, stacked)
        columns = self.algorithm.diagnostics(before, self.server, metrics, cohort)
        return self._record(), MetricRecord({**columns, **counts})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def number(self, client_of: Mapping[int, int]) -> None:
        """Give nodes the numbers ``0 .. N-1`` that their clients have; without it they are numbered as they come."""
        self._client_of = in_order(client_of)
        self._nodes = ()

    def weights_of_all(self, sizes_N: Tensor) -> Tensor:
        """Return the algorithm's weights ``alpha`` ``(N,)`` if every client took part."""
        ids_N = torch.arange(len(sizes_N), device=sizes_N.device)
        return self.algorithm.weights(Cohort(ids_N, sizes_N.double(), 0, len(sizes_N), self.layout))

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of what changes, for `restore`: server, buffers, the nodes by their numbers, rounds confirmed.

        Of what is kept of every client in a file, only the rows of those that have replied.
        """
        # Flower's numbers of nodes have 64 bits, and torch's integers a sign.
        nodes = np.array(list(self._client_of), dtype=np.uint64).view(np.int64)
        seen = torch.tensor(sorted(self._confirmed), dtype=torch.int64)
        whole, rows = {}, {}
        for name, value in (self.server or {}).items():
            if stacks.is_mapped(value):
                rows[name] = stacks.take(value, seen)
            else:
                whole[name] = value
        return {
            **{f"server/{name}": value.clone() for name, value in whole.items()},
            **{f"rows/{name}": value for name, value in rows.items()},
            **{f"buffers/{name}": value.clone() for name, value in self._buffers.items()},
            "nodes": torch.from_numpy(nodes),
            "confirmed": torch.tensor([*self._confirmed.items()], dtype=torch.int64).view(-1, 2),
        }

    def restore(self, kept: Arrays) -> None:
        """Take up a `snapshot`, which stays as it is."""
        parts: dict[str, dict[str, Tensor]] = {"server": {}, "rows": {}, "buffers": {}}
        for path, value in kept.items():
            part, _, name = path.partition("/")
            if part in parts:
                parts[part][name] = value.to(self.device, copy=True)
        self._confirmed = dict(kept["confirmed"].tolist())
        seen = torch.tensor(sorted(self._confirmed), dtype=torch.int64, device=self.device)
        for name, rows_S in parts["rows"].items():
            stack = stacks.zeros((len(kept["nodes"]), *rows_S.shape[1:]), rows_S, self.memory_limit)
            parts["server"][name] = stacks.put(stack, seen, rows_S)
        self.server, self._buffers = parts["server"] or None, parts["buffers"]
        nodes = kept["nodes"].cpu().numpy().view(np.uint64)
        self._client_of = {int(node): number for number, node in enumerate(nodes)}
        self._nodes = ()

    def _without_state(self, replies: Iterable[Message]) -> list[int]:
        """Return the clients that have lost a state on which the server counts."""
        clients = (self._client_of[node] for node in lost_states(replies) if node in self._client_of)
        return sorted({client for client in clients if self._confirmed.get(client)})

    def _record(self) -> ArrayRecord:
        assert self.server is not None
        self._model = to_record({"params": self.server["params"], **self._buffers})
        return self._model

    def _number(self, nodes: range | list[int]) -> None:
        """Give new nodes the next client numbers; a node keeps its number."""
        if nodes != self._nodes:
            for node in nodes:
                self._client_of.setdefault(node, len(self._client_of))
            self._nodes = nodes


def in_order(client_of: Mapping[int, int]) -> dict[int, int]:
    """Return the nodes with their clients' numbers, in the order of these.

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
    """Return how many clients take part in a round: ``max(1, round(fraction * N))``."""
    return max(1, round(fraction * num_clients))


def sampled(nodes: Sequence[int], fraction: float, seed: int, server_round: int) -> list[int]:
    """Return the round's cohort, which depends on the seed and the round alone, in the order of ``nodes``.

    Raises
    ------
    ValueError
        If there are no nodes.
    """
    if not nodes:
        raise ValueError(
            f"no node is connected in round {server_round}: connect the clients before the first round"
        )
    rng = streams.generator(seed, "sampling", server_round)
    size = cohort_size(len(nodes), fraction)
    positions = np.sort(rng.choice(len(nodes), size, replace=False, shuffle=False))
    return [nodes[position] for position in positions]


def averaged(weights_S: Tensor, replies: StackedReplies) -> dict[str, float]:
    """Return the clients' metrics averaged by weight; ``local-steps`` is the cohort's sum."""
    names = list(replies.metrics_S)
    table = torch.stack([replies.metrics_S[name].to(weights_S) for name in names])
    means = dict(zip(names, (table @ weights_S).tolist(), strict=True))
    means["local-steps"] = float(replies.metrics_S["local-steps"].sum())
    return means
