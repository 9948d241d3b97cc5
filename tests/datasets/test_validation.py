"""The validation samples: drawn from the training set by the seed alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpisa.datasets.base import Dataset, Generated
from fedpisa.datasets.validation import hold_out

FRACTIONS = st.floats(0.05, 0.95)


def data_of(labels: np.ndarray, groups: np.ndarray | None = None, classes: int | None = 5) -> Dataset:
    """Return a data set whose only feature is the sample's number."""
    x = np.arange(len(labels), dtype=np.float64)[:, None]
    return Dataset.of("own", (x, labels), (x[:1], labels[:1]), num_classes=classes, groups=groups)


@given(
    labels=st.lists(st.integers(0, 4), min_size=22, max_size=80).map(np.array),
    fraction=FRACTIONS,
    seed=st.integers(0, 1000),
)
def test_disjoint_complete_and_stratified(labels: np.ndarray, fraction: float, seed: int) -> None:
    data = data_of(labels)
    held = hold_out(data, fraction, seed)
    both = np.concatenate([held.train, held.validation])
    assert np.array_equal(np.sort(both), np.arange(len(labels)))
    assert (np.diff(held.train) > 0).all()
    assert (np.diff(held.validation) > 0).all()
    sizes, taken = (np.bincount(part, minlength=5) for part in (labels, labels[held.validation]))
    assert (np.abs(taken - fraction * sizes) < 1 + 1e-9).all()
    assert (taken[sizes > 0] < sizes[sizes > 0]).all()
    assert held.dataset.x_train.ravel().tolist() == held.train.tolist()
    assert held.dataset.y_train.tolist() == labels[held.train].tolist()
    assert held.dataset.x_test is data.x_test


@given(
    samples=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=40, max_size=80),
    fraction=FRACTIONS,
    seed=st.integers(0, 1000),
)
def test_every_class_and_natural_client_keeps_a_sample(
    samples: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels, groups = np.array(samples).T
    held = hold_out(data_of(labels, groups), fraction, seed)
    assert held.dataset.groups is not None
    assert held.dataset.groups.tolist() == groups[held.train].tolist()
    assert set(held.dataset.groups) == set(groups)
    assert set(held.dataset.y_train) == set(labels)


def test_a_regression_is_drawn_at_random() -> None:
    data = data_of(np.linspace(0, 1, 50), classes=None)
    one, other = hold_out(data, 0.3, 0), hold_out(data, 0.3, 1)
    assert len(one.validation) == len(other.validation) == 15
    assert one.validation.tolist() != other.validation.tolist()


def test_the_seed_alone_decides() -> None:
    data = data_of(np.repeat(np.arange(5), 20))
    first, again, other = (hold_out(data, 0.2, seed).validation.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert np.bincount(data.y_train[other]).tolist() == [4] * 5


def test_without_a_fraction_nothing_changes() -> None:
    data = data_of(np.repeat(np.arange(5), 2))
    held = hold_out(data, 0.0, 0)
    assert held.dataset is data
    assert (held.train.tolist(), held.validation.tolist()) == ([*range(10)], [])


def test_what_cannot_be_held_out_is_said_in_one_line() -> None:
    few, own = data_of(np.repeat(np.arange(5), 2)), np.arange(5)
    makes = Generated(np.array([1, 2]), lambda client, k: (client[:, None] * 1.0, k))
    for data, fraction, message in (
        (few, 0.04, r"takes none of the 10 training samples of own: set it to at least 0\.1"),
        (data_of(own), 0.5, r"set it to 0, because each class and each natural client must keep a training"),
        (data_of(own, own), 0.5, r"set it to 0, because each class and each natural client must keep"),
        (
            dataclasses.replace(few, generated=makes),
            0.2,
            r"none can be set aside: set validation-fraction = 0",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            hold_out(data, fraction, 0)
        assert "\n" not in str(caught.value)
