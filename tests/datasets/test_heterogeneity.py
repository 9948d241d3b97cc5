"""Indices of heterogeneity equal closed forms and SciPy's values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from fedpisa.datasets import Heterogeneity, heterogeneity


def measure(*clients: list[int], num_classes: int) -> Heterogeneity:
    """Return the heterogeneity of clients given by their labels."""
    sizes = [len(client) for client in clients]
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return heterogeneity(np.concatenate(clients), parts, num_classes)


def test_identical_clients_are_at_distance_zero() -> None:
    same = measure([0, 1, 1, 2], [1, 1, 0, 2], [2, 1, 0, 1], num_classes=3)
    assert (same.jensen_shannon, same.earth_mover, same.effective_clients) == (0.0, 0.0, 3.0)
    assert same.hellinger == pytest.approx(0.0, abs=1e-7)  # the root of a rounding error


@pytest.mark.parametrize("c", [2, 3, 10])
def test_one_label_per_client(c: int) -> None:
    """p_i is a unit vector and p uniform over C classes."""
    apart = measure(*([k] * 5 for k in range(c)), num_classes=c)
    assert apart.hellinger == pytest.approx(np.sqrt(1 - c**-0.5))
    assert apart.earth_mover == pytest.approx(2 * (1 - 1 / c))
    # JSD = H(m) - (H(p_i) + H(p)) / 2 with m = (p_i + p) / 2
    own, other = (1 + 1 / c) / 2, 1 / (2 * c)
    entropy = -own * np.log2(own) - (c - 1) * other * np.log2(other)
    assert apart.jensen_shannon == pytest.approx(np.sqrt(entropy - np.log2(c) / 2))
    assert apart.label_counts is not None
    assert np.array_equal(apart.label_counts, 5 * np.eye(c))


def test_sizes_weigh_only_the_earth_mover_and_the_effective_number() -> None:
    """One client of 3 samples with label 0, one of 1 sample with label 1: p = (3/4, 1/4)."""
    uneven = measure([0, 0, 0], [1], num_classes=2)
    assert uneven.sizes.tolist() == [3, 1]
    assert uneven.effective_clients == pytest.approx(16 / 10)
    assert uneven.earth_mover == pytest.approx(3 / 4 * 2 / 4 + 1 / 4 * 6 / 4)
    assert uneven.hellinger == pytest.approx((np.sqrt(1 - np.sqrt(3 / 4)) + np.sqrt(1 - np.sqrt(1 / 4))) / 2)


def test_samples_of_no_client_do_not_count() -> None:
    labels = np.array([0, 1, 2, 2, 2])
    left_out = heterogeneity(labels, [np.array([0]), np.array([1])], 3)
    assert left_out.earth_mover == pytest.approx(1.0)


def test_regression_has_sizes_only() -> None:
    found = heterogeneity(np.linspace(0, 1, 6), [np.arange(2), np.arange(2, 6)], None)
    assert found.effective_clients == pytest.approx(36 / 20)
    assert (found.label_counts, found.jensen_shannon, found.hellinger, found.earth_mover) == (None,) * 4


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6))
def test_jensen_shannon_is_scipys_and_all_are_in_range(clients: list[list[int]]) -> None:
    found = measure(*clients, num_classes=4)
    p_i = np.array([np.bincount(client, minlength=4) / len(client) for client in clients])
    p = np.bincount(np.concatenate(clients), minlength=4) / sum(map(len, clients))
    reference = np.mean([np.nan_to_num(jensenshannon(row, p, base=2)) for row in p_i])
    assert found.jensen_shannon == pytest.approx(reference, abs=1e-7)
    assert found.hellinger is not None
    assert found.earth_mover is not None
    assert 0 <= found.hellinger <= 1
    assert 0 <= found.earth_mover <= 2
    assert 1 - 1e-12 <= found.effective_clients <= len(clients) + 1e-9
