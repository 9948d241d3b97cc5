"""Flower's own strategies, unchanged, in place of a server step that averages models.

They use fedpisa's cohorts and weights, and draw their random numbers from a named stream. Buffers such as BatchNorm's
statistics are no parameters. They do not pass through the strategy; the server averages them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from logging import WARNING, getLogger
from typing import Any, Final, Unpack, cast, final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedTrimmedAvg, Strategy
from torch import Tensor

from fedpisa.clients.client import BUFFERS
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.messages import (
    ARRAYS,
    CONFIG,
    SERVER_ROUND,
    Broadcast,
    StackedReplies,
    reply_to,
)
from fedpisa.rng import seeded
from fedpisa.server.base import Options, ServerStrategy, averaged
from fedpisa.strategies.base import Algorithm
from fedpisa.tasks.layout import ParamLayout

WEIGHT: Final = "weight"
"""Metric of a reply with its weight ``alpha_i``."""


@final
class FlowerStrategy(ServerStrategy):
    """A server that aggregates models by a Flower strategy.

    Parameters
    ----------
    algorithm
        The algorithm, which defines the clients' updates and weights.
    layout
        The module's parameters.
    make
        Function that returns the Flower strategy, which must sample all nodes of its Grid.
    options
        See `fedpisa.server.base.ServerStrategy`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        layout: ParamLayout,
        make: Callable[[], Strategy],
        **options: Unpack[Options],
    ) -> None:
        super().__init__(algorithm, layout, **options)
        self.make = make
        self.strategy = make()
        self._requests: dict[int, Message] = {}

    def summary(self) -> None:
        """Log the strategy."""
        self.strategy.summary()

    def start_from(self, arrays: ArrayRecord) -> ArrayRecord:
        """Start a new strategy from an initial model, and return the first model to broadcast."""
        self.strategy = self.make()
        return super().start_from(arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort, and return the strategy's messages to it."""
        server = self._with_model(server_round, arrays)
        cohort = self._sampled(server_round, grid)
        model = to_record({"params": server["params"]})
        with global_randomness(self.seed, "server-strategy-sampling", server_round):
            messages = list(
                self.strategy.configure_train(
                    server_round, model, ConfigRecord({**config}), cast(Grid, _Cohort(grid, cohort))
                )
            )
        if not messages or any(message.content is not messages[0].content for message in messages):
            raise ValueError(
                f"{type(self.strategy).__name__} does not send one content to at least one client and the same content "
                "to all: use a server-strategy that does"
            )
        sent = messages[0].content.config_records[CONFIG]
        content = RecordDict(
            {
                ARRAYS: to_record({"params": server["params"], **self._buffers}),
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
        """Aggregate the valid replies by the strategy."""
        assert self.server is not None
        before = self.server
        stacked, counts = self._valid(server_round, replies, self._requests, {"params": before["params"]})
        if stacked is None:
            return None, MetricRecord({**counts}) if counts else None
        if self.privacy is not None:
            asked, uploads_SP = len(self._requests), stacked.uploads_S["params"]
            mean_P = self.privacy(server_round, before["params"], uploads_SP, asked)
            noised_SP = mean_P.expand(len(stacked), -1)
            stacked = replace(stacked, uploads_S={**stacked.uploads_S, "params": noised_SP})
        cohort = self._cohort(server_round, stacked)
        weights_S = self.algorithm.weights(cohort)
        try:
            model = self._aggregated(server_round, stacked, weights_S)
        except ValueError as error:
            if len(stacked) == len(self._requests):
                raise
            self.log.warning(server_round, f"{error}; the model stays as it is")
            return None, MetricRecord({**counts}) if counts else None
        self.server = {"params": to_tensors(model, self.layout.dtype, self.device)["params"]}
        if BUFFERS in stacked.uploads_S:
            self._buffers = {BUFFERS: self._combined(weights_S, stacked.uploads_S[BUFFERS])}
        metrics = averaged(weights_S, stacked)
        columns = self.algorithm_at(server_round).diagnostics(before, self.server, metrics, cohort)
        return self._record(), MetricRecord({**columns, **counts})

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all state that a round changes, for `restore`.

        Raises
        ------
        ValueError
            If the Flower strategy has an attribute that is neither an array nor a number.
        """
        assert self.server is not None
        kept = {**self.server, **self._buffers, **self._filter_snapshot()}
        for depth, strategy in enumerate(_nested(self.strategy)):
            for name, value in vars(strategy).items():
                kept.update(_pack(f"strategy/{depth}/{name}", value))
        return {name: value.detach().clone() for name, value in kept.items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> ArrayRecord:
        """Restore a `snapshot` of an equal strategy, and return its global model."""
        self.strategy = self.make()
        self._restore_filter(snapshot)
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

    def _aggregated(self, server_round: int, stacked: StackedReplies, weights_S: Tensor) -> ArrayRecord:
        """Return the strategy's next model.

        Raises
        ------
        ValueError
            If the strategy makes no model of so many replies.
        """
        name, count = type(self.strategy).__name__, len(stacked)
        require_trimming(self.strategy, count)
        wrapper: Any = self.strategy  # perhaps one for privacy
        sampled = getattr(wrapper, "num_sampled_clients", 0)
        if count < sampled and wrapper.noise_multiplier > 0:
            raise ValueError(
                f"{count} of {sampled} clients replied, and the noise of {name} is right for all of them: set "
                'differential-privacy = "central", which allows for lost replies'
            )
        with global_randomness(self.seed, "server-strategy", server_round):
            try:
                model, _ = self.strategy.aggregate_train(
                    server_round, list(self._messages(stacked, weights_S))
                )
            except AggregationError as error:
                raise ValueError(f"{name} refuses: {error}") from error
        if model is None:
            raise ValueError(
                f"{name} made no model of {count} replies in round {server_round}: "
                "let more clients take part, or tolerate fewer malicious ones"
            )
        return model

    def _messages(self, replies: StackedReplies, weights_S: Tensor) -> Iterator[Message]:
        """Yield the replies one by one, without buffers and with their weights."""
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
    """A Grid restricted to some of its nodes."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


@contextmanager
def global_randomness(seed: int, name: str, *counters: int) -> Iterator[None]:
    """Seed the global generators from a named stream, and restore them afterwards; see `fedpisa.rng.seeded`.

    Meanwhile Flower logs warnings and errors only, because it logs a line for each reply.

    Examples
    --------
    >>> import random
    >>> def draw():
    ...     with global_randomness(0, "noise", 1):
    ...         return random.random()
    >>> draw() == draw()
    True
    """
    log = getLogger("flwr")
    level = log.level
    log.setLevel(max(level, WARNING))
    gc.freeze()  # some strategies collect garbage for every reply, which would visit all of torch's objects each time
    try:
        with seeded(seed, name, *counters):
            yield
    finally:
        gc.unfreeze()
        log.setLevel(level)


def require_trimming(strategy: Strategy, count: int) -> None:
    """Raise `ValueError` if a trimmed mean of ``count`` replies would trim none of them.

    Examples
    --------
    >>> require_trimming(FedTrimmedAvg(beta=0.2), 4)
    Traceback (most recent call last):
    ValueError: fed-trimmed-avg with server-beta = 0.2 trims none of 4 replies: set server-beta to 1/4 or more
    """
    for part in _nested(strategy):
        if isinstance(part, FedTrimmedAvg) and int(part.beta * count) == 0:
            fix = f"set server-beta to 1/{count} or more" if count > 2 else "let at least 3 clients take part"
            raise ValueError(
                f"fed-trimmed-avg with server-beta = {part.beta:g} trims none of {count} replies: {fix}"
            )


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
    """Yield an attribute as tensors with its kind in the name; nothing for attributes that never change."""
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
            f"the strategy keeps a {type(value).__name__} ({path.split('/')[-1]}), which cannot be saved: keep arrays "
            "and numbers only"
        )
