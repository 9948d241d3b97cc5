"""Run directories of an earlier version can be read, and their runs resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedpisa.config.run import load_config
from fedpisa.report import findings, tables
from fedpisa.report.runs import collect
from fedpisa.runs.results import load_result
from fedpisa.runs.runner import run

OLD = Path(__file__).parent / "fixtures" / "old_run"
NAMES = ("fedsgd-adam", "sisa-schedule")
ROUNDS = 6


def assert_close(model: Path, wanted: Path) -> None:
    torch.testing.assert_close(load_file(model), load_file(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_is_read(name: str) -> None:
    result = load_result(OLD / name)
    assert result.status == "finished"
    assert [row["round"] for row in result.rows] == [0, 1, 2, 3, 4]
    assert result.last("test_accuracy") == result.rows[-1]["test_accuracy"] is not None


def test_old_runs_are_reported_without_validation() -> None:
    table = tables.accuracy(findings.find(collect([OLD / name for name in NAMES])))
    assert len(table.rows) == len(NAMES)
    assert [title for title in table.head if title.startswith("best")] == ["best by test (optimistic)"]
    assert not [result for name in NAMES if (result := load_result(OLD / name)).stopped_early]


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on(name: str, tmp_path: Path) -> None:
    """An old run resumes exactly, with the optimizer's memory and the clients' duals from its checkpoint."""
    old, anew = tmp_path / "old", tmp_path / "new"
    shutil.copytree(OLD / name, old)
    result = run({"num-server-rounds": ROUNDS}, resume=old)
    assert [row["round"] for row in result.rows] == [*range(ROUNDS + 1)]
    assert_close(old / "model.safetensors", OLD / f"{name}-{ROUNDS}-rounds.safetensors")
    run(load_config(OLD / name / "config.toml", {"num-server-rounds": ROUNDS}), anew)
    assert_close(anew / "model.safetensors", old / "model.safetensors")
