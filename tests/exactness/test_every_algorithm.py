"""Every algorithm reaches the optimum of the federated objective, or is listed as biased.

Four clients have quadratics with 3 to 12 samples and full batches. Algorithms with local steps take five. The
optimum weighs clients by their samples. Other files compute in closed form how far the biased algorithms end
from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa import families
from fedpisa.datasets.synthetic import quadratic
from tests.algorithms import FEDERATED

SHAPE: Mapping[str, Any] = {"num_clients": 4, "dimension": 3, "condition": 3.0}
DATA = {
    "dataset": "quadratic", "partitioner": "natural", "num-clients": 4, "dimension": 3, "condition": 3.0,
    "dtype": "float64", "batch-size": "full", "eval-every": 10_000,
}  # fmt: skip
# Each algorithm takes those of these keys that it has. The clients' curvatures are below 2.
KEYS: Mapping[str, object] = {
    "sigma": 2.0,
    "rho": 1.0,
    "beta": 0.9,
    "learning-rate": 0.3,
    "proximity": 2.0,
    "local-steps": 5,
    "probability": 0.2,
}
EXACT = (
    "pisa", "sisa", "scaffold", "scaffnew", "feddyn", "fedadmm", "fedpd", "feddr", "iceadmm", "iiadmm",
    "fedgia", "fedsgd", "spectral-pisa",
)  # fmt: skip
# Local steps without a correction are biased, and so are NSISA's directions of equal length.
BIASED = ("fedavg", "fedprox", "localsgd", "fednova", "moon", "nsisa")
EXACT_RULES = [rule for rule, found in families.available("preconditioner").items() if found.factory.exact]


def distance(name: str, num_rounds: int, **more: object) -> float:
    """Return the distance of a run's final model from the optimum, relative to the optimum's norm."""
    values = {**KEYS, **{key.replace("_", "-"): value for key, value in more.items()}}
    own = families.keys_of(families.find("algorithm", name), values)
    values = {key: value for key, value in values.items() if key in own}
    result = fedpisa.run({**DATA, "algorithm": name, "num-server-rounds": num_rounds, **values})
    optimum = quadratic(seed=0, **SHAPE).ground_truth["optimum"]
    (got,) = result.parameters.values()
    return float(np.linalg.norm(got.ravel() - optimum) / np.linalg.norm(optimum))


def test_every_algorithm_says_which_it_is() -> None:
    assert sorted([*EXACT, *BIASED]) == sorted(FEDERATED)


@pytest.mark.parametrize("name", EXACT)
def test_these_reach_the_optimum(name: str) -> None:
    assert distance(name, 100) <= 1e-8


@pytest.mark.parametrize("rule", EXACT_RULES)
def test_pisa_reaches_it_with_every_exact_preconditioner(rule: str) -> None:
    assert distance("pisa", 100, preconditioner=rule) <= 1e-8


@pytest.mark.parametrize("name", BIASED)
def test_these_do_not(name: str) -> None:
    assert 1e-2 <= distance(name, 100) <= 1
