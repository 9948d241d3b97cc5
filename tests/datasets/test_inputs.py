"""Several features of a sample in one array: what goes in comes out, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedpisa.datasets import Dataset
from fedpisa.datasets._own import as_dataset
from fedpisa.datasets.base import Generated
from fedpisa.datasets.files import read_samples
from fedpisa.datasets.inputs import Inputs, Several
from fedpisa.families.data import load

EXTREMES = [0.1, -0.0, 5e-324, np.finfo(np.float64).max, -1e-40]


def features(n: int = 20) -> dict[str, NDArray[Any]]:
    """Return features of every kind."""
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(-(2**63), 2**63 - 1, (n, 3)),
        "mask": rng.random((n, 3)) < 0.5,
        "image": rng.standard_normal((n, 2, 2)).astype(np.float32),
        "pixels": rng.integers(0, 256, (n, 2), np.uint8),
        "weight": np.resize(EXTREMES, n),
    }


def unpacked(data: Dataset, x: NDArray[Any], dtype: torch.dtype = torch.float64) -> dict[str, NDArray[Any]]:
    assert data.inputs is not None
    in_order, by_name = data.inputs.arguments(torch.from_numpy(x), dtype)
    named = by_name or {str(number): value for number, value in enumerate(in_order)}
    return {name: value.numpy() for name, value in named.items()}


def of(train: Several, test: Several | None = None, **fields: Any) -> Dataset:
    y = np.arange(20) % 2
    return Dataset.of("several", (train, y), (train if test is None else test, y), num_classes=2, **fields)


def test_every_bit_comes_back() -> None:
    data, x = of(features()), features()
    found = unpacked(data, data.x_train)
    for name, dtype in (("ids", np.int64), ("mask", np.bool_), ("weight", np.float64)):
        assert found[name].dtype == dtype
        assert found[name].tobytes() == x[name].tobytes()
    for name in ("image", "pixels"):
        assert found[name].dtype == np.float64
        np.testing.assert_array_equal(found[name], x[name])


def test_floats_get_the_dtype_of_the_model() -> None:
    data = of(features())
    found = unpacked(data, data.x_train, torch.float32)
    assert [str(value.dtype) for value in found.values()] == [
        "int64",
        "bool",
        "float32",
        "float32",
        "float32",
    ]
    assert found["image"].tobytes() == features()["image"].tobytes()


def test_an_order_of_names_does_not_matter_and_that_of_a_tuple_does() -> None:
    back = dict(reversed(features().items()))
    data = of(features(), back)
    np.testing.assert_array_equal(data.x_train, data.x_test)
    in_order = of(tuple(features().values()))
    assert in_order.inputs is not None
    assert in_order.inputs.names == ()
    np.testing.assert_array_equal(in_order.x_train, data.x_train)


def test_stacked_tensors_are_taken_apart() -> None:
    data = of(features())
    assert data.inputs is not None
    x = torch.from_numpy(data.x_train).view(4, 5, -1)
    inputs = data.inputs
    stacked = torch.vmap(lambda x: inputs.arguments(x, torch.float64)[1])(x)
    for name, value in unpacked(data, data.x_train).items():
        np.testing.assert_array_equal(stacked[name].numpy().reshape(value.shape), value)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"a": np.ones((20, 2)), "b": np.ones((19, 1))}, None, "features of 20, 19 samples"),
        (
            {"a": np.ones((20, 2))},
            {"b": np.ones((20, 2))},
            r"b \(2,\) float64, and a \(2,\) float64 are wanted",
        ),
        (
            {"a": np.ones((20, 2))},
            {"a": np.ones((20, 3))},
            r"a \(3,\) float64, and a \(2,\) float64 are wanted",
        ),
        (
            {"a": np.ones((20, 2))},
            {"a": np.ones((20, 2), int)},
            r"a \(2,\) int64, and a \(2,\) float64 are wanted",
        ),
        ({"a": np.ones((20, 2))}, (np.ones((20, 2)),), r"0 \(2,\) float64, and a \(2,\) float64 are wanted"),
        ({"a": np.ones((20, 2))}, np.ones((20, 2)), "the test part has one array of features; give a"),
        (np.ones((20, 2)), {"a": np.ones((20, 2))}, "only the test part has several features"),
        ({"a b": np.ones((20, 2))}, None, "'a b'; a model is called as module"),
        ({}, None, "has no features"),
        ({"a": np.full((20, 2), "x")}, None, "feature a holds <U1"),
        ({"a": np.ones((20, 2), np.uint64)}, None, "feature a holds uint64"),
        ({"a": np.ones((20, 0))}, None, r"feature a has shape \(20, 0\)"),
        (
            {"a": np.array([1.0] * 19 + [np.nan])},
            None,
            "sample 19 has a NaN or infinite number in the feature a",
        ),
        ({"a": np.ones((19, 2))}, None, "19 training samples but targets of shape"),
    ],
)
def test_features_that_do_not_fit(train: Any, test: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        of(train, test)
    assert "\n" not in str(caught.value)


def test_the_constructor_wants_packed_features() -> None:
    x, y = {"a": np.ones((2, 1))}, np.arange(2)
    with pytest.raises(ValueError, match=r"give them to Dataset\.of"):
        Dataset(name="d", x_train=x, y_train=y, x_test=x, y_test=y, num_classes=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pack them by inputs\.packed"):
        Dataset.of("d", (np.ones((2, 1)), y), (np.ones((2, 1)), y), num_classes=2, inputs=Inputs.of("d", x))


def test_a_vocabulary_needs_one_array() -> None:
    with pytest.raises(ValueError, match="a vocabulary takes one array of features"):
        of({"ids": np.zeros((20, 2), int)}, vocabulary=("a", "b"))


class TestTorchDatasets:
    def test_samples_of_dictionaries(self) -> None:
        x = features(30)
        each = [({name: torch.from_numpy(v[[k]])[0] for name, v in x.items()}, k % 3) for k in range(30)]
        data = as_dataset("own", each, seed=0)
        assert (len(data.y_train), len(data.y_test), data.num_classes) == (24, 6, 3)
        everything = np.concatenate([unpacked(data, part)["ids"] for part in (data.x_train, data.x_test)])
        assert sorted(everything.tolist()) == sorted(x["ids"].tolist())

    def test_a_pair_of_tuples_and_scalars(self) -> None:
        each = [((np.ones((1, 2, 2), np.float32), k), k % 2) for k in range(6)]
        data = as_dataset("own", (each, each[:4]), seed=0)
        assert str(data.inputs) == "0 (1, 2, 2) float32, 1 () int64"
        assert unpacked(data, data.x_test)["1"].tolist() == [0, 1, 2, 3]

    def test_a_tuple_of_numbers_is_one_vector(self) -> None:
        data = as_dataset("own", [((0.5, float(k)), k % 2) for k in range(10)], seed=0)
        assert (data.inputs, data.shape) == (None, (2,))

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            ([({"a": np.ones(2)}, 0), ({"b": np.ones(2)}, 1)], "sample 1 has other features than the first"),
            ([({"a": np.ones(2)}, 0), ({"a": np.ones(3)}, 1)], "pairs of one shape .feature a: "),
            ([({"a": np.ones(2)}, 0), (np.ones(2), 1)], "sample 1 has other features"),
        ],
    )
    def test_samples_that_differ(self, samples: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            as_dataset("own", samples, seed=0)


class TestFiles:
    def save(self, folder: Path, **arrays: Any) -> str:
        np.savez(folder / "own.npz", **{name.replace("__", "."): value for name, value in arrays.items()})
        return str(folder / "own.npz")

    def test_by_name_with_groups(self, tmp_path: Path) -> None:
        x, y = features(40), np.array(["no", "yes"] * 20)
        named = {f"x.{name}": values for name, values in x.items()}
        path = self.save(tmp_path, **named, y=y, groups=np.arange(40) % 2)
        data = load("file", data_file=path)
        assert (data.class_names, len(data.y_train)) == (("no", "yes"), 32)
        found = unpacked(data, data.x_train)
        where = [np.flatnonzero((x["ids"] == ids).all(1))[0] for ids in found["ids"]]
        assert found["weight"].tobytes() == x["weight"][where].tobytes()
        assert data.y_train.tolist() == [row % 2 for row in where]

    def test_in_order_with_a_test_set(self, tmp_path: Path) -> None:
        x, y = tuple(features().values()), np.arange(20) % 2
        arrays = {f"x__{number}": values for number, values in enumerate(x)}
        tests = {f"x_test__{number}": values[:4] for number, values in reversed([*enumerate(x)])}
        data = load("file", data_file=self.save(tmp_path, **arrays, **tests, y=y, y_test=y[:4]))
        np.testing.assert_array_equal(data.x_train[:4], data.x_test)

    @pytest.mark.parametrize(
        ("arrays", "keys", "message"),
        [
            ({"x": np.ones((4, 1)), "x__a": np.ones((4, 1))}, {}, "the arrays x and x.a; give one"),
            ({"x__0": np.ones((4, 1)), "x__2": np.ones((4, 1))}, {}, "number them 0 to 1"),
            (
                {"x__a": np.ones((4, 1)), "x_test": np.ones((4, 1)), "y_test": np.arange(4)},
                {},
                "only one of x and x_t",
            ),
            ({"x": np.ones((4, 1)), "x_test__a": np.ones((4, 1))}, {}, "only one of x and x_test"),
            ({"x__a": np.ones((4, 1))}, {"standardize": True}, "standardize takes one array of features"),
            ({"x__a": np.ones((4, 1))}, {"sample_shape": [1]}, "sample-shape takes one array of features"),
            ({"x__a": np.ones((3, 1))}, {}, "3 samples but 4 labels"),
        ],
    )
    def test_files_that_do_not_fit(
        self, tmp_path: Path, arrays: dict[str, Any], keys: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            load("file", data_file=self.save(tmp_path, **arrays, y=np.arange(4) % 2), **keys)

    def test_a_node_reads_what_the_run_has(self, tmp_path: Path) -> None:
        x, y = features(), np.arange(20) % 2
        inputs = Inputs.of("run", x)
        path = Path(self.save(tmp_path, **{f"x.{name}": x[name] for name in reversed(x)}, y=y))
        found, labels = read_samples(path, ("0", "1"), inputs=inputs)
        np.testing.assert_array_equal(found, inputs.packed("run", x))
        assert labels.tolist() == y.tolist()
        with pytest.raises(ValueError, match="and the run has one array"):
            read_samples(path, ("0", "1"))
        path = Path(self.save(tmp_path, x=np.ones((20, 1)), y=y))
        with pytest.raises(ValueError, match=r"give arrays x.NAME of these features"):
            read_samples(path, ("0", "1"), inputs=inputs)
        path = Path(self.save(tmp_path, **{f"x.{name}": x[name] for name in ("ids", "mask")}, y=y))
        with pytest.raises(ValueError, match="are wanted"):
            read_samples(path, ("0", "1"), inputs=inputs)


def test_generated_samples_of_both_parts_are_packed() -> None:
    """A data set may make the training and the test samples on demand."""

    def make(client_n: NDArray[np.int64], k_n: NDArray[np.int64]) -> tuple[Several, NDArray[np.int64]]:
        return {"a": np.stack([k_n, k_n], 1) + 0.5, "b": k_n[:, None]}, k_n % 2

    both = make(np.zeros(4, np.int64), np.arange(4))
    made = Generated(np.array([6]), make)
    data = Dataset.of("made", both, both, num_classes=2, generated=made, generated_test=made)
    for part in (data.generated, data.generated_test):
        assert part is not None
        found = unpacked(data, part.rows(np.arange(6))[0])
        assert found["a"].tolist() == [[k + 0.5, k + 0.5] for k in range(6)]
        assert found["b"].tolist() == [[k] for k in range(6)]
