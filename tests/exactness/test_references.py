"""The references equal plain PyTorch loops, and nothing takes them for federated algorithms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedpisa
from fedpisa.apps.server_app import main as server_main
from fedpisa.config.run import RunConfig
from fedpisa.datasets import Dataset
from fedpisa.runs.console import summary
from fedpisa.runs.results import load_result
from fedpisa.server.base import sampled
from fedpisa.simulation.federation import Federation

ROUNDS = 4
COMMON: Mapping[str, Any] = {
    "model": "logistic", "num-clients": 5, "dtype": "float64", "num-server-rounds": ROUNDS, "batch-size": 50,
    "learning-rate": 0.2,
}  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"weight-decay": 0.1},
    {"momentum": 0.5, "weight-decay": 0.01, "local-epochs": 2},
    {"local-steps": 3},
]


def trained(
    federation: Federation, x: torch.Tensor, y: torch.Tensor, client: int, rounds: list[int]
) -> nn.Module:
    """Return a linear model after plain SGD on the run's mini-batches, with a new optimizer for each round."""
    model = nn.Linear(x[0].numel(), 10).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    update = federation.algorithm.local_update
    for number in rounds:
        options = {"momentum": update.momentum, "weight_decay": update.weight_decay}
        optimizer = torch.optim.SGD(model.parameters(), update.learning_rate, **options)
        drawn = update.batch_sampler().draw(
            np.array([len(x)]), np.array([client]), number, federation.config.seed
        )
        for step in range(int(drawn.steps_S[0])):
            index, weight = drawn.index_SKCB[0, step].ravel(), drawn.weight_SKCB[0, step].ravel()
            batch = torch.from_numpy(index[weight > 0])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch].flatten(1)), y[batch]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, federation: Federation) -> float:
    answers = model(federation.test.x.flatten(1)).argmax(1)
    return float((answers == federation.test.y).double().mean())


@pytest.mark.parametrize("keys", STEPS, ids=str)
def test_centralised_is_plain_sgd_on_all_samples(keys: dict[str, Any], engine: str) -> None:
    config = {**COMMON, **keys, "algorithm": "centralised", "engine": engine, "fraction-train": 0.4}
    federation = Federation(RunConfig.from_mapping(config))
    order = np.sort(np.concatenate(federation.partition))
    assert np.array_equal(order, np.arange(1438))
    x, y = federation.data.client(0)
    model = trained(federation, x, y, 0, [1, 2, 3, 4])
    result = fedpisa.run(config)
    wanted = {name.rpartition(".")[2]: value for name, value in result.parameters.items()}
    for name, parameter in model.named_parameters():
        assert np.abs(wanted[name] - parameter.detach().numpy()).max() <= 1e-12
    assert result.last("test_accuracy") == pytest.approx(accuracy(model, federation), abs=1e-12)
    assert len(result.partition) == 5  # the split that the others of the seed have


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("keys", STEPS, ids=str)
def test_local_is_a_loop_for_each_client(keys: dict[str, Any], fraction: float, engine: str) -> None:
    """A client trains in the rounds in which it is sampled; the accuracy is the mean over clients by samples."""
    config = {**COMMON, **keys, "algorithm": "local", "engine": engine, "fraction-train": fraction}
    federation = Federation(RunConfig.from_mapping(config))
    cohorts = {number: sampled(range(5), fraction, 0, number) for number in range(1, ROUNDS + 1)}
    models = [
        trained(
            federation, *federation.data.client(i), i, [n for n, cohort in cohorts.items() if i in cohort]
        )
        for i in range(5)
    ]
    result = fedpisa.run(config)
    accuracies, sizes = np.array([accuracy(model, federation) for model in models]), federation.data.sizes_N
    mean = np.average(accuracies, weights=sizes)
    assert result.last("test_accuracy") == pytest.approx(mean, abs=1e-12)
    deviation = np.sqrt(np.average((accuracies - mean) ** 2, weights=sizes))
    assert result.last("test_accuracy_deviation") == pytest.approx(deviation, abs=1e-12)
    losses = [
        nn.functional.cross_entropy(model(federation.test.x.flatten(1)), federation.test.y).item()
        for model in models
    ]
    assert result.last("test_loss") == pytest.approx(np.average(losses, weights=sizes), abs=1e-12)
    assert result.total("bytes_up") == 0


def test_local_by_client_is_each_model_on_its_own_samples(engine: str) -> None:
    pytest.importorskip("pyarrow")
    config = {**COMMON, "algorithm": "local", "engine": engine, "per-client": True}
    federation = Federation(RunConfig.from_mapping(config))
    clients = fedpisa.run(config).clients
    for client in range(5):
        x, y = federation.data.client(client)
        answers = trained(federation, x, y, client, [1, 2, 3, 4])(x.flatten(1)).argmax(1)
        row = clients[(clients["round"] == ROUNDS) & (clients["client"] == client)].iloc[0]
        assert row["accuracy"] == pytest.approx(float((answers == y).double().mean()))


# ----------------------------------------------------------------------------------------------- refusals


PRIVATE = {"differential-privacy": "server-fixed-clipping", "noise-multiplier": 1.0, "clipping-norm": 1.0}


@pytest.mark.parametrize("name", ["centralised", "local"])
@pytest.mark.parametrize("keys", [{"server-strategy": "fed-adam"}, PRIVATE], ids=str)
def test_server_strategies_refuse_references(name: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a reference without federation, .*: remove the keys"):
        fedpisa.run({**COMMON, "algorithm": name, **keys})


@pytest.mark.parametrize(
    ("name", "reason"), [("centralised", "all samples in one place"), ("local", "no client sends its model")]
)
def test_nodes_refuse_references(name: str, reason: str) -> None:
    wanted = f"algorithm = '{name}' is a reference without federation, .*{reason}: use a federated algorithm"
    with pytest.raises(ValueError, match=wanted):
        Federation(RunConfig(algorithm=name), clients_have_data=True)
    context = Context(1, 1, {}, RecordDict(), {"algorithm": name, "out": "never-made"})
    with pytest.raises(ValueError, match=wanted):
        server_main(None, context)
    assert not Path("never-made").exists()


def test_what_a_reference_cannot_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would be averaged over the clients.*use a model without buffers"):
        fedpisa.run({"algorithm": "local", "model": "tests.exactness.test_references:normalised"})
    with pytest.raises(ValueError, match=r"more than the 1 client of a round: lower it$"):
        fedpisa.run({"algorithm": "centralised", "min-replies": 2})


def normalised(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    size = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, num_outputs))


# ------------------------------------------------------------------------------------ the majority's share


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_the_majority_class_is_counted(labels: list[int]) -> None:
    x_train, y_train = np.zeros((10, 2), np.float32), np.arange(10) % 5
    x_test, y_test = np.zeros((len(labels), 2), np.float32), np.array(labels)
    data = Dataset(name="made", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, num_classes=5)
    config = RunConfig(num_clients=2, partitioner="iid", model="logistic", device="cpu")
    share = Federation(config, dataset=data).majority_share()
    assert share == Counter(labels).most_common(1)[0][1] / len(labels)


def test_its_share_stands_beside_accuracies(tmp_path: Path) -> None:
    keys = {**COMMON, "algorithm": "fedavg", "num-server-rounds": 1}
    result = fedpisa.run(keys, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["majority_share"] == result.majority_share == load_result(tmp_path / "run").majority_share
    assert "reference" not in stored
    text = f"{result.majority_share:.1%} is the majority class"
    assert text in summary(result)
    assert f"majority class: {result.majority_share:.2%}" in repr(result)
    regression = fedpisa.run({"dataset": "quadratic", "partitioner": "natural", "num-server-rounds": 1})
    assert regression.majority_share is None
    assert "majority" not in repr(regression) + summary(regression)
