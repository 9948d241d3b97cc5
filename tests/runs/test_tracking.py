"""TensorBoard and MLflow log the values of the run's rows."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import fedpisa
from fedpisa.cli.main import main
from fedpisa.runs.events import Event, Generated, RoundFinished, RunFinished, RunStarted
from fedpisa.runs.tracking import MLflow, TensorBoard, Tracker, finite_metrics

KEYS = {"algorithm": "pisa", "model": "logistic", "num-server-rounds": 3, "eval-every": 2, "num-clients": 4}


IMAGES = {
    "task": "gan",
    "model": "mlp-gan",
    "widths": [4],
    "latent": 2,
    "num-server-rounds": 2,
    "num-clients": 2,
}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, object]:
    """Return the keys of a run whose model writes texts; it knows a letter that Markdown reads as code."""
    file = tmp_path / "texts.txt"
    file.write_text("`` ab\nba # ```\n" * 20)
    data = {"dataset": "text", "data-file": str(file), "window": 4, "sample-tokens": 30, "partitioner": "iid"}
    return {
        **data,
        "task": "language",
        "model": "lstm",
        "hidden": 4,
        "num-server-rounds": 2,
        "num-clients": 2,
    }


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: the extra '{package}'")


def expected(result: fedpisa.Result) -> dict[str, list[tuple[int, float]]]:
    """Return the finite values of every column as (round, value)."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in result.rows:
        for name, value in finite_metrics(row).items():
            columns.setdefault(name, []).append((int(row["round"] or 0), value))
    return columns


# ------------------------------------------------------------------------------------------------- listeners


def test_several_listeners_hear_everything_in_order() -> None:
    heard: list[tuple[str, type[Event]]] = []
    listeners = [lambda event, who=who: heard.append((who, type(event))) for who in "ab"]
    fedpisa.run({**KEYS, "num-server-rounds": 1}, on_event=listeners)
    kinds = [RunStarted, RoundFinished, RoundFinished, RunFinished]
    assert heard == [(who, kind) for kind in kinds for who in "ab"]


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_listeners_get_the_files_that_the_run_has(
    kind: str, texts: dict[str, object], tmp_path: Path
) -> None:
    """A run without a directory makes the same samples, and a round before the last one makes none."""
    keys, name = (IMAGES, "samples.png") if kind == "images" else (texts, "samples.txt")
    heard: list[Event] = []
    fedpisa.run(keys, tmp_path / "run")
    fedpisa.run(keys, on_event=heard.append)
    (found,) = (event for event in heard if isinstance(event, Generated))
    assert heard.index(found) == len(heard) - 2
    assert found == Generated(2, {name: (tmp_path / "run" / name).read_bytes()})


def test_a_listener_that_refuses_leaves_a_failed_run(tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fedpisa.run(KEYS, tmp_path / "run", on_event=refuse)
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["status"] == "failed"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_extra_is_one_line_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["run", "--track", name, "--out", str(tmp_path / "run")]) == 2
    assert f"pip install 'fedpisa[{name}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def check(got: dict[str, Sequence[tuple[int, float]]], result: fedpisa.Result) -> None:
    wanted = expected(result)
    assert got.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in got[name]] == [step for step, _ in points]
        assert [value for _, value in got[name]] == pytest.approx([value for _, value in points], rel=1e-6)


@needs("tensorboard")
def test_tensorboard_holds_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(f"{key}={value}" for key, value in KEYS.items())
    assert main(["run", "-c", words, "--out", str(tmp_path / "run"), "--track", "tensorboard"]) == 0
    result = fedpisa.load_result(tmp_path / "run")
    check(scalars(tmp_path / "run" / "tensorboard"), result)
    assert "primal_residual" in expected(result)
    assert "track" not in (tmp_path / "run" / "config.toml").read_text()


@needs("tensorboard")
def test_tensorboard_shows_a_repeated_round_once(tmp_path: Path) -> None:
    """A run that was killed after round 3 resumes from a checkpoint of round 1."""
    result = fedpisa.run(KEYS)
    for rows in (result.rows, result.rows[2:]):
        tracker = TensorBoard(tmp_path)
        tracker(RunStarted(result.config, 0, 0, 0, "vmap", "cpu"))
        for row in rows:
            tracker(RoundFinished(row, 3))
        tracker.finish("failed")
    assert len(list(tmp_path.iterdir())) == 2
    check(scalars(tmp_path), result)


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


@needs("tensorboard")
def test_tensorboard_shows_generated_images(tmp_path: Path) -> None:
    fedpisa.run(IMAGES, tmp_path / "run", on_event=TensorBoard(tmp_path / "log"))
    events = events_of(tmp_path / "log")
    assert events.Tags()["images"] == ["samples"]
    (shown,) = events.Images("samples")
    assert shown.step == 2
    written = (tmp_path / "run" / "samples.png").read_bytes()
    pixels = (imread(io.BytesIO(png), format="png") for png in (shown.encoded_image_string, written))
    assert np.array_equal(*pixels)


@needs("tensorboard")
def test_tensorboard_shows_generated_texts(texts: dict[str, object], tmp_path: Path) -> None:
    """TensorBoard reads Markdown, in which an indented text is shown as it is."""
    fedpisa.run(texts, tmp_path / "run", on_event=TensorBoard(tmp_path / "log"))
    (shown,) = events_of(tmp_path / "log").Tensors("samples/text_summary")
    assert shown.step == 2
    (text,) = shown.tensor_proto.string_val
    assert text.decode() == textwrap.indent(
        (tmp_path / "run" / "samples.txt").read_text(), "    ", lambda line: True
    )


@needs("tensorboard")
def test_samples_hide_no_round_of_an_earlier_file(tmp_path: Path) -> None:
    """A run that was killed after its last round resumes with no further round."""
    result = fedpisa.run(KEYS)
    for rows, files in ((result.rows, {}), ([], {"samples.txt": b"a"})):
        tracker = TensorBoard(tmp_path)
        tracker(RunStarted(result.config, 0, 0, 0, "vmap", "cpu"))
        for row in rows:
            tracker(RoundFinished(row, 3))
        if files:
            tracker(Generated(3, files))
        tracker.finish("failed")
    check(scalars(tmp_path), result)
    assert [event.step for event in events_of(tmp_path).Tensors("samples/text_summary")] == [3]


# ---------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of an empty store, because setting one up takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def history(directory: Path) -> tuple[Any, dict[str, list[tuple[int, float]]]]:
    import mlflow

    note = json.loads((directory / "mlflow.json").read_bytes())
    client = mlflow.MlflowClient(tracking_uri=note["tracking_uri"])
    run = client.get_run(note["run_id"])
    names = run.data.metrics
    return run, {
        name: sorted({(m.step, m.value) for m in client.get_metric_history(note["run_id"], name)})
        for name in names
    }


@needs("mlflow")
def test_mlflow_holds_every_row_and_key(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    result = fedpisa.run(KEYS, tmp_path / "run", on_event=[MLflow(tmp_path / "run")])
    run, metrics = history(tmp_path / "run")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params == {key: str(value) for key, value in result.config.to_mapping().items()}
    check(metrics, result)
    assert not (tmp_path / "run" / "mlruns").exists()


@needs("mlflow")
def test_mlflow_keeps_samples_as_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    fedpisa.run(IMAGES, tmp_path / "run", on_event=MLflow(tmp_path / "run"))
    note = json.loads((tmp_path / "run" / "mlflow.json").read_bytes())
    client = mlflow.MlflowClient(tracking_uri=note["tracking_uri"])
    found = client.download_artifacts(note["run_id"], "samples.png", str(tmp_path))
    assert Path(found).read_bytes() == (tmp_path / "run" / "samples.png").read_bytes()
    assert not (tmp_path / "mlruns").exists()


@needs("mlflow")
def test_mlflow_goes_on_in_the_same_run(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    result = fedpisa.run(KEYS)
    ids = []
    for rows, error in ((result.rows[:3], KeyboardInterrupt), (result.rows[2:], ValueError)):
        with pytest.raises(error), MLflow(tmp_path) as tracker:  # noqa: PT012
            tracker(RunStarted(result.config, 0, 0, 0, "vmap", "cpu"))
            for row in rows:
                tracker(RoundFinished(row, 3))
            raise error
        run, metrics = history(tmp_path)
        ids.append((run.info.run_id, run.info.status))
    assert ids == [(ids[0][0], "KILLED"), (ids[0][0], "FAILED")]
    check(metrics, result)


@needs("mlflow")
def test_mlflow_without_a_store_makes_one_in_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fedpisa.run({**KEYS, "num-server-rounds": 1}, tmp_path / "run", on_event=MLflow(tmp_path / "run"))
    assert (tmp_path / "run" / "mlruns" / "mlflow.db").is_file()
    assert history(tmp_path / "run")[0].info.status == "FINISHED"


@needs("mlflow")
def test_mlflow_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker: Tracker = MLflow(tmp_path)
    with pytest.raises(ValueError, match=r"MLflow cannot write to .*set MLFLOW_TRACKING_URI"):
        tracker(RunStarted(fedpisa.RunConfig(), 0, 0, 0, "vmap", "cpu"))
    tracker.finish("failed")
