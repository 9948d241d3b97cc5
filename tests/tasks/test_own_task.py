"""A user's own loss and metrics: on every engine, in every command, on nodes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

import fedpisa
from fedpisa.cli.main import main
from fedpisa.families.data import load
from fedpisa.report import write_report
from fedpisa.runs.results import load_result

BASE = {
    "dataset": "digits",
    "model": "logistic",
    "num-clients": 4,
    "num-server-rounds": 3,
    "algorithm": "fedavg",
    "learning-rate": 0.05,
}
OWN = {**BASE, "task": "own_task:SquaredHinge"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).with_name("own_task.py"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("algorithm", ["fedavg", "sisa", "scaffold", "spectral-pisa", "moon"])
def test_engines_agree(algorithm: str) -> None:
    keys = {**OWN, "algorithm": algorithm, "learning-rate": None, "dtype": "float64", "model": "mlp"}
    vmap, loop = (fedpisa.run({**keys, "engine": engine}) for engine in ("vmap", "loop"))
    for name, value in vmap.parameters.items():
        np.testing.assert_allclose(value, loop.parameters[name], rtol=1e-10, atol=1e-12)
    for column in ("train_loss", "test_loss", "test_f1", "test_wrong"):
        np.testing.assert_allclose(vmap.history[column], loop.history[column], rtol=1e-9)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_loss_may_write_into_its_targets(engine: str) -> None:
    plain, writing = (
        fedpisa.run({**OWN, "task": f"own_task:{name}", "engine": engine}).history["test_loss"]
        for name in ("Next", "Writing")
    )
    np.testing.assert_allclose(writing, plain, rtol=1e-6)


def test_ones_own_cross_entropy_is_ours() -> None:
    keys = {**BASE, "dtype": "float64"}
    ours, own = fedpisa.run(keys), fedpisa.run({**keys, "task": "own_task:CrossEntropy"})
    for name, value in ours.parameters.items():
        np.testing.assert_allclose(own.parameters[name], value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(own.history["test_loss"], ours.history["test_loss"], rtol=1e-12)
    assert "test_accuracy" not in own.history


def test_a_run_knows_its_measures(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    keys = {
        **OWN,
        "validation-fraction": 0.2,
        "per-client": True,
        "target": 0.3,
        "target-measure": "test-wrong",
    }
    fedpisa.run(keys, folder / "run")
    result = load_result(folder / "run")
    assert [(m.column, m.higher_is_better) for m in result.measures] == [
        ("f1", True),
        ("wrong", False),
        ("loss", False),
    ]
    assert result.headline.column == "test_f1"
    wrong = result.history["test_wrong"]
    assert result.best("test_wrong") == wrong.min()
    assert result.best() == result.history["test_f1"].max()
    assert result.target == ("test_wrong", 0.3)
    assert result.rounds_to_target() == int(wrong.index[wrong <= 0.3][0])
    assert result.selected() == result.history["test_f1"][result.history["validation_loss"].idxmin()]
    # The clients' F1 is that of each client's own samples, not a mean over mini-batches.
    data = load("digits")
    last = result.clients[result.clients["round"] == 3]
    weight, bias = result.parameters["1.weight"], result.parameters["1.bias"]
    for client, part in enumerate(result.partition):
        found = (data.x_train[part].reshape(len(part), -1) @ weight.T + bias).argmax(1)
        wanted = f1_score(data.y_train[part], found, average="macro")
        assert last["f1"].iloc[client] == pytest.approx(wanted)
        assert last["wrong"].iloc[client] == pytest.approx((found != data.y_train[part]).mean())


def test_changed_code_is_said_on_resume(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fedpisa.run(OWN, folder / "run")
    assert json.loads((folder / "run" / "run.json").read_text())["task_source"]
    module = folder / "own_task.py"
    module.write_text(module.read_text() + "\n# changed\n")
    import own_task  # type: ignore[import-not-found]

    own_task.__file__ = str(module)
    fedpisa.run({"num-server-rounds": 4}, resume=folder / "run", allow=["own_task"])
    assert "the code of the task has changed" in caplog.text


STUDY = """
[base]
dataset = "digits"
model = "logistic"
task = "own_task:SquaredHinge"
num-clients = 4
num-server-rounds = 2
learning-rate = 0.05
seeds = [0, 1]

[[variant]]
name = "fedavg"
algorithm = "fedavg"

[[variant]]
name = "scaffold"
algorithm = "scaffold"
"""
TUNE = """
[tune]
trials = 2
sampler = "random"
seeds = [7]
metric = "validation_wrong"

[search]
learning-rate = { low = 0.001, high = 0.1, log = true }
"""


def test_run_compare_tune_report_and_plots(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(f"{key}={value}" for key, value in OWN.items())
    assert main(["run", "-c", text, "--out", "run"]) == 0
    assert "test f1 0." in capsys.readouterr().err
    study = STUDY.replace("seeds = [0, 1]\n", "").replace("[base]", "seeds = [0, 1]\n[base]")
    (folder / "study.toml").write_text(study)
    assert main(["compare", "study.toml", "--out", "study"]) == 0
    assert "final f1" in capsys.readouterr().out
    (folder / "tune.toml").write_text(study + TUNE)
    assert main(["tune", "tune.toml", "--out", "tuned"]) == 0
    trials = (folder / "tuned" / "trials.csv").read_text()
    assert "validation_wrong" in trials
    summary = (folder / "tuned" / "summary.csv").read_text().splitlines()
    assert dict(zip(summary[0].split(","), summary[1].split(","), strict=True))["higher_is_better"] == "False"
    assert main(["plot", "study", "--out", "study.png"]) == 0
    assert main(["plot", "run", "--y", "test-wrong", "--out", "run.png"]) == 0
    assert main(["report", "study", "tuned", "--out", "report.html", "--target", "0.5"]) == 0
    page = (folder / "report.html").read_text()
    assert "f1" in page
    assert "validation wrong" in page
    assert "majority class" not in page
    table = (folder / "report-tables" / "accuracy.csv").read_text()
    assert "test_f1" in table


def test_less_can_be_better_in_a_report(folder: Path) -> None:
    for seed, algorithm in ((0, "fedavg"), (0, "sisa"), (1, "fedavg"), (1, "sisa")):
        keys = {"task": "regression", "dataset": "quadratic", "partitioner": "iid", "metrics": ["mae", "r2"]}
        more = {"algorithm": algorithm, "seed": seed, "num-clients": 4, "num-server-rounds": 4}
        fedpisa.run({**keys, **more}, folder / "runs" / f"{algorithm}-{seed}")
    written = write_report([folder / "runs"], folder / "report.html", target=1e6)
    table = next(path for path in written.tables if path.name == "accuracy.csv").read_text()
    assert "test_loss" in table
    assert "Target 1e+06 test loss: as asked for." in written.page.read_text()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "own_task:MeanLoss"}, r"its loss gives \(\) for 256 samples: return each sample's loss"),
        ({"task": "own_task:NoNumber"}, "its metrics fail on 256 samples"),
        ({"task": "own_task:Backwards"}, "lower_is_better = .* must be a tuple of its metrics"),
        (
            {"task": "own_task:PerCent"},
            "the metric top_accuracy is 100, .*: return a share between 0 and 1, or another name",
        ),
        ({"task": "own_task:Nothing"}, "it needs a method loss"),
        ({"task": "own_task:Missing"}, "cannot be imported"),
        ({"task": "own_task:SquaredHinge", "margin": "wide"}, "key 'margin'"),
        ({"task": "regression"}, "the data have class labels: take classification"),
        ({"task": "multi-label"}, r"needs targets \(samples, labels\)"),
        (
            {"task": "classification", "dataset": "quadratic", "partitioner": "iid", "model": "linear"},
            "the data have numbers: take regression",
        ),
        (
            {"task": "classification", "class-weights": "balanced", "dataset": "quadratic", "model": "linear"}
            | {"partitioner": "iid"},
            "the data have numbers: take regression",
        ),
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"class-weights": "balanced"}, "used by the tasks classification: set the key 'task' too"),
        ({"target": 0.5, "target-accuracy": 0.5}, "exclude each other"),
        ({"target-measure": "test_loss"}, "set target too"),
        ({"target": 0.5, "target-measure": "test_f1"}, "take one of test_accuracy, test_loss"),
        ({"target": float("inf")}, "target"),
        ({"target": 80}, "the test accuracy is a fraction"),
    ],
)
def test_mistakes_are_refused_in_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fedpisa.run({**BASE, **keys})
    assert "\n" not in str(caught.value)


def test_an_accuracy_of_one_is_a_share(folder: Path) -> None:
    result = fedpisa.run({**BASE, "task": "own_task:Perfect"})
    assert [(m.column, m.percent) for m in result.measures] == [
        ("top_accuracy", True),
        ("accuracy_in_per_cent", False),
        ("loss", False),
    ]


def test_metrics_with_changing_names_are_refused(folder: Path) -> None:
    keys = {**BASE, "task": "own_task:Changing", "num-clients": 2, "labels-per-client": 2, "per-client": True}
    with pytest.raises(ValueError, match="return the same names for all samples"):
        fedpisa.run({**keys, "partitioner": "labels-per-client"})
