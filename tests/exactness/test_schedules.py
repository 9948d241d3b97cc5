"""The penalty ``sigma`` and the second moment's bias correction change from round to round."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Adam


def sigma_by_hand(sigma: float, gamma: float, every: int, until: int | None, rounds: int) -> list[float]:
    """Return ``sigma^0 .. sigma^rounds`` of (2.12).

    Counted from 0, round ``l`` divides if ``l`` is a multiple of ``k0``.
    """
    values = [sigma]
    for l in range(rounds):  # noqa: E741
        divides = l % every == 0 and (until is None or l + 1 <= until)
        values.append(values[-1] / gamma if divides else values[-1])
    return values


@pytest.mark.parametrize("until", [None, 1, 7, 11, 100])
@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("gamma", [1.0, 0.997, 0.75])
def test_sigma(gamma: float, every: int, until: int | None) -> None:
    update = PisaUpdate(sigma=2.0, gamma=gamma, gamma_every=every, gamma_until=until)
    wanted = sigma_by_hand(2.0, gamma, every, until, 40)
    assert [update.sigma_at(t) for t in range(41)] == pytest.approx(wanted, rel=1e-13)


def test_sigma_of_a_run_in_both_engines(lab: Any) -> None:
    """A run follows the published schedule: gamma 0.997 every 10 rounds."""
    values = {
        **lab.QUADRATIC, "algorithm": "pisa", "sigma": 2.0, "rho": 2.0, "num-server-rounds": 25,
        "gamma": 0.997, "gamma-every": 10, "gamma-until": 12,
    }  # fmt: skip
    for engine in ("loop", "vmap"):
        column = lab.trace({**values, "engine": engine}).column("sigma")
        assert column == pytest.approx(sigma_by_hand(2.0, 0.997, 10, 12, 25)[1:], rel=1e-13)
        assert column[-1] == pytest.approx(2.0 / 0.997**2)


def test_a_gamma_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma = 1\.5 shrinks sigma: give a value in \(0, 1\]"):
        PisaUpdate(gamma=1.5)


@pytest.mark.parametrize(("updates", "published"), [(1, 1.0), (10, 3.2), (100, 9.8)])
def test_the_constant_bias_correction_inflates_the_root(updates: int, published: float) -> None:
    """For a constant ``q``, "constant" inflates the root by ``sqrt((1 - beta^t) / (1 - beta))``.

    This is a hidden decay of the step. "adam" does not inflate it.
    """
    q = torch.tensor([3.0], dtype=torch.float64)
    roots = {}
    for correction in ("adam", "constant"):
        adam = Adam(beta=0.999, eps=0.0, bias_correction=correction)
        memory = adam.init(q)
        for _ in range(updates):
            scale, memory = adam(q, q, memory)
        roots[correction] = float(scale[0]) / 3.0
    assert roots["adam"] == pytest.approx(1.0, rel=1e-12)
    assert roots["constant"] == pytest.approx(sqrt((1 - 0.999**updates) / 0.001), rel=1e-12)
    assert round(roots["constant"], 1) == published
