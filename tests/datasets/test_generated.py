"""Samples generated on demand give the same run as stored samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedpisa.bench.workloads import WORKLOADS, Job, Workload, generated
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset, Generated
from fedpisa.datasets.client_data import ClientData
from fedpisa.runs.runner import run
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.parts import split_dataset

SIZES = np.array([3, 7, 5, 4])


def make(client_n: NDArray[np.int64], position_n: NDArray[np.int64]) -> Any:
    x = np.cos(np.outer(1 + client_n + 10 * position_n, np.arange(1, 5))).astype(np.float32)
    return x, (client_n + position_n) % 3


def on_the_fly(*, seed: int) -> Dataset:
    """Return a data set of clients of different sizes, whose samples are generated on demand."""
    x, y = make(np.arange(4), np.zeros(4, np.int64))
    return Dataset(
        name="ragged",
        x_train=x,
        y_train=y,
        x_test=x,
        y_test=y,
        num_classes=3,
        generated=Generated(SIZES, make),
    )


def held(*, seed: int) -> Dataset:
    """Return the same data set with stored samples."""
    client_n = np.repeat(np.arange(4), SIZES)
    x, y = make(client_n, np.concatenate([np.arange(size) for size in SIZES]))
    return dataclasses.replace(on_the_fly(seed=0), x_train=x, y_train=y, groups=client_n, generated=None)


def keys(dataset: str, **more: object) -> dict[str, object]:
    return {
        "dataset": f"{__name__}:{dataset}",
        "partitioner": "natural",
        "num-clients": 4,
        "num-server-rounds": 4,
        "batch-size": 2,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", ["sisa", "fedavg"])
def test_a_run_is_the_same_bits(algorithm: str, engine: str) -> None:
    more = {"algorithm": algorithm, "engine": engine, "fraction_train": 0.5, "exact_diagnostics": True}
    kept, made = (run(keys(name, **more)) for name in ("held", "on_the_fly"))
    for name, value in kept.parameters.items():
        assert (made.parameters[name] == value).all()
    assert made.rows[-1]["objective"] == kept.rows[-1]["objective"]


def test_samples_are_the_same_however_they_are_asked_for() -> None:
    data = ClientData.made_by(on_the_fly(seed=0).generated, torch.float32)  # type: ignore[arg-type]
    kept = ClientData.of(
        *(getattr(held(seed=0), f"{part}_train") for part in "xy"), [np.arange(19)], torch.float32
    )
    assert data.num_samples == kept.num_samples == 19
    assert len(data.x) == 1
    rows = torch.tensor([[[18, 0], [3, 10]]])
    for mine, its in zip(data.samples(rows), kept.samples(rows), strict=True):
        assert mine.shape[:3] == rows.shape
        assert torch.equal(mine, its)
    for (x, y), (its_x, its_y) in zip(data.batches(8), kept.batches(8), strict=True):
        assert torch.equal(x, its_x)
        assert torch.equal(y, its_y)
    assert torch.equal(torch.cat([data.client(i)[0] for i in range(4)]), kept.x)


@pytest.mark.parametrize(
    ("change", "fix"),
    [({"partitioner": "iid"}, 'set partitioner = "natural"'), ({"num-clients": 5}, "set num-clients = 4")],
)
def test_there_is_nothing_to_split(change: dict[str, object], fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        Simulation(RunConfig.from_mapping(keys("on_the_fly") | change))
    with pytest.raises(ValueError, match="nothing to split"):
        split_dataset(RunConfig.from_mapping(keys("on_the_fly")), on_the_fly(seed=0))[1]


def test_the_benchmarks_samples_depend_on_the_client_alone() -> None:
    few, many = (generated(seed=0, num_clients=n, samples_per_client=20).generated for n in (10, 10**6))
    assert few is not None
    assert many is not None
    asked = np.array([3, 9, 3]), np.array([0, 19, 1])
    x, y = few.make(*asked)
    assert (x == many.make(*asked)[0]).all()
    assert (y == many.make(*asked)[1]).all()
    assert (x[0] == many.make(asked[0][:1], asked[1][:1])[0][0]).all()
    assert not (x[0] == x[2]).any()
    assert 0 <= y.min() <= y.max() < 10


def test_a_round_touches_nobody_else() -> None:
    """A round with a million clients generates only the sampled clients' samples."""
    work = Job(Workload("tiny", 10**6, 4, 10, 4, "logistic", on_the_fly=True), "sisa", rounds=2, warm_up=0)
    simulation = Simulation(RunConfig.from_mapping(work.keys()))
    asked: set[int] = set()
    source = simulation.federation.data.generated
    assert source is not None

    def watched(client_n: NDArray[np.int64], position_n: NDArray[np.int64]) -> Any:
        asked.update(client_n.tolist())
        return source.make(client_n, position_n)

    object.__setattr__(simulation.federation.data, "generated", Generated(source.sizes_N, watched))
    assert len(list(simulation.rows())) == 3
    assert 10 < len(asked) <= 20
    assert WORKLOADS["M"].clients == 10**6
