"""Flower's own strategies on the server, unchanged, in the place of a step that averages models.

They get fedpisa's cohorts and weights, and their randomness from a named stream. BatchNorm's buffers are statistics and
no parameters: they do not pass through the strategy, and are averaged as ever.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import WARNING, getLogger
from typing import Any, Final, cast, final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedpisa import streams
from fedpisa.clients.base import Arrays
from fedpisa.clients.local import BUFFERS
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.messages import (
    ARRAYS,
    CONFIG,
    SERVER_ROUND,
    Broadcast,
    StackedReplies,
    reply_to,
    stack_replies,
)
from fedpisa.layout import ParamLayout
from fedpisa.strategies.admission import Admission
from fedpisa.strategies.base import Algorithm, Cohort, weighted_mean
from fedpisa.strategies.strategy import averaged, in_order, sampled

WEIGHT: Final = "weight"
"""Metric of a reply that says what it counts, ``alpha_i``."""


@final
class FlowerStrategy(Strategy):
    """A Flower strategy for an algorithm whose uploads are models.

    Parameters
    ----------
    algorithm
        What the clients do, and what each of them counts.
    layout
        The module's parameters.
    make
        Makes the strategy, which samples all nodes that it sees.
    fraction_train, seed, device, admission
        See `fedpisa.strategies.strategy.AlgorithmStrategy`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        layout: ParamLayout,
        make: Callable[[], Strategy],
        *,
        fraction_train: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        admission: Admission | None = None,
    ) -> None:
        self.algorithm, self.layout, self.make = algorithm, layout, make
        self.fraction_train, self.seed, self.device = fraction_train, seed, torch.device(device)
        self.admission = admission
        self.strategy = make()
        self.server: Arrays | None = None
        self.reported: tuple[Tensor, Arrays] | None = None
        self._model: ArrayRecord | None = None
        self._buffers: Arrays = {}
        self._client_of: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._requests: dict[int, Message] = {}

    def summary(self) -> None:
        """Log what is run."""
        self.strategy.summary()

    def start_from(self, arrays: ArrayRecord) -> ArrayRecord:
        """Begin with an initial model and a new strategy, and return the model that is broadcast first."""
        tensors = to_tensors(arrays, self.layout.dtypes[0], self.device)
        self.strategy = self.make()
        self.server = self.algorithm.init(tensors["params"], self.layout)
        self._buffers = {BUFFERS: tensors[BUFFERS]} if BUFFERS in tensors else {}
        return self._record()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort as all algorithms do, and let the strategy see nobody else."""
        if arrays is not self._model:
            if self.server is None or server_round == 1:
                self.start_from(arrays)
            else:
                tensors = to_tensors(arrays, self.layout.dtypes[0], self.device)
                self.server = {**self.server, "params": tensors["params"]}
                self._buffers = {name: tensors[name] for name in self._buffers}
        assert self.server is not None
        nodes = sorted(grid.get_node_ids(), key=lambda node: self._numbers.get(node, node))
        self._client_of = self._numbers or {node: number for number, node in enumerate(nodes)}
        cohort = sampled(nodes, self.fraction_train, self.seed, server_round)
        model = to_record({"params": self.server["params"]})
        with global_randomness(self.seed, "server-strategy-sampling", server_round):
            messages = list(
                self.strategy.configure_train(
                    server_round, model, ConfigRecord({**config}), cast(Grid, _Cohort(grid, cohort))
                )
            )
        if not messages or any(message.content is not messages[0].content for message in messages):
            raise ValueError(
                f"{type(self.strategy).__name__} does not send the same content to every client, at least one: "
                "take a server-strategy that does"
            )
        sent = messages[0].content.config_records[CONFIG]
        content = RecordDict(
            {
                ARRAYS: to_record({"params": self.server["params"], **self._buffers}),
                CONFIG: ConfigRecord({**sent, SERVER_ROUND: server_round}),
            }
        )
        asked = {message.metadata.dst_node_id for message in messages}
        broadcast = Broadcast(content, sorted(asked, key=self._client_of.__getitem__))
        self._requests = dict(zip(broadcast.node_ids, broadcast, strict=True))
        return broadcast

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy make the next model of the replies that arrived."""
        assert self.server is not None
        counts: dict[str, float] = {}
        if self.admission is not None:
            update, down = self.algorithm.local_update, {"params": self.server["params"]}
            replies, counts = self.admission.accepted(
                replies, self._requests, server_round, update, down, self._buffers, self.layout
            )
        if isinstance(replies, StackedReplies):
            stacked: StackedReplies | None = replies
        else:
            stacked = stack_replies(replies, self.layout.dtypes[0], self.device, self._client_of)
        if stacked is None:
            return None, MetricRecord({**counts}) if counts else None
        cohort = Cohort(
            ids_S=torch.tensor([self._client_of[node] for node in stacked.node_ids], device=self.device),
            num_examples_S=stacked.num_examples_S.to(self.device),
            server_round=server_round,
            num_clients=len(self._client_of),
            layout=self.layout,
        )
        self.reported = (cohort.ids_S, stacked.metrics_S)
        weights_S = self.algorithm.weights(cohort)
        with global_randomness(self.seed, "server-strategy", server_round):
            try:
                model, _ = self.strategy.aggregate_train(server_round, list(self._apart(stacked, weights_S)))
            except AggregationError as error:
                raise ValueError(f"{type(self.strategy).__name__} refuses: {error}") from error
        if model is None:
            raise ValueError(
                f"{type(self.strategy).__name__} made no model of {len(stacked)} replies in round {server_round}: "
                "let more clients take part, or tolerate fewer malicious ones"
            )
        before = self.server
        self.server = {"params": to_tensors(model, self.layout.dtypes[0], self.device)["params"]}
        if BUFFERS in stacked.uploads_S:
            self._buffers = {BUFFERS: weighted_mean(weights_S, stacked.uploads_S[BUFFERS])}
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
        """Give nodes the numbers ``0 .. N-1`` that their clients have; without it they are numbered by their own."""
        self._numbers = in_order(client_of)

    def weights_of_all(self, sizes_N: Tensor) -> Tensor:
        """Return the algorithm's weights ``alpha`` ``(N,)`` if every client took part."""
        ids_N = torch.arange(len(sizes_N), device=sizes_N.device)
        return self.algorithm.weights(Cohort(ids_N, sizes_N.double(), 0, len(sizes_N), self.layout))

    def snapshot(self) -> dict[str, Tensor]:
        """Return all that changes from round to round, as named copies of tensors.

        Raises
        ------
        ValueError
            If the Flower strategy keeps what is neither array nor number.
        """
        assert self.server is not None
        kept = {**self.server, **self._buffers}
        for depth, strategy in enumerate(_nested(self.strategy)):
            for name, value in vars(strategy).items():
                kept.update(_pack(f"strategy/{depth}/{name}", value))
        return {name: value.detach().clone() for name, value in kept.items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> ArrayRecord:
        """Go on from a `snapshot` of an equal strategy, and return its global model."""
        self.strategy = self.make()
        self.server = {"params": snapshot["params"].to(self.device, copy=True)}
        self._buffers = {BUFFERS: snapshot[BUFFERS].to(self.device, copy=True)} if BUFFERS in snapshot else {}
        for depth, strategy in enumerate(_nested(self.strategy)):
            prefix = f"strategy/{depth}/"
            paths = [path.removeprefix(prefix) for path in snapshot if path.startswith(prefix)]
            for name, kind in dict.fromkeys(tuple(path.split("/")[0].split(":")) for path in paths):
                whole = f"{prefix}{name}:{kind}"
                parts = {
                    path.removeprefix(whole).removeprefix("/"): value.cpu().numpy().copy()
                    for path, value in snapshot.items()
                    if path == whole or path.startswith(f"{whole}/")
                }
                setattr(strategy, name, _KINDS[kind](parts))
        return self._record()

    def _record(self) -> ArrayRecord:
        assert self.server is not None
        self._model = to_record({"params": self.server["params"], **self._buffers})
        return self._model

    def _apart(self, replies: StackedReplies, weights_S: Tensor) -> Iterator[Message]:
        """Yield the replies one by one, without buffers and with what each counts."""
        columns = {name: values.tolist() for name, values in replies.metrics_S.items()}
        for row, node_id in enumerate(replies.node_ids):
            metrics = {name: float(column[row]) for name, column in columns.items()}
            yield reply_to(
                self._requests[node_id],
                {"params": replies.uploads_S["params"][row]},
                int(replies.num_examples_S[row]),
                {**metrics, WEIGHT: float(weights_S[row])},
            )


@final
class _Cohort:
    """A Grid of which only some nodes are seen."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


@contextmanager
def global_randomness(seed: int, name: str, *counters: int) -> Iterator[None]:
    """Seed the generators of `random` and `numpy.random` from a named stream, and put them back afterwards.

    Flower's lines per reply are left out of the log meanwhile: in a simulation they would drown the rest.

    Examples
    --------
    >>> def draw():
    ...     with global_randomness(0, "noise", 1):
    ...         return random.random()
    >>> draw() == draw()
    True
    """
    key = streams.stream_key(seed, name, *counters)
    # Flower draws from the old global generators, and nothing else reaches those.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(key)
    np.random.seed([key >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)])  # noqa: NPY002
    log = getLogger("flwr")
    level = log.level
    log.setLevel(max(level, WARNING))
    gc.freeze()  # some strategies collect garbage for every reply, and would walk through all of torch each time
    try:
        yield
    finally:
        gc.unfreeze()
        log.setLevel(level)
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _nested(strategy: Strategy) -> Iterator[Strategy]:
    """Yield a strategy and those that it wraps."""
    yield strategy
    inner = getattr(strategy, "strategy", None)
    if isinstance(inner, Strategy):
        yield from _nested(inner)


_KINDS: Final[Mapping[str, Callable[[dict[str, Any]], object]]] = {
    "array": lambda parts: parts[""],
    "bool": lambda parts: bool(parts[""]),
    "int": lambda parts: int(parts[""]),
    "float": lambda parts: float(parts[""]),
    "dict": lambda parts: parts,
    "list": lambda parts: [parts[str(number)] for number in range(len(parts))],
    "record": lambda parts: ArrayRecord({name: Array(value) for name, value in parts.items()}),
}


def _pack(path: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Yield an attribute as tensors, its kind in the name; nothing for what never changes."""
    if isinstance(value, bool | int | float):
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        yield f"{path}:{type(value).__name__}", torch.tensor(value, dtype=dtype)
    elif isinstance(value, np.ndarray):
        yield f"{path}:array", torch.from_numpy(value)
    elif isinstance(value, ArrayRecord):
        yield from (
            (f"{path}:record/{name}", torch.from_numpy(array.numpy())) for name, array in value.items()
        )
    elif isinstance(value, dict | list) and all(
        isinstance(item, np.ndarray) for item in (value.values() if isinstance(value, dict) else value)
    ):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        yield from ((f"{path}:{type(value).__name__}/{name}", torch.from_numpy(item)) for name, item in items)
    elif not (value is None or isinstance(value, str | Strategy) or callable(value)):
        raise ValueError(
            f"the strategy keeps a {type(value).__name__} ({path.split('/')[-1]}), which is neither an array nor a "
            "number: it cannot be saved"
        )
