"""SISA stays at a solution with ``amsgrad``, and leaves it without, where ``sigma`` is below 3/2 of the curvature.

``F`` is strongly convex with modulus ``lambda``, so ``||grad F||^2 / (2 lambda)`` bounds ``F(w) - min F`` from above.
Its curvature is at most 1, so ``||grad F||^2 / 2`` bounds it from below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Adam
from fedpisa.config.run import RunConfig
from fedpisa.flower.compat import to_tensors
from fedpisa.simulation.parts import load_dataset
from fedpisa.strategies.sisa import Sisa
from tests.algorithms import Federation

FURTHER = 1000


def bigrams() -> tuple[np.ndarray, np.ndarray]:
    """Return the letters of a random text, one-hot, and the letter after each; a few letters are frequent."""
    rng, letters, length = np.random.default_rng(0), 20, 4000
    frequency = 1 / np.arange(1, letters + 1)
    after = 0.7 * rng.dirichlet(np.full(letters, 0.2), letters) + 0.3 * frequency / frequency.sum()
    text = [0]
    for _ in range(length):
        text.append(int(rng.choice(letters, p=after[text[-1]])))
    return np.eye(letters)[text[:-1]], np.array(text[1:])


def squared_gradients(
    x: np.ndarray, y: np.ndarray, sigma: float, rho: float, lambda_: float, num_rounds: int, **keys: Any
) -> np.ndarray:
    """Return ``||grad F(w)||^2`` after each round of SISA on four clients' full batches, from ``w = 0``."""
    classes = int(y.max()) + 1
    outputs = 1 if classes == 2 else classes
    module = nn.Linear(x.shape[1], outputs, bias=False)
    nn.init.zeros_(module.weight)
    update = PisaUpdate(Adam(**keys), sigma=sigma, rho=rho, batch_size="full")
    clients = np.array_split(np.arange(len(y)), 4)
    federation = Federation(Sisa(update, lambda_=lambda_), module, x, y, clients, "vmap", num_classes=classes)
    found = []
    for result in federation.rounds(num_rounds):
        w = to_tensors(result.arrays, torch.float64)["params"].numpy().reshape(outputs, -1)
        logits = x @ w.T
        if outputs == 1:
            error = 1 / (1 + np.exp(-logits)) - y[:, None]
        else:
            error = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None]) - np.eye(classes)[y]
        found.append(np.sum((error.T @ x / len(y) + lambda_ * w) ** 2))
    return np.array(found)


def assert_stays(squares: np.ndarray, lambda_: float) -> None:
    """Assert that ``F`` comes within 1e-10 of its minimum and stays within 1e-8 for 1,000 further rounds."""
    gaps = squares / (2 * lambda_)
    assert gaps.min() <= 1e-10
    first = int(np.argmax(gaps <= 1e-10))
    assert first + FURTHER < len(gaps)
    assert gaps[first:].max() <= 1e-8


def assert_leaves(squares: np.ndarray, lambda_: float) -> None:
    """Assert that ``F`` comes within 1e-10 of its minimum and is above it by 1e-7 later."""
    assert squares.min() / (2 * lambda_) <= 1e-10
    assert squares[np.argmin(squares) :].max() / 2 >= 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lambda_", "sigma", "rho", "num_rounds"), [(1e-3, 0.01, 6.0, 1200), (1e-4, 0.01, 16.0, 2000)]
)
def test_bigrams(lambda_: float, sigma: float, rho: float, num_rounds: int) -> None:
    x, y = bigrams()
    assert_leaves(squared_gradients(x, y, sigma, rho, lambda_, num_rounds), lambda_)
    assert_stays(squared_gradients(x, y, sigma, rho, lambda_, num_rounds, amsgrad=True), lambda_)


@pytest.mark.slow
def test_a9a(a9a_dir: Path) -> None:
    data = load_dataset(RunConfig.from_mapping({"dataset": "a9a", "data-dir": str(a9a_dir)}))
    x, y = data.x_train[:800].astype(np.float64), data.y_train[:800]
    assert_stays(squared_gradients(x, y, 0.1, 10.0, 1e-3, 1800, amsgrad=True), 1e-3)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize(("factor", "converges"), [(0.98, True), (1.02, False)])
def test_the_condition_of_stability(lab: Any, sigma: float, factor: float, converges: bool) -> None:
    """With ``Q = 1``, equal clients of curvature ``h`` converge if and only if ``3 h < 2 sigma + 4 rho``."""
    rho = 1.0
    h = factor * (2 * sigma + 4 * rho) / 3
    iterates = lab.pisa([lambda w: h * w] * 2, np.full(2, 0.5), np.ones(1), sigma=sigma, rho=rho)
    *_, last = (next(iterates) for _ in range(1000))
    assert abs(last.after[0]) <= 1e-6 if converges else abs(last.after[0]) >= 1e3
