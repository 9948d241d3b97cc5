"""The table contains every algorithm with the same budget, and equals the measured values."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedpisa.config.run import RunConfig
from tests.algorithms import FEDERATED

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fedpisa_family", EXPERIMENTS / "family" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.append(str(EXPERIMENTS / "family"))  # for the algorithm beside the script
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


family = load()
ROWS = tuple(family.GRIDS)


def require_optimizer(row: str) -> None:
    """Skip a row whose optimizer is not installed."""
    if "Muon" in row:
        pytest.importorskip("pytorch_optimizer", reason="the row needs the extra `optimizers`")


def test_every_algorithm_has_a_row() -> None:
    algorithms = {algorithm for algorithm, _, _ in family.GRIDS.values()}
    assert {name for name in algorithms if ":" not in name} == set(FEDERATED)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_six_settings_and_ten_gradients_a_round(row: str) -> None:
    require_optimizer(row)
    algorithm, spending, grid = family.GRIDS[row]
    assert len(set(family.settings(row))) == 6
    for values in family.itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        keys = {**family.COMMON, **spending, **chosen, "algorithm": algorithm}
        options = RunConfig.from_mapping(keys).options
        assert options["batch-size"] == family.BATCH
        steps = {
            options.get("local-steps"),
            options.get("batches-per-round"),
            1 / options.get("probability", 1),
        }
        assert family.STEPS in steps


def test_the_tables_are_those_of_the_runs() -> None:
    runs = family.read(EXPERIMENTS / "family" / "runs.csv")
    assert len(runs) == len(family.cells()) * (6 + len(family.SEEDS))
    text = (EXPERIMENTS / "family" / "README.md").read_text(encoding="utf-8")
    for split in family.SPLITS:
        assert "\n".join(family.table(split, runs)).strip() in text
