"""Numbers drawn from a step's key: their distribution, and that every engine draws the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.func import vmap

from fedpisa.rng import hashed, mix, normal, step_keys, uniform

KEYS_S = torch.from_numpy(step_keys(0, np.arange(6), 1, 1)[:, 0])
KINDS = torch.float32, torch.float64
DRAWS = uniform, normal
MANY = 200_000


def chi_square(counts: torch.Tensor) -> float:
    """Return the statistic of equal cells in standard deviations from its mean."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def test_torch_mixes_as_numpy_does() -> None:
    """Both are written down on their own: NumPy's with unsigned integers, torch's with signed ones."""
    counters = np.array([0, 1, 2**40, -3])
    for key in (0, 7, 2**63 - 1, -(2**63), -5):
        wanted = hashed(key, counters).view(np.int64)
        assert mix(torch.tensor(key), torch.from_numpy(counters)).tolist() == wanted.tolist()
    chained = mix(mix(torch.tensor(9), 4), 5)
    assert int(chained) == int(hashed(9, 4, 5).view(np.int64))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_who_draws(draw: Callable[..., torch.Tensor], kind: torch.dtype) -> None:
    """Stacked clients, other layouts, further padding and more threads draw the same bits."""
    alone = torch.stack([draw(key, 501, 7, dtype=kind) for key in KEYS_S])
    assert torch.equal(vmap(lambda key: draw(key, 501, 7, dtype=kind))(KEYS_S), alone)
    assert torch.equal(torch.stack([draw(key, 11, 7, dtype=kind) for key in KEYS_S]), alone[:, :11])
    assert torch.equal(draw(KEYS_S[0], 501 * 7, dtype=kind), alone[0].flatten())
    threads = torch.get_num_threads()
    large = draw(KEYS_S[1], MANY, dtype=kind)
    torch.set_num_threads(threads + 2)
    try:
        assert torch.equal(draw(KEYS_S[1], MANY, dtype=kind), large)
    finally:
        torch.set_num_threads(threads)
    assert alone.dtype is kind
    assert len(set(alone[:, 0, 0].tolist())) == len(KEYS_S)


@pytest.mark.parametrize(("kind", "bits"), [(torch.float32, 24), (torch.float64, 53)])
def test_uniform_numbers_are_exact_multiples(kind: torch.dtype, bits: int) -> None:
    u = uniform(KEYS_S[0], MANY, dtype=kind)
    scaled = u.double() * 2.0**bits
    assert torch.equal(scaled, scaled.floor())
    assert bool((scaled.long() & 1).any()), "the last bit is used"
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    wanted = hashed(int(KEYS_S[0]), np.arange(MANY)) >> np.uint64(64 - bits)
    assert scaled.long().tolist() == wanted.astype(np.int64).tolist()


@pytest.mark.parametrize("number", range(3))
def test_uniform_numbers_are_uniform(number: int) -> None:
    """Chi-square over 128 cells, of the high bits and of the last ones that float32 keeps."""
    u = uniform(KEYS_S[number], MANY)
    assert abs(chi_square(torch.histc(u, 128, 0, 1))) < 4
    last = (u.double() * 2**24).long() & 127
    assert abs(chi_square(torch.bincount(last, minlength=128).float())) < 4


def test_neighbours_are_independent() -> None:
    """Neighbouring counters, keys of neighbouring steps, and keys mixed with neighbouring numbers."""
    counters = uniform(KEYS_S[0], MANY)
    steps = torch.from_numpy(step_keys(0, np.arange(1), 1, 2)[0])
    draws = [uniform(key, MANY) for key in (*steps, mix(steps[0], 0), mix(steps[0], 1))]
    draws += [uniform(torch.tensor(key), MANY) for key in (0, 1, 2)]
    for a, b in [(counters[:-1], counters[1:]), (counters[:-7], counters[7:]), *pairwise(draws)]:
        correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(MANY)
        cells = (a * 8).long() * 8 + (b * 8).long()
        assert abs(chi_square(torch.bincount(cells, minlength=64).float())) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_normal_numbers_are_normal(kind: torch.dtype) -> None:
    """The distribution function makes them uniform, and their first four moments are 0, 1, 0 and 3."""
    z = normal(KEYS_S[2], MANY, dtype=kind)
    assert bool(z.isfinite().all())
    assert abs(chi_square(torch.histc(torch.special.ndtr(z.double()), 128, 0, 1))) < 4
    moments = torch.stack([(z.double() ** power).mean() for power in (1, 2, 3, 4)])
    errors = torch.tensor([1.0, 2.0, 15.0, 96.0]).sqrt() / math.sqrt(MANY)
    assert bool(((moments - torch.tensor([0.0, 1.0, 0.0, 3.0])).abs() < 4 * errors).all())
