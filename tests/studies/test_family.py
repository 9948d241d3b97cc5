"""The table contains every algorithm with the same budget, and equals the measured values."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fedpisa
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.config.run import RunConfig
from fedpisa.strategies.optimizer import Optimizer
from tests.algorithms import FEDERATED
from tests.exactness.test_fresh import Federation

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


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_an_optimizer_on_the_consensus_keeps_the_optimum(momentum: float, local_steps: int) -> None:
    """Its gradient ``w - c`` is zero at PISA's fixed point alone."""
    optimized = importlib.import_module("consensus_optimizer").OptimizedPisa
    update = PisaUpdate(sigma=2.0, rho=1.0, batch_size="full", local_steps=local_steps)
    federation = Federation(
        optimized(update, lambda_=0.1, optimizer=Optimizer("sgd", {"lr": 1.0, "momentum": momentum}))
    )
    for _ in range(600):
        federation.round(range(6))
    optimum = federation.optimum()
    assert np.linalg.norm(federation.params - optimum) <= 1e-8 * np.linalg.norm(optimum)


def test_adam_on_the_consensus_is_fedsgd_with_adam_if_rho_is_sigma() -> None:
    common = {"optimizer": "adam", "learning-rate": 0.01, "batch-size": "full", "num-server-rounds": 10}
    common |= {"dtype": "float64", "dataset": "synthetic", "model": "mlp", "widths": [8]}
    pisa = {"algorithm": "consensus_optimizer:OptimizedPisa", "sigma": 3.0, "rho": 3.0}
    one = fedpisa.run({**common, **pisa}, allow=["consensus_optimizer"]).parameters
    other = fedpisa.run({**common, "algorithm": "fedsgd"}).parameters
    # Adam's eps, 1e-8, counts against the gradient, which is a third of the other's.
    assert all(np.allclose(one[name], other[name], rtol=0, atol=3e-5) for name in other)
    start = fedpisa.run({**common, "algorithm": "fedsgd", "num-server-rounds": 1}).parameters
    assert max(np.abs(start[name] - other[name]).max() for name in other) > 0.03
