"""The clients' side: labels, and accuracies of the stored model or of ``clients.parquet``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedpisa
from fedpisa.report import clients
from fedpisa.report.runs import Run, collect
from fedpisa.simulation.federation import load_dataset
from tests.runs.interrupted import forget_digests

KEYS = {"algorithm": "fedavg", "num-server-rounds": 2, "num-clients": 4, "partitioner": "iid"}


def trained(path: Path, **keys: object) -> Run:
    fedpisa.run({**KEYS, "model": "logistic", **keys}, path)
    return collect([path]).runs[0]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return trained(tmp_path / "run")


def test_the_kept_model_is_evaluated_on_each_clients_samples(run: Run) -> None:
    """One pass over all training samples, counted by hand."""
    data = clients.Data()
    found = clients.evaluated_accuracies(run, data)
    dataset = load_dataset(run.result.config)
    kept = fedpisa.load_result(run.directory).parameters
    (weight,) = [value for value in kept.values() if value.ndim == 2]
    (bias,) = [value for value in kept.values() if value.ndim == 1]
    correct = (dataset.x_train.reshape(len(dataset.x_train), -1) @ weight.T + bias).argmax(
        1
    ) == dataset.y_train
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, [correct[part].mean() for part in run.result.partition])


def test_buffers_of_the_model_are_kept(tmp_path: Path) -> None:
    norm = tmp_path / "normed.py"
    norm.write_text(
        "from torch import nn\n"
        "def net(shape, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_outputs))\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        run = trained(tmp_path / "run", model="normed:net")
        # It is refused where the test accuracy is not the run's, so its being an array is the check.
        assert isinstance(clients.evaluated_accuracies(run, clients.Data()), np.ndarray)
    finally:
        sys.path.remove(str(tmp_path))


def test_labels_of_a_split(run: Run) -> None:
    found = clients.picture([run], 0, clients.Data())
    assert found is not None
    assert found.statistics.label_counts is not None
    assert found.statistics.label_counts.sum(axis=1).tolist() == [len(part) for part in run.result.partition]
    assert found.note == ""


def test_without_data_sizes_are_left(run: Run) -> None:
    data = clients.Data(wanted=False)
    found = clients.picture([run], 0, data)
    assert found is not None
    assert found.statistics.label_counts is None
    assert "--no-data" in found.note
    assert clients.evaluated_accuracies(run, data) == found.note


def test_missing_and_other_data_are_told(run: Run) -> None:
    config = (run.directory / "config.toml").read_text()
    (run.directory / "config.toml").write_text(config.replace('"digits"', '"a9a"') + 'data-dir = "nowhere"\n')
    reason = clients.Data().of(collect([run.directory]).runs[0])
    assert isinstance(reason, str)
    assert reason.startswith("the data are not available (")
    (run.directory / "config.toml").write_text(config.replace("seed = 0", "seed = 1"))
    reason = clients.Data().of(collect([run.directory]).runs[0])
    assert reason == "the loaded data do not give the partition in partition.npz"


def test_another_model_than_the_runs_is_told(run: Run) -> None:
    metrics = forget_digests(run.directory) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.0'))
    reason = clients.evaluated_accuracies(collect([run.directory]).runs[0], clients.Data())
    assert isinstance(reason, str)
    assert "its run measured 0.0" in reason
    (run.directory / "model.safetensors").unlink()
    assert clients.evaluated_accuracies(run, clients.Data()) == "there is no model.safetensors"


@pytest.mark.parametrize("folder", [True, False])
def test_kept_accuracies_are_preferred(run: Run, folder: bool) -> None:
    pytest.importorskip("pyarrow")
    assert clients.kept_accuracies(run) is None
    frame = pd.DataFrame({"round": 2, "client": [3, 0, 1, 2], "accuracy": [0.4, 0.1, 0.2, 0.3]})
    place = run.directory / "clients.parquet"
    if folder:
        place.mkdir()
        frame.assign(round=1, accuracy=0.0).to_parquet(place / "round-000001.parquet")
        frame.to_parquet(place / "round-000002.parquet")
    else:
        pd.concat([frame.assign(round=1), frame]).to_parquet(place)
    (fair,) = clients.fairness(collect([run.directory]), clients.Data(wanted=False))
    np.testing.assert_array_equal(fair.by_seed[0], [0.1, 0.2, 0.3, 0.4])
    assert "clients.parquet" in fair.source


def test_kept_accuracies_of_another_round_do_not_count(run: Run) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"round": 1, "client": range(4), "accuracy": 0.5})
    frame.to_parquet(run.directory / "clients.parquet")
    assert clients.kept_accuracies(run) is None
    (run.directory / "clients.parquet").write_bytes(b"damaged")
    assert clients.kept_accuracies(run) is None
