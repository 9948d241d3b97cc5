"""A user's own table or arrays: .npz, .csv, .parquet."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedpisa.datasets.base import Dataset, Features, Targets, train_test_split
from fedpisa.rng import generator

_Arrays = Mapping[str, NDArray[Any]]


def file(
    *,
    seed: int,
    data_file: str,
    label_column: str = "label",
    group_column: str | None = None,
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    standardize: bool = False,
) -> Dataset:
    """Read a table (.csv, .parquet) or arrays (.npz) of your own; split off a test set.

    A table has one sample per row, a label column, and otherwise only columns of numbers. An .npz file has
    ``x`` and ``y`` (or ``features`` and ``labels``) and may have ``groups``, ``x_test`` and ``y_test``.
    Labels that are integers or strings become classes 0, 1, ... in sorted order; labels with a decimal point
    are regression targets. The test set is drawn from the seed, separately within every group if there are
    groups and otherwise within every class. Features become float32 (float64 stays in .npz files) and are
    used as they are unless ``standardize`` is set.

    Parameters
    ----------
    data_file
        Path of the file; reading .parquet needs the extra ``parquet``.
    label_column
        Column of the table that holds the labels.
    group_column
        Column of the table that says which natural client a row belongs to (partitioner ``natural``).
    test_fraction
        Share of the samples in the test set, unless the file has one.
    standardize
        Give every feature mean 0 and standard deviation 1 over the training set.

    Raises
    ------
    ValueError
        If the file is missing, damaged or of another kind, or a column does not fit.
    """
    path = Path(data_file).expanduser()
    if not path.is_file():
        raise ValueError(f"data-file {path} does not exist; give the path of a .npz, .csv or .parquet file")
    if path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.suffix in (".csv", ".parquet"):
        arrays = _read_table(path, label_column, group_column)
    else:
        raise ValueError(f"data-file {path} is of unknown kind {path.suffix!r}; give .npz, .csv or .parquet")

    x, labels, groups = arrays["x"], arrays["y"], arrays.get("groups")
    if len(x) != len(labels) or (groups is not None and len(groups) != len(labels)):
        raise ValueError(f"{path} has {len(x)} samples but {len(labels)} labels; give one label per sample")
    if len(labels) == 0:
        raise _empty(path)
    classes, y = _targets(path, labels)
    owner = None if groups is None else np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if "x_test" in arrays:
        x_train, y_train, x_test = x, y, arrays["x_test"]
        y_test = _known(path, classes, arrays["y_test"])
    else:
        strata = y if owner is None else owner
        train, test = train_test_split(strata, test_fraction, generator(seed, "file-split"))
        x_train, y_train, x_test, y_test = x[train], y[train], x[test], y[test]
        owner = None if owner is None else owner[train]
    if standardize:
        mean, std = x_train.mean(axis=0), x_train.std(axis=0)
        std[std == 0] = 1.0  # a constant feature becomes 0
        x_train, x_test = (x_train - mean) / std, (x_test - mean) / std
    return Dataset(
        name=path.stem,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        num_classes=None if classes is None else len(classes),
        classes=None if classes is None else tuple(map(str, classes)),
        groups=owner,
        default_model="linear" if classes is None else "logistic",
    )


def read_samples(
    place: Path, class_names: Sequence[str], label_column: str = "label"
) -> tuple[Features, Targets]:
    """Read a node's own samples: a file as `file` reads them, or all such files of a folder.

    Parameters
    ----------
    place
        A .npz, .csv or .parquet file, or a folder of them.
    class_names
        The run's classes in the order of their numbers; none for regression.
    label_column
        Column of a table that holds the labels.

    Raises
    ------
    ValueError
        If there is nothing to read, or it does not fit. The text may quote the data: it is for the node alone.
    """
    kinds = (".npz", ".csv", ".parquet")
    files = sorted(f for f in place.iterdir() if f.suffix in kinds) if place.is_dir() else [place]
    if not files or not place.exists() or files[0].suffix not in kinds:
        raise ValueError(f"data {place} is no {', '.join(kinds)} file, nor a folder of some: name one")
    parts = []
    for path in files:
        arrays = _read_npz(path) if path.suffix == ".npz" else _read_table(path, label_column, None)
        own, y = _targets(path, arrays["y"])
        if (own is None) != (not class_names):
            wanted = "class labels" if class_names else "numbers with a decimal point"
            raise ValueError(f"{path}: the labels are {arrays['y'].dtype}; the run asks for {wanted}")
        if own is not None:
            number_of = {name: number for number, name in enumerate(class_names)}
            unknown = [str(name) for name in own if str(name) not in number_of]
            if unknown:
                raise ValueError(
                    f"{path}: label {unknown[0]!r} is none of the run's: {', '.join(class_names)}"
                )
            y = np.array([number_of[str(name)] for name in own], dtype=np.int64)[y]
        parts.append((arrays["x"], y))
    shapes = {x.shape[1:] for x, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"{place}: the files' samples have the shapes {sorted(shapes)}; give all the same")
    x, y = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return x, y


def _read_npz(path: Path) -> _Arrays:
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); write it again with numpy.savez, without object arrays"
        ) from error
    for ours, theirs in (("x", "features"), ("y", "labels")):
        if ours not in arrays and theirs in arrays:
            arrays[ours] = arrays.pop(theirs)
    needed = {"x", "y"} | ({"x_test", "y_test"} if {"x_test", "y_test"} & arrays.keys() else set())
    missing = sorted(needed - arrays.keys())
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]} (it has {', '.join(arrays) or 'none'}); "
            "give x and y, and both or none of x_test and y_test"
        )
    for name in {"x", "x_test"} & arrays.keys():
        if arrays[name].dtype.kind not in "fiub":
            raise ValueError(f"{path}: array {name} holds {arrays[name].dtype}; give numbers")
        if arrays[name].dtype != np.float64:
            arrays[name] = arrays[name].astype(np.float32)
    return arrays


def _read_table(path: Path, label_column: str, group_column: str | None) -> _Arrays:
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(f"{path} needs the extra parquet; run pip install 'fedpisa[parquet]'") from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors of a malformed file are ValueErrors
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); check the file") from error
    if table.empty:
        raise _empty(path)
    chosen = {"label-column": label_column}
    if group_column is not None:
        chosen["group-column"] = group_column
    for key, column in chosen.items():
        if column not in table:
            raise ValueError(
                f"{path} has no column {column!r}; set {key} to one of {', '.join(map(str, table.columns))}"
            )
        if table[column].isna().any():
            row = int(table[column].isna().to_numpy().argmax())
            raise ValueError(f"{path}: row {row} has no {column}; fill it in or remove the row")
    features = table.drop(columns=list(chosen.values()))
    for name, dtype in features.dtypes.items():
        if not (pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)):
            raise ValueError(
                f"{path}: column {name!r} does not hold numbers; encode it as numbers or remove it"
            )
    arrays = {
        "x": features.to_numpy(np.float32, na_value=np.nan),
        "y": _plain(table[label_column].to_numpy()),
    }
    return arrays if group_column is None else arrays | {"groups": _plain(table[group_column].to_numpy())}


def _empty(path: Path) -> ValueError:
    return ValueError(f"{path} has no samples; give at least two of every class")


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Turn a column of Python objects into an array of strings."""
    return values.astype(str) if values.dtype.kind == "O" else values


def _targets(path: Path, labels: NDArray[Any]) -> tuple[NDArray[Any] | None, NDArray[Any]]:
    """Return the classes and each label's class, or ``None`` and the regression targets."""
    if labels.ndim != 1:
        raise ValueError(f"{path}: labels have shape {labels.shape}; give one label per sample")
    if labels.dtype.kind == "f":
        return None, labels.astype(np.float64)
    if labels.dtype.kind not in "iubUS":
        raise ValueError(f"{path}: labels are {labels.dtype}; give integers, strings or decimal numbers")
    classes, y = np.unique(labels, return_inverse=True)
    return classes, y.astype(np.int64)


def _known(path: Path, classes: NDArray[Any] | None, labels: NDArray[Any]) -> NDArray[Any]:
    """Return the targets of a test set whose classes must be those of the training set."""
    own, targets = _targets(path, labels)
    if classes is None or own is None:
        if classes is not None or own is not None:
            raise ValueError(f"{path}: y and y_test are of different kinds; give both the same type")
        return targets
    unknown = np.setdiff1d(own, classes)
    if unknown.size:
        raise ValueError(f"{path}: test label {unknown[0]} is in no training sample; remove those samples")
    renumbered: NDArray[np.int64] = np.searchsorted(classes, own)[targets]
    return renumbered
