"""A run's directory and the result that reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedpisa.config.run import RunConfig
from fedpisa.runs.places import free_directory, require_free
from fedpisa.runs.results import METRICS, Result, RunDirectory, load_result

PARTITION = [np.array([0, 3]), np.array([1]), np.array([2, 4, 5])]
PARAMETERS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([0.5, -1.5]),
    "norm.num_batches_tracked": np.array(7),
}
ROWS = [
    {"round": 0, "test_loss": 2.3, "test_accuracy": 0.1},
    {"round": 1, "train_loss": 2.0, "bytes_up": 100, "bytes_down": 80, "local_steps": 6, "seconds": 0.5},
    {
        "round": 2,
        "train_loss": 1.0,
        "test_loss": 1.1,
        "test_accuracy": 0.8,
        "bytes_up": 100,
        "bytes_down": 80,
        "local_steps": 6,
        "seconds": 0.25,
        "primal_residual": 0.01,
    },
]


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(algorithm="fedavg", num_clients=3, num_server_rounds=2, target_accuracy=0.75)


def write(path: Path, config: RunConfig) -> RunDirectory:
    run = RunDirectory.create(path, config=config, info={"seed": 0}, partition=PARTITION)
    for row in ROWS:
        run.append(row)
    run.write_model(PARAMETERS)
    run.update(status="finished", seconds=0.75)
    return run


def test_what_is_written_is_read_back(tmp_path: Path, config: RunConfig) -> None:
    result = load_result(write(tmp_path / "a" / "run", config).path)
    assert result.config == config
    assert result.status == "finished"
    assert result.directory == tmp_path / "a" / "run"
    assert [part.tolist() for part in result.partition] == [part.tolist() for part in PARTITION]
    assert set(result.parameters) == set(PARAMETERS)
    for name, value in PARAMETERS.items():
        np.testing.assert_array_equal(result.parameters[name], value)
        assert result.parameters[name].dtype == value.dtype
        assert result.parameters[name].shape == value.shape
    assert list(result.history["round"]) == [0, 1, 2]
    assert result.history.columns.tolist() == [*METRICS, "primal_residual"]
    assert not list((tmp_path / "a" / "run").glob(".*"))


def test_directory_has_the_documented_files(tmp_path: Path, config: RunConfig) -> None:
    path = write(tmp_path / "run", config).path
    assert {file.name for file in path.iterdir()} == {
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "partition.npz",
        "model.safetensors",
    }
    assert json.loads((path / "run.json").read_text()) == {"status": "finished", "seed": 0, "seconds": 0.75}
    with np.load(path / "partition.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["0", "1", "2"]
        assert all(arrays[name].dtype == np.int64 for name in arrays.files)


def test_same_content_gives_same_bytes(tmp_path: Path, config: RunConfig) -> None:
    one, two = write(tmp_path / "one", config).path, write(tmp_path / "two", config).path
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_transposed_parameters_keep_their_values(tmp_path: Path, config: RunConfig) -> None:
    run = RunDirectory.create(tmp_path / "run", config=config, info={}, partition=PARTITION)
    matrix = np.arange(6.0).reshape(2, 3)
    run.write_model({"weight": matrix.T})
    np.testing.assert_array_equal(load_result(run.path).parameters["weight"], matrix.T)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_what_is_not_finite_becomes_null(tmp_path: Path, config: RunConfig, value: float) -> None:
    run = RunDirectory.create(tmp_path / "run", config=config, info={"loss": value}, partition=[])
    run.append({"round": np.int64(1), "train_loss": value})
    assert run.metrics.read_text() == '{"round": 1, "train_loss": null}\n'
    assert json.loads((run.path / "run.json").read_text())["loss"] is None
    result = load_result(run.path)
    assert np.isnan(result.history["train_loss"][0])
    assert result.last("train_loss") is None


def test_nothing_is_overwritten(tmp_path: Path, config: RunConfig) -> None:
    path = write(tmp_path / "run", config).path
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(ValueError, match=r"exists and is not empty.*nothing is overwritten"):
        write(path, config)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_an_empty_directory_may_be_used_and_a_file_not(tmp_path: Path) -> None:
    assert require_free(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a directory"):
        require_free(tmp_path / "file")


def test_bad_input_leaves_nothing_behind(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(TypeError):
        RunDirectory.create(tmp_path / "run", config=config, info={"what": object()}, partition=PARTITION)
    assert not (tmp_path / "run").exists()


def test_free_directory_counts_on(tmp_path: Path) -> None:
    assert free_directory(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").touch()
    assert free_directory(tmp_path / "a") == tmp_path / "a-3"


def test_a_run_that_goes_on_can_be_read(tmp_path: Path, config: RunConfig) -> None:
    run = RunDirectory.create(tmp_path / "run", config=config, info={}, partition=PARTITION)
    assert load_result(run.path).history.empty
    run.append(ROWS[0])
    with run.metrics.open("a") as file:
        file.write('{"round": 1, "train_l')  # the process was killed here
    result = load_result(run.path)
    assert result.status == "running"
    assert result.rows == ROWS[:1]
    assert result.parameters == {}


def test_what_is_not_a_run_is_refused(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        load_result(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"lacks config\.toml, run\.json, metrics\.jsonl"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.toml", "run.json", "metrics.jsonl", "partition.npz", "model.safetensors"]
)
def test_a_damaged_file_is_named(tmp_path: Path, config: RunConfig, name: str) -> None:
    path = write(tmp_path / "run", config).path
    (path / name).write_bytes(b"\x00damaged\n")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_result(path)
    assert "\n" not in str(caught.value)


def test_numbers_of_a_result(config: RunConfig) -> None:
    result = Result(config=config, rows=ROWS, parameters={}, partition=PARTITION)
    assert result.last("train_loss") == 1.0
    assert result.best() == 0.8
    assert result.total("bytes_up") == 200
    assert result.total("nothing") == 0
    assert result.rounds_to(0.75) == 2
    assert result.rounds_to(0.05) == 0
    assert result.rounds_to(0.9) is None
    assert result.last("nothing") is None


def test_text_of_a_result(config: RunConfig, tmp_path: Path) -> None:
    result = Result(config=config, rows=ROWS, parameters={}, partition=PARTITION, directory=Path("<runs>"))
    assert "algorithm: fedavg" in repr(result)
    assert "test accuracy: 80.00%" in repr(result)
    assert "\n" not in repr(result)
    assert "&lt;runs&gt;" in result._repr_html_()
    empty = Result(config=config, rows=[], parameters={}, partition=[], status="failed")
    assert "rounds: 0, status: failed" in repr(empty)


def test_plot_draws_what_was_measured(config: RunConfig) -> None:
    from matplotlib.figure import Figure

    result = Result(config=config, rows=ROWS, parameters={}, partition=PARTITION)
    ax = Figure().subplots()
    assert result.plot(x="bytes", ax=ax, color="black") is ax
    line = ax.lines[0]
    assert line.get_label() == "fedavg"
    np.testing.assert_allclose(line.get_xydata(), [[0, 0.1], [360e-6, 0.8]])
