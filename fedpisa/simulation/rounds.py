"""The round loop: any Flower strategy on any Grid, one round at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpisa.flower.messages import Broadcast, StackedReplies, count_bytes


@final
@dataclass(frozen=True)
class Round:
    """What one round left.

    Parameters
    ----------
    server_round
        1, 2, ...
    arrays
        The global model after it.
    train_metrics, evaluate_metrics
        What the strategy aggregated of the clients' metrics; ``None`` where it aggregated nothing.
    bytes_down, bytes_up
        Bytes of the numbers in all arrays sent for training, and received.
    seconds
        Time from the sampling to the new model, the clients' evaluation left out.
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
    """Yield each round as it ends; the caller evaluates, records, stops.

    The same calls in the same order as Flower's own `Strategy.start`.

    Parameters
    ----------
    strategy
        Fedpisa's or Flower's.
    grid
        What carries the messages.
    arrays
        The model before the first of these rounds.
    num_rounds
        Number of the last round.
    timeout
        Seconds to wait for replies.
    first_round
        Number of the first round, of a run that goes on.
    """
    for server_round in range(first_round, num_rounds + 1):
        begin = time.perf_counter()
        # Counted at once: clients and strategies may take the messages apart.
        requests = _held(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        down = count_bytes(requests)
        replies = _held(grid.send_and_receive(requests, timeout=timeout))
        up = count_bytes(replies)
        aggregated, train_metrics = strategy.aggregate_train(server_round, replies)
        arrays = arrays if aggregated is None else aggregated
        seconds = time.perf_counter() - begin
        questions = list(strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid))
        answers = grid.send_and_receive(questions, timeout=timeout) if questions else []
        evaluate_metrics = strategy.aggregate_evaluate(server_round, answers)
        yield Round(server_round, arrays, train_metrics, evaluate_metrics, down, up, seconds)


def _held(messages: Iterable[Message]) -> Iterable[Message]:
    """Return messages that can be read twice."""
    return messages if isinstance(messages, Broadcast | StackedReplies) else list(messages)
