"""Validation samples in a run: their columns, and the end of a run that no longer improves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpisa.config.run import RunConfig
from fedpisa.runs.early_stopping import EarlyStopping
from fedpisa.runs.results import Result, load_result
from fedpisa.runs.run_files import RunReader
from fedpisa.runs.runner import run
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.parts import load_dataset
from tests.runs.interrupted import assert_same, cut_short, rows

KEYS: Mapping[str, object] = {
    "algorithm": "fedavg",
    "model": "logistic",
    "num-clients": 4,
    "num-server-rounds": 3,
    "validation-fraction": 0.2,
}
STOPPING: Mapping[str, object] = {
    **KEYS,
    "learning-rate": 20.0,
    "num-server-rounds": 30,
    "early-stopping": 2,
    "eval-every": 2,
    "checkpoint-every": 3,
}


def federation(**changes: object) -> Federation:
    return Federation(RunConfig.from_mapping({**KEYS, **changes}))


def test_columns_are_measured_where_the_test_set_is(tmp_path: Path) -> None:
    result = run({**KEYS, "eval-every": 2}, tmp_path / "run")
    for name in ("loss", "accuracy"):
        measured = result.history[f"validation_{name}"].notna()
        assert (
            measured.tolist() == result.history[f"test_{name}"].notna().tolist() == [True, False, True, True]
        )
    data = load_dataset(result.config)
    assert "stopped_early" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert load_result(tmp_path / "run").partition[0].tolist() == result.partition[0].tolist()
    with np.load(tmp_path / "run" / "partition.npz") as arrays:
        positions = np.concatenate([*result.partition, arrays["validation"]])
        counts = np.stack([np.bincount(data.y_train[part], minlength=10) for part in result.partition])
        assert arrays["labels"].tolist() == counts.tolist()
    assert np.array_equal(np.sort(positions), np.arange(len(data.y_train)))


def test_values_are_those_of_the_final_model(tmp_path: Path) -> None:
    result = run(KEYS)
    data, held = load_dataset(result.config), federation()
    weight, bias = (result.parameters[name] for name in sorted(result.parameters, reverse=True))
    logits = data.x_train[held.validation_rows].reshape(-1, 64) @ weight.T + bias
    labels = data.y_train[held.validation_rows]
    assert result.last("validation_accuracy") == pytest.approx((logits.argmax(1) == labels).mean())
    top = logits.max(1)
    losses = np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(labels)), labels]
    assert result.last("validation_loss") == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"algorithm": "sisa"},
        {"server-strategy": "fed-adam"},
        {"partitioner": "feature-noise"},
        {"dataset": "quadratic", "model": "linear", "partitioner": "natural"},
        {"dataset": "synthetic", "partitioner": "natural"},
    ],
    ids=str,
)
def test_engines_agree(keys: Mapping[str, object]) -> None:
    loop, stacked = (run({**KEYS, "dtype": "float64", **keys, "engine": e}) for e in ("loop", "vmap"))
    columns = [name for name in loop.history if name.startswith("validation_")]
    assert len(columns) == 1 + (keys.get("dataset") != "quadratic")
    np.testing.assert_allclose(loop.history[columns], stacked.history[columns], rtol=1e-9)
    assert [*map(len, loop.partition)] == [*map(len, stacked.partition)]


def test_all_variants_of_a_seed_have_the_same_samples() -> None:
    expected = federation().validation_rows.tolist()
    for changes in (
        {"algorithm": "scaffold"},
        {"partitioner": "iid"},
        {"partitioner": "feature-noise"},
        {"dirichlet-alpha": 9.0, "num-clients": 7},
        {"model": "mlp", "fraction-train": 0.5, "engine": "loop", "server-strategy": "krum"},
    ):
        one = federation(**changes)
        assert one.validation_rows.tolist() == expected
        assert one.evaluated["validation"].x.equal(federation().evaluated["validation"].x)
    assert federation(seed=1).validation_rows.tolist() != expected


def test_without_the_key_nothing_is_held_out(tmp_path: Path) -> None:
    result = run({**KEYS, "validation-fraction": 0.0}, tmp_path / "run")
    assert not [name for name in result.history if name.startswith("validation")]
    assert sum(map(len, result.partition)) == 1438
    with np.load(tmp_path / "run" / "partition.npz") as arrays:
        assert "validation" not in arrays.files


def test_the_digest_covers_the_validation_samples() -> None:
    assert len({federation(**{"validation-fraction": f}).data_digest() for f in (0.0, 0.2, 0.3)}) == 3


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("killed", [0, 2, 3, "last"])
def test_a_stopped_run_ends_with_the_same_bytes(killed: int | str, engine: str, tmp_path: Path) -> None:
    keys = {**STOPPING, "engine": engine}
    whole = run(keys, tmp_path / "whole")
    stopped = whole.last_round
    assert whole.stopped_early
    assert 4 <= stopped < 30
    assert stopped % 2 == 0
    losses = whole.history["validation_loss"].dropna()
    assert losses.iloc[-2:].min() >= losses.iloc[:-2].min()
    info = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert info["stopped_early"] == {"round": stopped, "best_round": whole.best_round()}
    directory = cut_short(keys, tmp_path / "cut", stopped if killed == "last" else int(killed))
    resumed = run(resume=directory)
    assert resumed.stopped_early
    assert_same(directory, tmp_path / "whole")
    assert json.loads((directory / "run.json").read_text())["stopped_early"] == info["stopped_early"]
    # More rounds do not wake a stopped run: the longer run would have stopped there too.
    run({**keys, "num-server-rounds": 40}, tmp_path / "longer")
    assert run({"num-server-rounds": 40}, resume=directory).last_round == stopped
    assert_same(directory, tmp_path / "longer")


def test_patience_counts_evaluations_without_a_lower_loss() -> None:
    whole = run({**STOPPING, "early-stopping": 0, "num-server-rounds": 16})
    assert whole.last_round == 16
    for patience in (1, 2, 3):
        stopping = EarlyStopping(patience)
        expected = 16
        for row in whole.rows:
            stopping.observe(row)
            if stopping.is_due:
                expected = int(row["round"] or 0)
                break
        stopped = run({**STOPPING, "early-stopping": patience, "num-server-rounds": 16})
        assert stopped.last_round == expected


def test_refusals_are_one_line_with_a_fix() -> None:
    needs = "early-stopping = 3 needs validation samples: set validation-fraction, such as 0.2, or early-stopping = 0"
    own = "nodes train on their own samples, of which the server has none: set validation-fraction = 0"
    for make, message in (
        (lambda: RunConfig(early_stopping=3), needs),
        (lambda: RunConfig(validation_fraction=1.0), "'validation-fraction' = 1.0: must be less than 1"),
        (lambda: federation(**{"validation-fraction": 1e-4}), "set it to at least 0.0007"),
        (lambda: Federation(RunConfig(validation_fraction=0.2), clients_have_data=True), own),
    ):
        with pytest.raises(ValueError, match="validation") as caught:
            make()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def result_of(**columns: list[Any]) -> Result:
    table = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Result(RunConfig(), [{"round": n, **row} for n, row in enumerate(table)], {}, [])


def test_the_validation_loss_selects_a_round() -> None:
    result = result_of(validation_loss=[3.0, 1.0, None, 1.0, 2.0], test_accuracy=[0.1, 0.4, 0.9, 0.6, 0.5])
    assert (result.best("validation_loss"), result.best_round()) == (1.0, 1)
    assert (result.selected(), result.selected(by="test_accuracy"), result.best()) == (0.4, 0.9, 0.9)
    assert result.best_round("test_accuracy") == 2
    assert result_of(test_accuracy=[0.1]).selected() is None
    assert result_of(validation_loss=[None, 2.0], test_accuracy=[0.1, None]).selected() is None


def test_a_run_reads_its_validation_rows_back(tmp_path: Path) -> None:
    run(KEYS, tmp_path / "run")
    counts = RunReader(tmp_path / "run").counts()
    assert counts is not None
    assert counts[0] == "labels"
    assert len(RunReader(tmp_path / "run").partition()) == 4
    assert "validation_loss" in rows(tmp_path / "run")[0]
