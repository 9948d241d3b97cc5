"""Integers as features and several labels a sample: checks, clients' tensors, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedpisa.datasets import heterogeneity
from fedpisa.datasets.base import IGNORED, Dataset, Generated
from fedpisa.datasets.client_data import ClientData
from fedpisa.datasets.partitioners import BY_LABEL
from fedpisa.datasets.validation import hold_out
from fedpisa.families import available
from fedpisa.families.data import load, partition

TOKENS = ("int16", "int32", "int64", "uint16", "uint32")
NUMBERS = ("float16", "float32", "float64", "uint8", "int8", "bool")


def sequences(n: int = 6, length: int = 4, **fields: Any) -> Dataset:
    part = np.arange(n * length).reshape(n, length) % 5
    return Dataset.of("text", (part, (part + 1) % 5), (part, (part + 1) % 5), **{"num_classes": 5} | fields)


class TestChecks:
    @given(
        kind=st.sampled_from((*TOKENS, "float32", "float64")),
        target=arrays.array_shapes(min_dims=1, max_dims=3, max_side=4).filter(lambda shape: shape != (1,)),
        n=st.integers(1, 5),
        num_classes=st.integers(2, 9),
        data=st.data(),
    )
    def test_labels_of_any_shape(
        self, kind: str, target: tuple[int, ...], n: int, num_classes: int, data: st.DataObject
    ) -> None:
        x = np.ones((n, *target), kind)
        labels = st.one_of(st.just(IGNORED), st.integers(0, num_classes - 1))
        y = data.draw(arrays.arrays(np.int64, (n, *target), elements=labels))
        y.reshape(n, -1)[:, 0] = 0
        made = Dataset.of("own", (x, y), (x, y), num_classes=num_classes)
        assert (made.target_shape, made.split_labels, made.num_outputs) == (target, None, num_classes)
        wrong = y.copy()
        wrong.flat[data.draw(st.integers(0, y.size - 1))] = data.draw(
            st.sampled_from((-1, num_classes, -101))
        )
        with pytest.raises(
            ValueError, match=r"label -?\d+ of training sample \d is out of range; number the"
        ):
            Dataset.of("own", (x, wrong), (x, y), num_classes=num_classes)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"x_train": np.zeros((2, 3), np.uint64)},
                "features are uint64; convert them to float32 or float64, or",
            ),
            ({"x_train": np.zeros((2, 3), np.uint8)}, "features are uint8; convert them"),
            (
                {"x_train": np.full((2, 3), 5)},
                "training features from 5 to 5, int64, are not all tokens of .* 0 to 4",
            ),
            ({"x_test": np.full((2, 3), -1)}, "test features from -1 to -1"),
            ({"x_train": np.zeros((2, 3))}, "features from 0.0 to 0.0, float64, are not all tokens"),
            ({"vocabulary": ("a", "b")}, "a vocabulary of 2 tokens for 5 classes; give one text per class"),
            ({"y_train": np.zeros((3, 3), np.int64)}, "2 training samples but targets of shape"),
            (
                {"y_train": np.full((2, 3), IGNORED)},
                "all labels of training sample 0 are -100, so that none counts",
            ),
            ({"y_train": np.zeros((2, 0), np.int64)}, "2 training samples but targets of shape"),
            (
                {"y_test": np.zeros((2, 4), np.int64)},
                r"a test sample has targets of shape \(4,\), a training sample",
            ),
            ({"y_train": np.zeros((2, 3))}, "labels are float64; convert them to int64"),
            ({"num_classes": None, "vocabulary": None}, "targets of shape"),
            ({"labels": np.zeros(3, np.int64)}, "3 labels for 2 training samples; give one label per"),
            ({"labels": np.zeros(2)}, "labels to split by are float64 from 0.0; number them from 0 in int64"),
            ({"labels": np.array([0, -1])}, "labels to split by are int64 from -1"),
        ],
    )
    def test_bad_data_gets_one_line(self, fields: dict[str, Any], message: str) -> None:
        zeros = np.zeros((2, 3), np.int64)
        good: dict[str, Any] = dict.fromkeys(("x_train", "y_train", "x_test", "y_test"), zeros)
        with pytest.raises(ValueError, match=message) as caught:
            Dataset(name="own", **good | {"num_classes": 5, "vocabulary": tuple("abcde")} | fields)
        assert "\n" not in str(caught.value)

    def test_one_label_a_sample_is_never_left_out(self) -> None:
        x = np.zeros((2, 3))
        with pytest.raises(ValueError, match="label -100 of training sample 1 is out of range"):
            Dataset.of("own", (x, np.array([0, IGNORED])), (x, np.array([0, 1])), num_classes=2)


class TestClientData:
    @given(
        kind=st.sampled_from(TOKENS + NUMBERS),
        shape=arrays.array_shapes(min_dims=1, max_dims=3, max_side=3),
        target=arrays.array_shapes(min_dims=0, max_dims=2, max_side=3),
        owner=st.lists(st.integers(0, 2), min_size=3, max_size=9).map(lambda owner: [0, 1, 2, *owner]),
        dtype=st.sampled_from((torch.float32, torch.float64)),
        targets=st.sampled_from(("int64", "int32", "float64")),
        on_the_fly=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_each_client_gets_its_own_samples(
        self,
        kind: str,
        shape: tuple[int, ...],
        target: tuple[int, ...],
        owner: list[int],
        dtype: torch.dtype,
        targets: str,
        on_the_fly: bool,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 120, (len(owner), *shape)).astype(kind)
        y = rng.integers(-100, 100, (len(owner), *target)).astype(targets)
        parts = [np.flatnonzero(np.array(owner) == client) for client in range(3)]
        order, sizes = np.concatenate(parts), np.array([len(part) for part in parts])
        begin = np.cumsum(sizes) - sizes
        if on_the_fly:
            made = Generated(sizes, lambda i, k: (x[order[begin[i] + k]], y[order[begin[i] + k]]))
            data = ClientData.made_by(made, dtype)
        else:
            data = ClientData.of(x, y, parts, dtype)
        x_dtype = torch.int64 if kind in TOKENS else dtype
        y_dtype = dtype if targets == "float64" else torch.int64
        index = torch.from_numpy(rng.integers(0, len(owner), (2, 1, 3)))
        for found, rows in [
            *((data.client(client), part) for client, part in enumerate(parts)),
            (data.samples(index), order[index.numpy()]),
        ]:
            assert (found[0].dtype, found[1].dtype) == (x_dtype, y_dtype)
            assert np.array_equal(found[0].numpy(), x[rows].astype(np.float64))
            assert np.array_equal(found[1].numpy(), y[rows])
        joined = [torch.cat(batches) for batches in zip(*data.batches(2), strict=True)]
        assert np.array_equal(joined[0].numpy(), x[order].astype(np.float64))
        assert np.array_equal(joined[1].numpy(), y[order])

    def test_large_numbers_of_tokens_are_exact(self) -> None:
        x = np.array([[2**24 + 1, 2**40 + 1]])
        assert ClientData.of(x, x, [np.arange(1)], torch.bfloat16).client(0)[0].tolist() == x.tolist()

    def test_tokens_in_order_are_not_copied(self) -> None:
        x = np.arange(12).reshape(4, 3)
        data = ClientData.of(x, x, [np.arange(2), np.arange(2, 4)], torch.float32)
        assert data.x.data_ptr() == data.y.data_ptr() == x.ctypes.data


class TestSplits:
    @pytest.mark.parametrize("name", sorted(available("partitioner")))
    def test_a_partitioner_needs_labels_or_does_without(self, name: str) -> None:
        data = sequences(40, groups=np.arange(40) % 2)
        if available("partitioner")[name].factory in BY_LABEL:
            with pytest.raises(ValueError, match=r"^text has no labels: take partitioner = ") as caught:
                partition(data, name, num_clients=2)
            assert '"natural" (or iid, quantity-dirichlet)' in str(caught.value)
            with pytest.raises(
                ValueError, match=r'no labels: take partitioner = "iid" \(or quantity-dirichlet\)'
            ):
                partition(sequences(), name, num_clients=2)
        elif name == "feature-noise":
            with pytest.raises(ValueError, match="adds noise to numbers, and these features are int64"):
                partition(data, name, num_clients=2)
        else:
            parts = partition(data, name, num_clients=2)[1]
            assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(40))

    def test_labels_apart_from_the_targets(self) -> None:
        labels = np.repeat([0, 1, 2], 4)
        data = sequences(12, labels=labels)
        parts = partition(data, "labels-per-client", num_clients=3, labels_per_client=1)[1]
        assert [set(labels[part]) for part in parts] == [{0}, {1}, {2}]
        assert data.num_split_classes == 3
        counts = heterogeneity(data.split_labels, parts, data.num_split_classes).label_counts
        assert counts is not None
        assert np.array_equal(counts, 4 * np.eye(3))

    def test_targets_split_where_there_is_one_a_sample(self) -> None:
        digits = load("digits")
        assert digits.split_labels is digits.y_train
        assert digits.num_split_classes == 10
        quadratic = load("quadratic", num_clients=2)
        assert quadratic.split_labels is quadratic.y_train
        assert quadratic.num_split_classes is None

    def test_clients_without_labels_have_sizes(self) -> None:
        found = heterogeneity(None, [np.arange(2), np.arange(2, 6)], None)
        assert (found.sizes.tolist(), found.label_counts) == ([2, 4], None)

    @pytest.mark.parametrize("grouped", [True, False])
    def test_validation_windows_come_from_each_client(self, grouped: bool) -> None:
        groups = np.repeat([0, 1], [40, 20])
        data = sequences(60, groups=groups if grouped else None, labels=groups)
        for whole in (data, sequences(60, groups=groups if grouped else None)):
            held = hold_out(whole, 0.25, seed=0)
            assert len(held.validation) == 15
            assert np.array_equal(held.dataset.x_train, whole.x_train[held.train])
            if grouped:
                assert np.bincount(groups[held.validation]).tolist() == [10, 5]
            if whole.labels is not None:
                assert held.dataset.labels is not None
                assert np.array_equal(held.dataset.labels, groups[held.train])


def test_the_command_partition_shows_the_clients_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedpisa.cli.main import main

    for name, size in (("a", 200), ("b", 120)):
        (tmp_path / f"{name}.txt").write_text("abcd" * (size // 4))
    keys = f'dataset=text data-file="{tmp_path}" window=4 num-clients=2 partitioner=natural model=bigram'
    assert main(["partition", "-c", keys]) == 0
    shown = capsys.readouterr().out
    assert "70 training samples on 2 clients by natural" in shown
    assert [row.split() for row in shown.splitlines() if row.split()[:1] in (["0"], ["1"])] == [
        ["0", "44"],
        ["1", "26"],
    ]
    assert main(["partition", "-c", keys, "--out", str(tmp_path / "split.png")]) == 2
    assert "has no labels that a picture could show: leave out --out" in capsys.readouterr().err
