"""A user's own table or arrays: .npz, .csv, .parquet."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedpisa.components import LOG
from fedpisa.datasets.base import Dataset, Features, Targets, train_test_split
from fedpisa.datasets.inputs import Inputs, Several, require_one
from fedpisa.datasets.labels import known_targets, targets_of
from fedpisa.datasets.tables import TableSchema, is_table, lost_columns, read_table
from fedpisa.rng import generator


def file(
    *,
    seed: int,
    data_file: str,
    label_column: str = "label",
    group_column: str | None = None,
    drop_columns: Sequence[str] = (),
    sample_shape: Sequence[Annotated[int, Field(gt=0)]] = (),
    regression: bool | None = None,
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    standardize: bool = False,
) -> Dataset:
    """Read a table (.csv, .csv.gz, .parquet) or arrays (.npz) of your own; split off a test set.

    A table has one sample per row, a label column, and otherwise only columns of numbers. An .npz file has
    ``x`` and ``y`` (or ``features`` and ``labels``, or Keras' ``x_train`` and ``y_train``) and may have ``groups``,
    ``x_test`` and ``y_test``. Several features a sample are the arrays ``x.NAME``, or ``x.0``, ``x.1`` and so on, and
    ``x_test.NAME``; see `Dataset.of`.

    Labels that are integers or strings become classes 0, 1, ... in sorted order; labels with a decimal point are
    regression targets. Where that is in doubt, as for ``0.0`` and ``1.0``, set ``regression``. The test set is drawn
    from the seed, separately within every group if there are groups and otherwise within every class. Features become
    float32 (float64 stays in .npz files) and are used as they are unless ``standardize`` is set.

    Parameters
    ----------
    data_file
        Path of the file; reading .parquet needs the extra ``parquet``.
    label_column
        Column of the table that holds the labels.
    group_column
        Column of the table that says which natural client a row belongs to (partitioner ``natural``).
    drop_columns
        Columns of the table that are no features.
    sample_shape
        Shape of one sample, such as ``[1, 28, 28]`` for flat pixels; by default as in the file.
    regression
        Whether labels are numbers to predict rather than classes; by default as they are written.
    test_fraction
        Share of the samples in the test set, unless the file has one.
    standardize
        Give every feature mean 0 and standard deviation 1 over the training set.

    Raises
    ------
    ValueError
        If the file is missing, damaged or of another kind, or a column does not fit.
    """
    path = Path(os.path.expanduser(data_file))
    if not os.path.isfile(path):
        raise ValueError(f"data-file {path} does not exist; give the path of a .npz, .csv or .parquet file")
    columns: tuple[str, ...] | None = None
    inputs: Inputs | None = None
    if path.suffix.lower() == ".npz":
        arrays, inputs = _read_npz(path)
    elif is_table(path):
        schema, arrays = read_table(path, TableSchema(label_column, group_column, tuple(drop_columns)))
        columns = schema.features
    else:
        raise ValueError(f"data-file {path} is of unknown kind {path.suffix!r}; give .npz, .csv or .parquet")

    x, labels, groups = arrays["x"], arrays["y"], arrays.get("groups")
    if len(x) != len(labels):
        raise ValueError(f"{path} has {len(x)} samples but {len(labels)} labels; give one label per sample")
    if groups is not None and groups.shape != (len(labels),):
        raise ValueError(
            f"{path} has {len(labels)} samples and groups of shape {groups.shape}; give one group per sample"
        )
    if len(labels) == 0:
        raise _empty(path)
    classes, y = targets_of(str(path), labels, regression)
    owner = None if groups is None else _owners(path, groups)
    if "x_test" in arrays:
        x_train, y_train, x_test = x, y, arrays["x_test"]
        y_test = known_targets(str(path), classes, arrays["y_test"], regression)
    else:
        strata = y if owner is None else owner
        train, test = train_test_split(strata, test_fraction, generator(seed, "file-split"))
        x_train, y_train, x_test, y_test = x[train], y[train], x[test], y[test]
        owner = None if owner is None else owner[train]
    for is_set, key in ((standardize, "standardize"), (sample_shape, "sample-shape")):
        if is_set:
            require_one(
                inputs, f"{path}: {key}", f"remove {key}, and store the features as the model takes them"
            )
    dtype = np.float64 if columns is None and x.dtype == np.float64 else np.float32
    if standardize:
        x_train, x_test = standardized(x_train, x_test)
    elif inputs is None and (lost := _lost(x_train, columns)):
        name, count = next(iter(lost.items()))
        LOG.warning(
            "%s: float32 makes %d different values of column %r equal: set standardize = true, or scale the column",
            path,
            count,
            name,
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        if inputs is None:
            x_train, x_test = (
                _shaped(path, part.astype(dtype, copy=False), sample_shape) for part in (x_train, x_test)
            )
    return Dataset(
        name=path.stem,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        num_classes=None if classes is None else len(classes),
        classes=None if classes is None else tuple(map(str, classes)),
        columns=columns,
        groups=owner,
        default_model="linear" if classes is None else "logistic",
        inputs=inputs,
    )


def _lost(x: Features, columns: Sequence[str] | None) -> Mapping[str, int]:
    """Return what float32 makes equal; see `lost_columns`. An array's columns are called by their number."""
    if columns is not None:
        return lost_columns(x.astype(np.float64, copy=False), columns)
    if x.dtype.kind not in "iu" or np.abs(x.astype(np.float64)).max(initial=0) <= 2**24:
        return {}
    flat = x.reshape(len(x), -1).astype(np.float64)
    return lost_columns(flat, [str(number) for number in range(flat.shape[1])])


def standardized(x_train: Features, x_test: Features) -> tuple[Features, Features]:
    """Return both parts with mean 0 and standard deviation 1 over the training part, computed in float64.

    A feature that is constant up to rounding becomes 0.

    Examples
    --------
    >>> train, test = standardized(np.array([[1.0, 0.1], [3.0, 0.1]]), np.array([[5.0, 0.1]]))
    >>> train.tolist(), test.tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0]])
    """
    train, test = x_train.astype(np.float64), x_test.astype(np.float64)
    # A power of two changes no digit, and no square overflows or vanishes.
    exponent = np.frexp(np.abs(train).max(axis=0))[1]
    train, test = np.ldexp(train, -exponent), np.ldexp(test, -exponent)
    # The mean of what is left corrects the rounding of the first mean.
    mean = train.mean(axis=0)
    mean += (train - mean).mean(axis=0)
    std = (train - mean).std(axis=0)
    constant = std <= 1e-12 * np.abs(train).max(axis=0)
    std = np.where(constant, 1.0, std)
    dtype = x_train.dtype if x_train.dtype.kind == "f" else np.float64
    scaled = [np.where(constant, 0.0, (part - mean) / std).astype(dtype) for part in (train, test)]
    return scaled[0], scaled[1]


def _shaped(path: Path, x: Features, shape: Sequence[int]) -> Features:
    if not shape:
        return x
    if int(np.prod(shape)) != int(np.prod(x.shape[1:])):
        raise ValueError(
            f"{path}: a sample has {int(np.prod(x.shape[1:]))} numbers, and sample-shape = {[*shape]} needs "
            f"{int(np.prod(shape))}"
        )
    return x.reshape(len(x), *shape)


def _owners(path: Path, groups: NDArray[Any]) -> NDArray[np.int64]:
    if groups.dtype.kind not in "fiubSUM":
        raise ValueError(f"{path}: the groups are {groups.dtype}; give integers, strings or dates")
    if groups.dtype.kind in "fM" and not np.isfinite(groups).all():
        row = int(np.argmin(np.isfinite(groups)))
        raise ValueError(f"{path}: sample {row} has no group; fill it in or remove the sample")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def read_samples(
    place: Path,
    class_names: Sequence[str],
    label_column: str = "label",
    *,
    columns: Sequence[str] | None = None,
    drop_columns: Sequence[str] = (),
    sample_shape: Sequence[int] = (),
    inputs: Inputs | None = None,
) -> tuple[Features, Targets]:
    """Read a node's own samples: a file as `file` reads them, or all such files of a folder.

    Parameters
    ----------
    place
        A .npz, .csv, .csv.gz or .parquet file, or a folder of them.
    class_names
        The run's classes in the order of their numbers; none for regression.
    label_column
        Column of a table that holds the labels.
    columns
        The features' columns in the run's order: a table with another order is put in this one. By default those of
        the first table.
    drop_columns
        Columns of a table that are no features.
    sample_shape
        Shape of one sample; by default as in the file.
    inputs
        The run's features if a sample has several, which are packed as it says.

    Raises
    ------
    ValueError
        If there is nothing to read, or it does not fit. The text may quote the data: it is for the node alone.
    """
    files = sorted(f for f in place.iterdir() if _is_readable(f)) if os.path.isdir(place) else [place]
    if not files or not os.path.exists(place) or not _is_readable(files[0]):
        raise ValueError(f"data {place} is no .npz, .csv or .parquet file, nor a folder of some: name one")
    schema = TableSchema(label_column, None, tuple(drop_columns), tuple(columns or ()), tuple(class_names))
    parts = []
    for path in files:
        if is_table(path):
            require_one(inputs, f"{path}: a table", "give an .npz file of these features")
            schema, arrays = read_table(path, schema)
            x: Features = arrays["x"].astype(np.float32)
        else:
            arrays, found = _read_npz(path, inputs)
            if found is None:
                require_one(inputs, f"{path}: an array x", "give arrays x.NAME of these features")
            elif inputs is None:
                raise ValueError(f"{path} has the features {found}, and the run has one array: give it as x")
            keeps = found is not None or arrays["x"].dtype == np.float64
            x = arrays["x"] if keeps else arrays["x"].astype(np.float32)
        own, y = targets_of(str(path), arrays["y"], regression=not class_names)
        if own is not None:
            number_of = {name: number for number, name in enumerate(class_names)}
            unknown = [str(name) for name in own if str(name) not in number_of]
            if unknown:
                raise ValueError(
                    f"{path}: label {unknown[0]!r} is none of the run's: {', '.join(class_names)}"
                )
            y = np.array([number_of[str(name)] for name in own], dtype=np.int64)[y]
        parts.append((_shaped(path, x, sample_shape), y))
    shapes = {x.shape[1:] for x, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"{place}: the files' samples have the shapes {sorted(shapes)}; give all the same")
    x, y = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return x, y


def _is_readable(path: Path) -> bool:
    return path.suffix.lower() == ".npz" or is_table(path)


def _read_npz(path: Path, inputs: Inputs | None = None) -> tuple[dict[str, NDArray[Any]], Inputs | None]:
    """Return a file's arrays, and what its features are if they are several and so packed, by default in its order."""
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); write it again with numpy.savez, without object arrays"
        ) from error
    several = {part: _several(path, part, arrays) for part in ("x", "x_test")}
    if any(several.values()):
        inputs = inputs or Inputs.of(str(path), several["x"] or several["x_test"])
        arrays |= {
            part: inputs.packed(f"{path}: {part}", of_part) for part, of_part in several.items() if of_part
        }
        if not several["x"] or bool(several["x_test"]) != ("x_test" in arrays):
            raise ValueError(f"{path}: only one of x and x_test has several features; give both the same")
    else:
        inputs = None
    for ours, others in (("x", ("features", "x_train")), ("y", ("labels", "y_train"))):
        named = [name for name in (ours, *others) if name in arrays]
        if len(named) > 1:
            raise ValueError(f"{path} has the arrays {named[0]} and {named[1]}; give one of them")
        if named:
            arrays[ours] = arrays.pop(named[0])
    needed = {"x", "y"} | ({"x_test", "y_test"} if {"x_test", "y_test"} & arrays.keys() else set())
    missing = sorted(needed - arrays.keys())
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]} (it has {', '.join(arrays) or 'none'}); "
            "give x and y, and both or none of x_test and y_test"
        )
    for name in sorted({"x", "y", "x_test", "y_test", "groups"} & arrays.keys()):
        if arrays[name].ndim == 0:
            raise ValueError(f"{path}: array {name} is a single number; give one entry per sample")
        if name in ("y", "y_test", "groups") and arrays[name].ndim == 2 and arrays[name].shape[1] == 1:
            arrays[name] = arrays[name][:, 0]
    for name in sorted({"x", "x_test"} & arrays.keys()):
        if arrays[name].dtype.kind not in "fiub":
            raise ValueError(f"{path}: array {name} holds {arrays[name].dtype}; give numbers")
        if arrays[name].dtype.kind in "fb" and arrays[name].dtype != np.float64:
            arrays[name] = arrays[name].astype(np.float64 if arrays[name].itemsize > 8 else np.float32)
    return arrays, inputs


def _several(path: Path, part: str, arrays: dict[str, NDArray[Any]]) -> Several:
    """Take the arrays ``PART.NAME`` or ``PART.0``, ``PART.1``, ... out of a file's arrays; empty if there are none."""
    names = [name.removeprefix(f"{part}.") for name in arrays if name.startswith(f"{part}.")]
    if names and part in arrays:
        raise ValueError(f"{path} has the arrays {part} and {part}.{names[0]}; give one of them")
    found = {name: arrays.pop(f"{part}.{name}") for name in names}
    if not all(name.isdecimal() for name in names):
        return found
    wanted = [str(number) for number in range(len(names))]
    if sorted(names, key=int) != wanted:
        raise ValueError(f"{path} has the arrays {part}.{names}; number them 0 to {len(names) - 1}")
    return tuple(found[name] for name in wanted)


def _empty(path: Path) -> ValueError:
    return ValueError(f"{path} has no samples; give at least two of every class")
