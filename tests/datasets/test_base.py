"""The Dataset's checks and the split into training and test samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpisa.datasets import Dataset
from fedpisa.datasets.base import train_test_split


def dataset(**changes: Any) -> Dataset:
    parts: dict[str, Any] = {
        "x_train": np.zeros((4, 2), np.float32),
        "y_train": np.array([0, 1, 2, 0]),
        "x_test": np.zeros((2, 2), np.float32),
        "y_test": np.array([0, 1]),
        "num_classes": 3,
    }
    return Dataset(name="own", **parts | changes)


def with_value(value: float) -> np.ndarray:
    x = np.zeros((4, 2), np.float32)
    x[2, 1] = value
    return x


class TestChecks:
    def test_shape_and_outputs(self) -> None:
        assert (dataset().shape, dataset().num_outputs) == ((2,), 3)
        targets = {"y_train": np.zeros(4), "y_test": np.zeros(2), "num_classes": None}
        assert dataset(**targets).num_outputs == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x_train": with_value(np.nan)}, "training sample 2 has a NaN or infinite feature; remove"),
            ({"x_train": with_value(-np.inf)}, "training sample 2 has a NaN or infinite feature"),
            ({"x_test": np.full((2, 2), np.nan)}, "test sample 0 has a NaN or infinite feature"),
            ({"y_train": np.array([0, 1, 3, 0])}, "label 3 of training sample 2 is out of range; .* 0 to 2"),
            ({"y_test": np.array([0, -1])}, "label -1 of test sample 1 is out of range"),
            ({"y_train": np.array([0, 1])}, "4 training samples but targets of shape"),
            ({"y_train": np.zeros((4, 1), np.int64)}, "give one target per sample"),
            (
                {"x_train": np.zeros((0, 2), np.float32), "y_train": np.zeros(0, np.int64)},
                "at least one sample",
            ),
            (
                {"x_test": np.zeros((0, 2), np.float32), "y_test": np.zeros(0, np.int64)},
                "at least one sample",
            ),
            ({"x_train": np.zeros(4, np.float32)}, r"array \(samples, features ...\)"),
            ({"x_train": np.zeros((4, 2), np.uint8)}, "features are uint8; convert them to float32"),
            ({"y_train": np.zeros(4, np.int32)}, "labels are int32; convert them to int64"),
            ({"y_train": np.zeros(4)}, "labels are float64; convert them to int64"),
            ({"num_classes": None}, "regression targets are int64; convert them to float64"),
            ({"num_classes": 1}, "only 1 class; give data with at least two"),
            (
                {"x_test": np.zeros((2, 3), np.float32)},
                r"test sample has shape \(3,\), a training sample \(2,\)",
            ),
            ({"groups": np.zeros(3, np.int64)}, "3 groups for 4 training samples"),
        ],
    )
    def test_bad_data_gets_one_line(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dataset(**changes)
        assert str(caught.value).startswith("own: ")
        assert "\n" not in str(caught.value)

    def test_nan_in_regression_targets(self) -> None:
        targets = {"y_train": np.array([0.0, np.nan, 0.0, 0.0]), "y_test": np.zeros(2), "num_classes": None}
        with pytest.raises(ValueError, match="training sample 1 has a NaN or infinite target"):
            dataset(**targets)


class TestSplit:
    @given(
        labels=st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array),
        fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 1000),
    )
    def test_disjoint_cover_that_keeps_every_class_and_its_share(
        self, labels: np.ndarray, fraction: float, seed: int
    ) -> None:
        train, test = train_test_split(labels, fraction, np.random.default_rng(seed))
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()
        assert set(labels[train]) == set(labels)
        sizes, tests = (np.bincount(part, minlength=5) for part in (labels, labels[test]))
        assert (np.abs(tests - fraction * sizes) < 1 + 1e-9).all()

    def test_size_is_exact_although_classes_do_not_divide(self) -> None:
        labels = np.repeat(np.arange(7), 13)
        _, test = train_test_split(labels, 0.2, np.random.default_rng(0))
        assert len(test) == round(0.2 * 91)

    def test_regression_targets_are_not_strata(self) -> None:
        _, test = train_test_split(np.linspace(0, 1, 10), 0.3, np.random.default_rng(0))
        assert len(test) == 3
