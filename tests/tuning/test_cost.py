"""What tuning cost, on which data it chose, and plans of earlier versions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from fedpisa.cli.main import main
from fedpisa.config.run import load_config
from fedpisa.tuning.plan import Plan
from tests.tuning.plans import SGD, plan_of, write

optuna = pytest.importorskip("optuna", reason="needs the extra tune")


def tune(*arguments: Any, **options: Any) -> Any:
    from fedpisa.tuning.tune import tune as run_tuning

    return run_tuning(*arguments, **options)


@pytest.mark.parametrize(
    ("keys", "partitions"),
    [
        ({"algorithm": "fedavg", "batch-size": 7}, "iid"),
        ({"algorithm": "fedavg", "batch-size": 32, "drop-last": True, "fraction-train": 0.4}, "label-dirichlet"),
        ({"algorithm": "sisa", "batch-size": 11, "batches-per-round": 2}, "iid"),
        ({"algorithm": "scaffnew", "batch-size": "full"}, "label-dirichlet"),
    ],
)  # fmt: skip
def test_the_cost_is_the_sum_over_the_trials_counted_apart(
    tmp_path: Path, keys: dict[str, Any], partitions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the samples of non-zero weight in what the engine draws, and the rounds in the rows."""
    from fedpisa.clients.batches import BatchIndices
    from fedpisa.runs.simulation import Simulation
    from fedpisa.tuning import cost

    drawn, rounds, is_cost = [0], [0], [False]
    row_of = Simulation._row

    def counted(self: Any, finished: Any) -> Any:
        rounds[0] += 1
        return row_of(self, finished)

    gradients_of = cost.sample_gradients
    monkeypatch.setattr(Simulation, "_row", counted)

    def of_cost(*arguments: Any) -> int:
        is_cost[0] = True
        try:
            return gradients_of(*arguments)
        finally:
            is_cost[0] = False

    monkeypatch.setattr(cost, "sample_gradients", of_cost)
    made = BatchIndices.__new__

    def count(cls: Any, index: Any, weight: Any, steps: Any) -> Any:
        if not is_cost[0]:
            drawn[0] += int((weight > 0).sum())
        return made(cls, index, weight, steps)

    monkeypatch.setattr(BatchIndices, "__new__", count)
    base = {
        "dataset": "digits",
        "partitioner": partitions,
        "model": "logistic",
        "num-clients": 5,
        "engine": "loop",
    }
    tables: dict[str, Any] = {
        "tune": {"trials": 3, "sampler": "random"},
        "base": {**base, "num-server-rounds": 2, **keys},
        "search": {"learning-rate" if keys["algorithm"] != "sisa" else "sigma": {"low": 0.01, "high": 0.1}},
    }
    (standing,) = tune(Plan.from_mapping(tables), tmp_path)
    assert standing.rounds == rounds[0] == 3 * 3 * 2
    assert standing.gradients == drawn[0] > 0
    summary, trials = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("summary", "trials"))
    for column in ("rounds", "gradients", "seconds"):
        assert summary[column].tolist() == [pytest.approx(trials[column].sum())]
        assert summary[column].tolist() == [pytest.approx(getattr(standing, column))]
    assert summary["validation_loss"].tolist() == [pytest.approx(trials.validation_loss.min())]


@pytest.mark.parametrize("metric", ["validation_loss", "train_loss", "validation_accuracy"])
def test_the_accuracy_of_a_trial_is_the_mean_over_its_seeds(tmp_path: Path, metric: str) -> None:
    """Train the runs of a trial apart."""
    import fedpisa

    base = {
        "dataset": "digits",
        "model": "logistic",
        "num-clients": 3,
        "num-server-rounds": 3,
        "eval-every": 2,
    }
    tables: dict[str, Any] = {
        "tune": {"trials": 2, "metric": metric, "seeds": [5, 9]},
        "base": {**base, "algorithm": "fedavg", "batch-size": "full"},
        "search": {"learning-rate": {"low": 0.1, "high": 1}},
    }
    plan = Plan.from_mapping(tables)
    (standing,) = tune(plan, tmp_path)
    configs = [standing.subject.config(standing.trials[1].keys, seed) for seed in (5, 9)]
    runs = [fedpisa.run(config).history for config in configs]
    frame = pd.read_csv(tmp_path / "trials.csv")
    if "validation_accuracy" in runs[0]:
        expected = sum(run.validation_accuracy.iloc[-1] for run in runs) / 2
        assert standing.trials[1].accuracy == pytest.approx(expected)
        assert frame.validation_accuracy[1] == pytest.approx(expected)
    else:
        assert standing.trials[1].accuracy is None
        assert "validation_accuracy" not in frame
    assert pd.read_csv(tmp_path / "summary.csv").seeds.tolist() == ["5, 9"]


def test_a_plan_of_an_earlier_version_may_lack_keys_that_have_their_defaults(tmp_path: Path) -> None:
    from fedpisa.tuning.trials import Trials

    plan = plan_of(**SGD)
    before = tune(plan, tmp_path)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'tune.db'}")
    study = optuna.load_study(study_name=str(plan.subjects[0].path), storage=storage)
    old = {
        k: v
        for k, v in study.user_attrs["plan"].items()
        if k not in ("validation-fraction", "early-stopping")
    }
    study.set_user_attr("plan", old)
    with Trials(plan, tmp_path) as trials:
        assert [t.keys for t in trials.of(plan.subjects[0])] == [t.keys for t in before[0].trials]
    study.set_user_attr("plan", {**old, "validation-fraction": "0.1"})
    with pytest.raises(ValueError, match=r"validation-fraction was 0.1 and is now 0.0"):
        tune(plan, tmp_path)


def test_a_choice_on_the_test_set_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for metric in ("test_loss", "validation_loss"):
        file = write(tmp_path / f"{metric}.toml", **SGD, tune={"trials": 2, "metric": metric})
        assert main(["tune", str(file), "--out", str(tmp_path / metric)]) == 0
        said[metric] = [
            line for line in capsys.readouterr().err.splitlines() if "chosen on the test set" in line
        ]
        best = load_config(tmp_path / metric / "best/sgd/all.toml")
        assert best.validation_fraction == 0
    assert said["validation_loss"] == []
    (line,) = said["test_loss"]
    assert line == (
        "the values are chosen on the test set, by metric = 'test_loss': its results are optimistic"
    )


def test_the_table_says_what_it_cost(tmp_path: Path) -> None:
    from fedpisa.tuning.console import TuneConsole, best_values, table

    plan = plan_of(sweep={"condition": [4.0]})
    text = io.StringIO()
    with TuneConsole(plan, Console(file=text, width=200)) as console:
        standings = tune(plan, tmp_path, on_progress=console)
    assert text.getvalue().count("\n") == 10
    assert "[10/10] variant 'sisa', condition=4.0: trial 4" in text.getvalue()
    live = io.StringIO()
    with TuneConsole(plan, Console(file=live, width=200, force_terminal=True)) as console:
        tune(plan, tmp_path, on_progress=console)
    assert "5/5" in live.getvalue()
    out = io.StringIO()
    Console(file=out, width=200).print(table(standings, plan.metric))
    assert f" {standings[0].rounds} " in out.getvalue()
    assert len(best_values(standings)) == 2
    assert best_values(standings)[0].startswith("variant 'sgd', condition=4.0: learning-rate = ")
