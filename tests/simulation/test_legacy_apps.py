"""Flower's legacy apps run on `LoopGrid`: `server_fn`, `client_fn`, `NumPyClient`, workflows and SecAgg+."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedpisa.simulation.loop import LoopGrid

CLIENTS, ROUNDS = 4, 2
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    """Restore the process's identity, which Flower's legacy server changes."""
    names = ("_task_id", "_run_id", "_node_id")
    before = [getattr(TaskIdentity, name) for name in names]
    yield
    for name, value in zip(names, before, strict=True):
        setattr(TaskIdentity, name, value)


class Own(NumPyClient):
    """A client that moves the model half way towards its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters: Any, config: Any) -> Any:
        return [(value + self.number) / 2 for value in parameters], self.number + 1, {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return float(abs(parameters[0] - self.number).mean()), self.number + 1, {}


def client_fn(context: Context) -> Any:
    return Own(int(context.node_config["partition-id"])).to_client()


class Kept(FedAvg):
    """A strategy that keeps the last model."""

    last: Any = None

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        assert not failures
        aggregated = super().aggregate_fit(server_round, results, failures)
        self.last = parameters_to_ndarrays(aggregated[0])
        return aggregated


def strategy() -> Kept:
    start = ndarrays_to_parameters([np.full(3, 8.0)])
    everyone: dict[str, Any] = dict.fromkeys(
        ("min_fit_clients", "min_evaluate_clients", "min_available_clients"), CLIENTS
    )
    return Kept(initial_parameters=start, **everyone)


def context() -> Context:
    return Context(run_id=0, node_id=1, node_config={}, state=RecordDict(), run_config={})


def expected() -> float:
    model = 8.0
    for _ in range(ROUNDS):
        model = sum((number + 1) * (model + number) / 2 for number in range(CLIENTS)) / 10
    return model


def test_server_fn_and_client_fn() -> None:
    kept = strategy()
    app = ServerApp(
        server_fn=lambda context: ServerAppComponents(strategy=kept, config=ServerConfig(num_rounds=ROUNDS))
    )
    app(LoopGrid(ClientApp(client_fn=client_fn), CLIENTS), context())
    np.testing.assert_allclose(kept.last[0], expected(), rtol=1e-12)


def test_secure_aggregation() -> None:
    """The masks cancel, so only the quantisation's rounding remains."""
    kept, app = strategy(), ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=ROUNDS), strategy=kept)
        secure = SecAggPlusWorkflow(
            num_shares=3, reconstruction_threshold=2, clipping_range=16.0, max_weight=8.0
        )
        DefaultWorkflow(fit_workflow=secure)(grid, legacy)

    app(LoopGrid(ClientApp(client_fn=client_fn, mods=[secaggplus_mod]), CLIENTS), context())
    np.testing.assert_allclose(kept.last[0], expected(), rtol=1e-3)
