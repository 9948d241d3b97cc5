"""``drop-last`` leaves out a smaller last mini-batch, as PyTorch's own loader does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fedpisa.clients.batches import BatchIndices, Epochs, Periodic
from fedpisa.config.run import RunConfig
from fedpisa.runs.simulation import Simulation
from tests.contracts import plain_fedavg
from tests.contracts.plain_fedavg import RATE, average, difference, numbers, rebuilt, simulated, tensors_of

SIZES, BATCH = "5 3 8", 2
KEYS: dict[str, Any] = {"sizes": SIZES, "batch-size": BATCH, "local-steps": None, "local-epochs": 2}
MODELS = {
    "batch norm": ("tests.contracts.zoo_layers:batch_norm", "stacked"),
    "written out": ("mlp", "written-out"),
}


def keys_of(model: str, **more: Any) -> dict[str, Any]:
    keys = plain_fedavg.settings(MODELS[model][0], (6,), **KEYS) | {"drop-last": True, **more}
    return {key: value for key, value in keys.items() if value is not None}


def by_loader(keys: dict[str, Any]) -> plain_fedavg.Outcome:
    """Run FedAvg in plain PyTorch on the mini-batches of a `DataLoader`; the seed decides the order."""
    model, data = plain_fedavg.initial(keys), plain_fedavg.samples("6", sizes=SIZES)
    x, y, weights = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train), numbers(SIZES)
    for server_round in (1, 2):
        trained = []
        for number, (begin, end) in enumerate(itertools.pairwise(np.cumsum([0, *weights]))):
            client = rebuilt(model, keys).train()
            optimizer = torch.optim.SGD(client.parameters(), lr=RATE)
            orders = Epochs("full", local_epochs=2).draw(
                np.array([end - begin]), np.array([number]), server_round, 0
            )
            for order in orders.index_SKCB[0, :, 0]:
                own = TensorDataset(x[begin:end], y[begin:end])
                for inputs, labels in DataLoader(own, BATCH, sampler=order.tolist(), drop_last=True):
                    optimizer.zero_grad()
                    F.cross_entropy(client(inputs), labels).backward()
                    optimizer.step()
            trained.append(tensors_of(client))
        average(tensors_of(model), trained, [weight / sum(weights) for weight in weights])
    tensors = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(torch.from_numpy(data.x_test)), torch.from_numpy(data.y_test))
    return plain_fedavg.Outcome("plain", "", tensors, float(loss))


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("model", MODELS)
def test_training_is_that_of_pytorchs_loader(model: str, engine: str) -> None:
    keys = keys_of(model)
    outcome = simulated(keys, engine)
    assert outcome.path == ("loop" if engine == "loop" else MODELS[model][1])
    error, name = difference(outcome, by_loader(keys))
    assert error < 1e-9, name


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("algorithm", ["fedavg", "pisa"])
def test_batchnorm_without_the_key_is_refused_with_it(algorithm: str, engine: str) -> None:
    local = {} if algorithm == "fedavg" else {"local-epochs": None, "learning-rate": None}
    keys = keys_of("batch norm", algorithm=algorithm, engine=engine, **local)
    with pytest.raises(
        ValueError, match=r"client 0 with 5 samples has one: .*set drop-last = true"
    ) as caught:
        Simulation(RunConfig.from_mapping(keys | {"drop-last": False}))
    assert "\n" not in str(caught.value)
    assert len(list(Simulation(RunConfig.from_mapping(keys)).rows())) == 3


def test_a_client_of_one_sample_is_refused_with_the_key_too() -> None:
    with pytest.raises(ValueError, match="client 1 with 1 samples has one: change batch-size, raise"):
        Simulation(RunConfig.from_mapping(keys_of("batch norm") | {"sizes": "4 1 4"}))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "keys",
    [
        {"algorithm": "pisa", "batches-per-round": 2, "local-steps": 2},
        {"algorithm": "pisa", "batches-per-round": "all"},
        {"algorithm": "fedgia"},
        {"algorithm": "iceadmm", "batch-size": 2},
        {"algorithm": "scaffnew", "learning-rate": RATE},
        {"algorithm": "scaffold", "learning-rate": RATE, "momentum": 0.5, "local-steps": 3},
        {"algorithm": "fedsgd"},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_engines_agree(model: str, keys: dict[str, Any]) -> None:
    plain_keys = keys_of(model, **{"local-epochs": None, "learning-rate": None, **keys})
    outcomes = [simulated(plain_keys, engine) for engine in ("loop", "vmap")]
    error, name = difference(*outcomes)
    assert error < 1e-9, name


def counted(indices: BatchIndices) -> list[list[int]]:
    """Return the sizes of each client's mini-batches."""
    counts = (indices.weight_SKCB > 0).sum(-1)
    return [[int(count) for count in client.ravel() if count] for client in counts]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 3))
def test_mini_batches_are_those_of_pytorchs_loader(sizes: list[int], batch_size: int, seed: int) -> None:
    """Both samplers cut the loader's mini-batches.

    The loader leaves a client that has fewer samples than a mini-batch without any. Here such a client keeps
    its samples.
    """
    wanted = [
        [len(batch) for batch in DataLoader(range(n), batch_size, shuffle=True, drop_last=True)] or [n]  # type: ignore[arg-type]
        for n in sizes
    ]
    sizes_S, ids_S = np.array(sizes), np.arange(len(sizes))
    samplers = (Epochs(batch_size, drop_last=True), Periodic(batch_size, "all", drop_last=True))
    for indices in (sampler.draw(sizes_S, ids_S, 1, seed) for sampler in samplers):
        assert counted(indices) == wanted
        for client, size in enumerate(sizes):
            taken = indices.index_SKCB[client][indices.weight_SKCB[client] > 0]
            assert len(set(taken)) == len(taken)
            assert set(taken) <= set(range(size))
