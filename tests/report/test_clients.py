"""The report on clients: a run's label counts, and the accuracies in ``clients.parquet``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedpisa
from fedpisa.report import clients
from fedpisa.report.runs import Run, collect
from fedpisa.simulation.parts import load_dataset
from fedpisa.tasks.measures import ACCURACY
from tests.runs.interrupted import forget_digests

KEYS = {"algorithm": "fedavg", "num-server-rounds": 2, "num-clients": 4, "partitioner": "iid"}


def trained(path: Path, **keys: object) -> Run:
    fedpisa.run({**KEYS, "model": "logistic", **keys}, path)
    return collect([path]).runs[0]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return trained(tmp_path / "run")


def test_labels_of_a_split_are_those_of_its_run(run: Run) -> None:
    found = clients.picture([run], 0)
    assert found is not None
    labels = load_dataset(fedpisa.load_config(run.result.config)).y_train
    counts = [np.bincount(labels[part], minlength=10).tolist() for part in run.result.partition]
    assert found.statistics.label_counts is not None
    assert found.statistics.label_counts.tolist() == counts
    assert (found.note, found.deciles) == ("", False)


def test_of_a_regression_the_deciles_are_counted(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", dataset="quadratic", model="linear", partitioner="iid")
    found = clients.picture([run], 0)
    assert found is not None
    assert found.deciles
    assert found.statistics.label_counts is not None
    sizes = [len(part) for part in run.result.partition]
    assert found.statistics.label_counts.sum(axis=1).tolist() == sizes
    assert np.ptp(found.statistics.label_counts.sum(axis=0)) <= 1


@pytest.mark.parametrize("counts", [{}, {"labels": np.ones((4, 10), np.int64)}, {"labels": np.ones(3)}])
def test_a_run_without_fit_counts_leaves_its_sizes(run: Run, counts: dict[str, Any]) -> None:
    """A run of an earlier version has sizes but no label counts."""
    parts = {str(client): part for client, part in enumerate(run.result.partition)}
    np.savez(forget_digests(run.directory) / "partition.npz", **parts, **counts)
    found = clients.picture([run], 0)
    assert found is not None
    assert found.statistics.label_counts is None
    assert found.statistics.sizes.tolist() == [len(part) for part in run.result.partition]
    assert found.note == "no labels by client: the data have none, or an earlier version did not store them"
    assert len(fedpisa.load_result(run.directory).partition) == 4


def test_accuracies_by_client_need_per_client(run: Run) -> None:
    (fair,) = clients.fairness(collect([run.directory]), {0: ACCURACY.of("test")})
    assert (fair.by_seed, fair.note) == ({}, "run with per-client = true to have them")


@pytest.mark.parametrize("folder", [True, False])
def test_kept_accuracies_are_preferred(run: Run, folder: bool) -> None:
    pytest.importorskip("pyarrow")
    assert clients.kept_values(run, ACCURACY.of("test")) is None
    frame = pd.DataFrame({"round": 2, "client": [3, 0, 1, 2], "accuracy": [0.4, 0.1, 0.2, 0.3]})
    place = run.directory / "clients.parquet"
    if folder:
        place.mkdir()
        frame.assign(round=1, accuracy=0.0).to_parquet(place / "round-000001.parquet")
        frame.to_parquet(place / "round-000002.parquet")
    else:
        pd.concat([frame.assign(round=1), frame]).to_parquet(place)
    (fair,) = clients.fairness(collect([run.directory]), {0: ACCURACY.of("test")})
    np.testing.assert_array_equal(fair.by_seed[0], [0.1, 0.2, 0.3, 0.4])
    assert "clients.parquet" in fair.source


def test_kept_accuracies_of_another_round_do_not_count(run: Run) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"round": 1, "client": range(4), "accuracy": 0.5})
    frame.to_parquet(run.directory / "clients.parquet")
    assert clients.kept_values(run, ACCURACY.of("test")) is None
    (run.directory / "clients.parquet").write_bytes(b"damaged")
    assert clients.kept_values(run, ACCURACY.of("test")) is None
