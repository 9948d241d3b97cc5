"""The round loop for any Flower strategy on any Grid."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpisa.flower.messages import Broadcast, StackedReplies, count_bytes
from fedpisa.server.base import ServerStrategy


@final
@dataclass(frozen=True)
class Round:
    """The result of one round.

    Parameters
    ----------
    server_round
        1, 2, ...
    arrays
        The global model after the round.
    train_metrics, evaluate_metrics
        The clients' metrics, aggregated by the strategy; ``None`` if it aggregates nothing.
    bytes_down, bytes_up
        Bytes of the numbers in all arrays sent and received for training; of replies, the valid ones.
    seconds
        Seconds from the sampling of clients to the new model, without the clients' evaluation.
    """

    server_round: int
    arrays: ArrayRecord
    train_metrics: MetricRecord | None
    evaluate_metrics: MetricRecord | None
    bytes_down: int
    bytes_up: int
    seconds: float


def rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    num_rounds: int,
    timeout: float = 3600.0,
    *,
    first_round: int = 1,
) -> Iterator[Round]:
    """Yield each round when it ends.

    The strategy's methods are called in the same order as by Flower's `Strategy.start`.

    Parameters
    ----------
    strategy
        A strategy of fedpisa or Flower.
    grid
        The Grid that delivers the messages.
    arrays
        The global model before ``first_round``.
    num_rounds
        Number of the last round.
    timeout
        Seconds to wait for replies.
    first_round
        Number of the first round; above 1 in a resumed run.
    """
    for server_round in range(first_round, num_rounds + 1):
        begin = time.perf_counter()
        # Bytes are counted at once, because clients and strategies may change the messages. Servers of fedpisa count
        # the bytes of valid replies, because the description of another reply can be anything.
        requests = _reusable(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        bytes_down = count_bytes(requests)
        replies = _reusable(grid.send_and_receive(requests, timeout=timeout))
        bytes_up = 0 if isinstance(strategy, ServerStrategy) else count_bytes(replies)
        aggregated, train_metrics = strategy.aggregate_train(server_round, replies)
        if isinstance(strategy, ServerStrategy):
            bytes_up = strategy.bytes_up
        arrays = arrays if aggregated is None else aggregated
        seconds = time.perf_counter() - begin
        requests = list(strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid))
        replies = grid.send_and_receive(requests, timeout=timeout) if requests else []
        evaluate_metrics = strategy.aggregate_evaluate(server_round, replies)
        yield Round(server_round, arrays, train_metrics, evaluate_metrics, bytes_down, bytes_up, seconds)


def _reusable(messages: Iterable[Message]) -> Iterable[Message]:
    """Return messages that can be iterated over more than once."""
    return messages if isinstance(messages, Broadcast | StackedReplies) else list(messages)
