"""A user's own files and PyTorch data sets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from fedpisa.datasets import Dataset
from fedpisa.families.data import load, partition


def table(rows: int = 20) -> pd.DataFrame:
    index = np.arange(rows)
    return pd.DataFrame(
        {
            "age": index * 1.0,
            "height": index % 7,
            "label": np.where(index % 2, "yes", "no"),
            "site": index % 4,
        }
    )


def save_npz(folder: Path, **arrays: Any) -> str:
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return str(path)


class TestTables:
    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_columns_become_features_and_strings_classes(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / f"people.{kind}"
        if kind == "csv":
            table().to_csv(path, index=False)
        else:
            pytest.importorskip("pyarrow", reason="extra parquet not installed")
            table().to_parquet(path)
        data = load("file", data_file=str(path), group_column="site")
        assert (data.name, data.shape, data.num_classes) == ("people", (2,), 2)
        assert data.x_train.dtype == np.float32
        assert data.groups is not None
        assert np.bincount(data.groups).tolist() == [4] * 4  # one test row of each site's five
        assert np.array_equal(data.y_train, data.x_train[:, 0].astype(int) % 2)  # no < yes
        assert np.array_equal(data.groups, data.x_train[:, 0].astype(int) % 4)
        _, parts = partition(data, "natural", num_clients=4)
        assert [len(part) for part in parts] == [4] * 4

    def test_decimal_labels_are_regression(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        table().drop(columns="label").to_csv(path, index=False)
        data = load("file", data_file=str(path), label_column="age", test_fraction=0.25, regression=True)
        assert (data.num_classes, data.default_model, len(data.y_test)) == (None, "linear", 5)
        assert data.y_train.dtype == np.float64

    def test_standardize_uses_the_training_part(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        table().assign(constant=3).to_csv(path, index=False)
        data = load("file", data_file=str(path), standardize=True)
        assert np.allclose(data.x_train.mean(axis=0), 0, atol=1e-6)
        assert np.allclose(data.x_train.std(axis=0), [1, 1, 1, 0], atol=1e-6)

    @pytest.mark.parametrize(
        ("frame", "keys", "message"),
        [
            (table(), {"label_column": "lable"}, "no column 'lable'; set label-column to one of age, height"),
            (table(), {"group_column": "town"}, "no column 'town'; set group-column to one of"),
            (table().assign(town="Ulm"), {}, "column 'town' does not hold numbers; encode it"),
            (table().assign(label=None), {}, "row 0 has no label; fill it in"),
            (table().assign(age=[np.nan, *range(19)]), {}, "row 0 has no number in column 'age'"),
            (table().assign(label="yes"), {}, "only 1 class"),
            (table().head(0), {}, "has no samples"),
        ],
    )
    def test_bad_tables(
        self, tmp_path: Path, frame: pd.DataFrame, keys: dict[str, str], message: str
    ) -> None:
        path = tmp_path / "bad.csv"
        frame.to_csv(path, index=False)
        with pytest.raises(ValueError, match=message) as caught:
            load("file", data_file=str(path), **keys)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b'a,label\n1,2\n1,2,3,4\n"', b"PAR1"])
    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_damaged(self, tmp_path: Path, content: bytes, kind: str) -> None:
        path = tmp_path / f"bad.{kind}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.") as caught:
            load("file", data_file=str(path))
        assert "\n" not in str(caught.value)

    def test_parquet_without_its_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_engine(*_: object) -> None:
            raise ImportError("no pyarrow")

        (tmp_path / "a.parquet").touch()
        monkeypatch.setattr(pd, "read_parquet", no_engine)
        with pytest.raises(
            ValueError, match=r"needs the extra parquet; run pip install 'fedpisa\[parquet\]'"
        ):
            load("file", data_file=str(tmp_path / "a.parquet"))


class TestNpz:
    @pytest.mark.parametrize("names", [("x", "y"), ("features", "labels")])
    def test_either_pair_of_names(self, tmp_path: Path, names: tuple[str, str]) -> None:
        arrays = dict(zip(names, (np.ones((10, 2, 3)), np.arange(10) % 2 + 5), strict=True))
        data = load("file", data_file=save_npz(tmp_path, **arrays))
        assert (data.shape, data.num_classes, len(data.y_test)) == ((2, 3), 2, 2)
        assert data.x_train.dtype == np.float64

    def test_own_test_set_and_groups(self, tmp_path: Path) -> None:
        path = save_npz(
            tmp_path,
            x=np.ones((4, 2), np.uint8),
            y=np.array(["b", "a", "b", "a"]),
            groups=np.array(["u", "v", "v", "u"]),
            x_test=np.zeros((1, 2), np.uint8),
            y_test=np.array(["b"]),
        )
        data = load("file", data_file=path)
        assert data.groups is not None
        assert (data.y_train.tolist(), data.y_test.tolist(), data.groups.tolist()) == (
            *([1, 0, 1, 0], [1]),
            [0, 1, 1, 0],
        )
        assert data.x_train.dtype == np.float32

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.ones((4, 2))}, r"no array y \(it has x\)"),
            ({"x": np.ones((4, 2)), "y": np.ones(4, int), "x_test": np.ones((1, 2))}, "no array y_test"),
            ({"x": np.ones((4, 2)), "y": np.ones(3, int)}, "4 samples but 3 labels"),
            ({"x": np.ones((4, 2)), "y": np.ones((4, 2), int)}, "labels have shape"),
            ({"x": np.array([["a"]] * 4), "y": np.ones(4, int)}, "array x holds <U1; give numbers"),
            ({"x": np.ones((2, 2)), "y": np.array([0, None], object)}, "without object arrays"),
            (
                {"x": np.ones((2, 1)), "y": np.arange(2), "x_test": np.ones((1, 1)), "y_test": np.array([7])},
                "test label 7 is in no training sample",
            ),
        ],
    )
    def test_bad_arrays(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        path = save_npz(tmp_path, **arrays)
        with pytest.raises(ValueError, match=message):
            load("file", data_file=path)

    def test_truncated(self, tmp_path: Path) -> None:
        path = Path(save_npz(tmp_path, x=np.ones((100, 2)), y=np.arange(100) % 2))
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(ValueError, match=r"own.npz cannot be read"):
            load("file", data_file=str(path))

    def test_missing_and_unknown_kind(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"nothing.csv does not exist; give the path of a .npz"):
            load("file", data_file=str(tmp_path / "nothing.csv"))
        (tmp_path / "a.xlsx").touch()
        with pytest.raises(ValueError, match=r"unknown kind '.xlsx'; give .npz, .csv or .parquet"):
            load("file", data_file=str(tmp_path / "a.xlsx"))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ()


def _labelled(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n * 3.0).reshape(n, 3), torch.arange(n) % 3)


class TestModuleCallable:
    @pytest.fixture
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
        """Return a function that loads a user's function as ``module:callable``."""
        module = ModuleType("users_module")
        monkeypatch.setitem(sys.modules, "users_module", module)

        def load_own(function: Callable[..., object], **options: Any) -> Dataset:
            monkeypatch.setattr(module, "make", function, raising=False)
            return load("users_module:make", **options)

        return load_own

    def test_a_dataset_passes_through_and_gets_what_it_names(self, own: Callable[..., Dataset]) -> None:
        def make(*, seed: int, num_clients: int, size: int = 3) -> Dataset:
            x, y = np.full((size, 1), seed * 100.0 + num_clients), np.arange(size) % 2
            return Dataset(name="mine", x_train=x, y_train=y, x_test=x, y_test=y, num_classes=2)

        data = own(make, seed=7, num_clients=4, size=5)
        assert (data.name, data.x_train[0, 0], len(data.y_train)) == ("mine", 704.0, 5)

    def test_one_torch_dataset_is_split(self, own: Callable[..., Dataset]) -> None:
        data = own(lambda: _labelled(30))
        assert (len(data.y_train), np.bincount(data.y_test).tolist(), data.num_classes) == (24, [2, 2, 2], 3)
        assert data.x_train.dtype == np.float32
        assert np.array_equal((data.x_train[:, 0] / 3).astype(int) % 3, data.y_train)

    def test_a_pair_is_training_and_test(self, own: Callable[..., Dataset]) -> None:
        data = own(lambda: (_labelled(6), _labelled(3)))
        assert (len(data.y_train), len(data.y_test)) == (6, 3)

    def test_decimal_targets_are_regression(self, own: Callable[..., Dataset]) -> None:
        data = own(lambda: TensorDataset(torch.ones(10, 2), torch.linspace(0, 1, 10)))
        assert data.num_classes is None

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (3, "gave a int; return a fedpisa Dataset"),
            (Stream(), "gave a Stream; return a fedpisa Dataset"),
            ([], "is empty"),
            ([(np.ones(2), 0), (np.ones(3), 1)], "pairs of one shape"),
            ([1.0, 2.0], "pairs of one shape"),
            ([("text", 0), ("data", 1)], "give numbers"),
        ],
    )
    def test_bad_returns(self, own: Callable[..., Dataset], made: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            own(lambda: made)
