"""The round loop: any Flower strategy on any Grid, one round at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


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
    seconds
        Time from the sampling to the new model, the clients' evaluation left out.
    """

    server_round: int
    arrays: ArrayRecord
    train_metrics: MetricRecord | None
    evaluate_metrics: MetricRecord | None
    seconds: float


def rounds(
    strategy: Strategy, grid: Grid, arrays: ArrayRecord, num_rounds: int, timeout: float = 3600.0
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
        The initial model.
    num_rounds
        Number of rounds.
    timeout
        Seconds to wait for replies.
    """
    for server_round in range(1, num_rounds + 1):
        begin = time.perf_counter()
        requests = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(requests, timeout=timeout)
        aggregated, train_metrics = strategy.aggregate_train(server_round, replies)
        arrays = arrays if aggregated is None else aggregated
        seconds = time.perf_counter() - begin
        questions = list(strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid))
        answers = grid.send_and_receive(questions, timeout=timeout) if questions else []
        evaluate_metrics = strategy.aggregate_evaluate(server_round, answers)
        yield Round(server_round, arrays, train_metrics, evaluate_metrics, seconds)
