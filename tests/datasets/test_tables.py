"""Tables are read by column names, and an error asks for missing information."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpisa.datasets.base import Dataset
from fedpisa.datasets.files import read_samples, standardized
from fedpisa.families.data import load

NAMES = ["a", "b", "c"]


def frame(n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(n, 3)), columns=NAMES)
    table["label"] = np.arange(n) % 2
    return table


def read(path: Path, **keys: Any) -> Dataset:
    return load("file", data_file=str(path), **keys)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([*NAMES, "label"]), separator=st.sampled_from(",;\t"), compressed=st.booleans())
def test_nodes_read_any_order_of_columns(
    tmp_path: Path, order: list[str], separator: str, compressed: bool
) -> None:
    table = frame(8)
    path = tmp_path / ("t.CSV.gz" if compressed else "t.CSV")
    text = table[order].to_csv(index=False, sep=separator).encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    x, y = read_samples(path, ("0", "1"), columns=NAMES)
    np.testing.assert_array_equal(x, table[NAMES].to_numpy(np.float32))
    np.testing.assert_array_equal(y, table["label"])


@pytest.mark.parametrize(
    ("columns", "cause"),
    [(["a", "b", "label"], "no column 'c'"), ([*NAMES, "d", "label"], "a further column 'd'")],
)
def test_other_columns_than_the_runs_are_refused(tmp_path: Path, columns: list[str], cause: str) -> None:
    path = tmp_path / "t.csv"
    frame().assign(d=1.0)[columns].to_csv(path, index=False)
    with pytest.raises(ValueError, match=cause):
        read_samples(path, ("0", "1"), columns=NAMES)


def test_a_saved_index_is_named_and_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().to_csv(path)
    with pytest.raises(ValueError, match=r"column '' has no name.*drop-columns = \[''\]"):
        read(path)
    frame().rename_axis("id").to_csv(path)
    assert read(path, drop_columns=["id"]).columns == tuple(NAMES)


def test_an_index_of_parquet_is_named_and_can_be_dropped(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="extra parquet not installed")
    path = tmp_path / "t.parquet"
    frame().rename_axis("id").to_parquet(path)
    with pytest.raises(ValueError, match=r"its index 'id' may be a feature.*drop-columns = \['id'\]"):
        read(path)
    assert read(path, drop_columns=["id"]).columns == tuple(NAMES)
    frame().set_index("label").to_parquet(path)
    assert read(path).num_classes == 2


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a,a,label\n1,2,0\n3,4,1\n", "two columns named 'a'"),
        ("a,label\n1,2,0\n3,4,1\n", "more cells than the header has names"),
        ("label\n0\n1\n", "no feature beside the column 'label'"),
        ("a,b,label\n1,,0\n3,4,1\n", "row 0 has no number in column 'b'"),
        ("a,label\n1,\n3,1\n", "row 0 has no label"),
        ("a,label\nx,0\n3,1\n", "column 'a' does not hold numbers"),
    ],
)
def test_what_a_table_must_not_be(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=cause):
        read(path)


@pytest.mark.parametrize("word", ["NA", "None", "null", "nan", "N/A"])
def test_a_class_may_be_called_like_a_missing_value(tmp_path: Path, word: str) -> None:
    path = tmp_path / "t.csv"
    frame().assign(label=[word, "other"] * 20).to_csv(path, index=False)
    assert sorted(read(path).classes or ()) == sorted([word, "other"])


@pytest.mark.parametrize(
    ("labels", "regression", "classes"),
    [
        (np.arange(40) % 2 + 0.0, None, "regression = true"),
        (np.arange(40) % 2 + 0.0, False, 2),
        (np.arange(40) % 2 + 0.0, True, None),
        (np.arange(40) + 0.5, None, None),
        (np.arange(40), None, "regression = true"),
        (np.arange(40), True, None),
        (np.arange(40) % 3 + 5, None, 3),
        (np.arange(40) % 3 + 5, True, None),
        (np.array(["no", "yes"] * 20), None, 2),
        (np.array(["no", "yes"] * 20), True, "not numbers"),
    ],
)
def test_what_a_label_is(
    tmp_path: Path, labels: Any, regression: bool | None, classes: int | str | None
) -> None:
    path = tmp_path / "t.csv"
    frame().assign(label=labels).to_csv(path, index=False)
    if isinstance(classes, str):
        with pytest.raises(ValueError, match=classes):
            read(path, regression=regression)
    else:
        assert read(path, regression=regression).num_classes == classes


def test_flat_pixels_get_a_shape(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().assign(d=0.0).to_csv(path, index=False)
    assert read(path, sample_shape=[1, 2, 2]).shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"a sample has 4 numbers, and sample-shape = \[3\] needs 3"):
        read(path, sample_shape=[3])


def test_mnist_of_keras_is_read(tmp_path: Path) -> None:
    x, y = np.zeros((6, 28, 28), np.uint8), np.arange(6)[:, None] % 3
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    data = read(tmp_path / "mnist.npz", sample_shape=[1, 28, 28])
    assert (data.shape, data.num_classes, len(data.y_test)) == ((1, 28, 28), 3, 3)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(1e-3, 1e3), st.integers(5, 60))
def test_standardising_is_that_of_exact_arithmetic(offset: float, scale: float, n: int) -> None:
    from fractions import Fraction

    column = offset + scale * np.arange(n)
    exact = [Fraction(value) for value in column.tolist()]
    mean = sum(exact) / n
    std = float(sum((value - mean) ** 2 for value in exact) / n) ** 0.5
    got = standardized(column[:, None], column[:1, None])[0][:, 0]
    if std > 1e-12 * float(np.abs(column).max()):
        digits = 1e-9 + 2 * float(np.spacing(np.abs(column).max())) / std
        np.testing.assert_allclose(
            got, [float(value - mean) / std for value in exact], rtol=1e-9, atol=digits
        )
    else:
        assert not got.any()


def test_a_column_that_float32_flattens_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    frame().assign(time=1.7e9 + np.arange(40)).to_csv(path, index=False)
    read(path)
    assert "values of column 'time' equal" in caplog.text


def test_features_of_one_number_are_standardized() -> None:
    train, test = standardized(np.array([1.0, 3.0]), np.array([5.0]))
    assert (train.tolist(), test.tolist()) == ([-1.0, 1.0], [3.0])


@pytest.mark.parametrize("blank", ["\n", "\n\n", "  \n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (frame().to_csv(), "column '' has no name"),
        (frame().rename(columns={"b": "a"}).to_csv(index=False), "two columns named 'a'"),
    ],
)
def test_blank_lines_above_the_header_hide_nothing(tmp_path: Path, blank: str, text: str, cause: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(blank + text)
    with pytest.raises(ValueError, match=cause):
        read(path)


def test_a_column_without_a_name_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().to_csv(path)
    assert read(path, drop_columns=[""]).columns == tuple(NAMES)


@pytest.mark.parametrize("separator", ";\t")
def test_a_name_may_have_commas(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.csv"
    frame().rename(columns={"a": "a, in m, or s", "b": "b, c, d"}).to_csv(path, index=False, sep=separator)
    assert read(path).columns == ("a, in m, or s", "b, c, d", "c")


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        (["00", "01"], ("00", "01")),
        (["007", "7"], ("007", "7")),
        ([" x", "y "], ("x", "y")),
        (["10", "9"], ("9", "10")),
        (["+1", "-1"], ("-1", "1")),
        (["True", "false"], ("False", "True")),
        (["True", "1"], ("1", "True")),
        (["1_0", "10"], ("10", "1_0")),
        (["1e5", "2f5"], ("1e5", "2f5")),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993")),
    ],
)
def test_classes_are_as_they_are_written(tmp_path: Path, words: list[str], classes: tuple[str, ...]) -> None:
    """A node that has only some of the classes names them in the same way."""
    path = tmp_path / "t.csv"
    frame().assign(label=words * 20).to_csv(path, index=False)
    assert read(path).classes == classes
    together = read_samples(path, classes)[1][:2].tolist()
    for number, word in zip(together, words, strict=True):
        frame().assign(label=word).to_csv(path, index=False)
        assert read_samples(path, classes)[1].tolist() == [number] * 40


def test_padded_numbers_are_targets_of_a_regression(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().assign(label=["0930", "1015"] * 20).to_csv(path, index=False)
    assert set(read(path, regression=True).y_train) == {930.0, 1015.0}


def test_spaces_are_no_label(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().assign(label=["x", "  "] * 20).to_csv(path, index=False)
    with pytest.raises(ValueError, match="row 1 has no label"):
        read(path)


@pytest.mark.parametrize("position", range(10, 120, 11))
def test_damaged_gzip_is_refused(tmp_path: Path, position: int) -> None:
    path = tmp_path / "t.csv.gz"
    content = bytearray(gzip.compress(frame().to_csv(index=False).encode()))
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv\.gz"):
        read(path)


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        b"{}",
        b'{"index_columns": [5], "columns": [], "column_indexes": []}',
        b'{"index_columns": [], "columns": [{"name": "a"}], "column_indexes": [{}]}',
        b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda metadata: str(metadata[:20]),
)
def test_parquet_with_damaged_metadata_is_refused(tmp_path: Path, metadata: bytes) -> None:
    pa = pytest.importorskip("pyarrow", reason="extra parquet not installed")
    from pyarrow import parquet

    table = pa.Table.from_pandas(frame()).replace_schema_metadata({b"pandas": metadata})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet cannot be read") as caught:
        read(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["label", "g"])
@pytest.mark.parametrize("cell", [[0, 1], {"x": 1}], ids=str)
def test_nested_cells_are_no_labels_and_no_groups(tmp_path: Path, column: str, cell: Any) -> None:
    pytest.importorskip("pyarrow", reason="extra parquet not installed")
    frame().assign(**{"g": [0, 1] * 20, column: [cell] * 40}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=rf"t\.parquet: column '{column}' holds lists"):
        read(tmp_path / "t.parquet", group_column="g")


X, Y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"x": X[:, :0], "y": Y}, "one feature"),
        ({"x": X, "y": Y, "groups": np.stack([Y, Y], 1)}, r"groups of shape \(40, 2\)"),
        ({"x": X, "y": Y, "groups": Y[:5]}, r"groups of shape \(5,\)"),
        ({"x": X, "y": Y, "groups": Y.astype(complex)}, "groups are complex128"),
        ({"x": X, "y": Y, "groups": np.array(["NaT", "2020-01-01"] * 20, "M8[D]")}, "sample 0 has no group"),
        ({"x": X, "y": Y, "features": X}, "the arrays x and features"),
        ({"x": X, "y": Y, "labels": Y}, "the arrays y and labels"),
    ],
    ids=str,
)
def test_what_arrays_must_not_be(tmp_path: Path, arrays: dict[str, Any], cause: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"a.*{cause}"):
        read(path)


def test_classes_of_bytes_are_their_texts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.array([b"no", b"yes"] * 20))
    assert read(tmp_path / "a.npz").classes == ("no", "yes")


def test_float_classes_that_have_lost_digits_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=2.0**53 + Y * 2)
    with pytest.raises(ValueError, match="lost its last digits"):
        read(tmp_path / "a.npz", regression=False)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.longdouble])
def test_whole_numbers_of_arrays_are_standardized_exactly(tmp_path: Path, dtype: Any, caplog: Any) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=(1_700_000_000 + np.arange(40)).astype(dtype)[:, None], y=Y)
    assert len(np.unique(read(path, standardize=True).x_train)) == 32
    if dtype is not np.longdouble:
        assert read(path).x_train.dtype == np.float32
        assert "float32 makes" in caplog.text


@pytest.mark.parametrize("scale", [1e300, 1.0, 1e-300])
def test_standardizing_has_no_scale(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1))
    np.testing.assert_allclose(standardized(x * scale, x)[0], standardized(x, x)[0], rtol=1e-12)
