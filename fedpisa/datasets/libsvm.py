"""Files in LIBSVM's sparse text format, such as the Adult census data a9a."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import Field

from fedpisa.datasets.base import Dataset, train_test_split
from fedpisa.rng import generator

_ORIGIN = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets"


def libsvm(
    *,
    seed: int,
    data_dir: Path,
    train_file: str,
    test_file: str | None = None,
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    regression: bool = False,
) -> Dataset:
    """Read LIBSVM files: one sample per line, as ``label index:value ...``, indices from 0 or from 1.

    Features are not scaled (the LIBSVM page offers scaled files) and are stored densely as float32. The labels of the
    training file become 0, 1, ... in increasing order.

    Parameters
    ----------
    train_file, test_file
        File names in ``data-dir``, or absolute paths.
    test_fraction
        Share of the training file that becomes the test set if there is no test file; the split is stratified and
        drawn from the seed.
    regression
        Whether the labels are regression targets.

    Raises
    ------
    ValueError
        If a file is missing or malformed, or its labels do not fit.
    """
    paths = [_existing(data_dir / name) for name in (train_file, test_file) if name is not None]
    parts = _read(paths, n_features=None)
    x, y = parts[0]
    if test_file is None:
        targets = y if regression else y.astype(np.int64)
        train, test = train_test_split(targets, test_fraction, generator(seed, "libsvm-split"))
        parts = [(x[train], y[train]), (x[test], y[test])]
    return _dataset("libsvm", parts, regression=regression, source=paths[-1])


def a9a(*, data_dir: Path) -> Dataset:
    """UCI Adult as LIBSVM's a9a: 123 binary features, income above 50,000 or not; 32,561 + 16,281 samples.

    Features are 0 or 1. Labels -1 and +1 become 0 and 1 (24 % are 1).

    Raises
    ------
    ValueError
        If a file is missing, malformed or incomplete.

    References
    ----------
    B. Becker and R. Kohavi, Adult, UCI Machine Learning Repository, 1996 (CC BY 4.0).
    """
    expected = {"a9a": 32_561, "a9a.t": 16_281}
    paths = [_existing(data_dir / name) for name in expected]
    parts = _read(paths, n_features=123)  # feature 123 does not occur in the test file
    for path, (_, y) in zip(paths, parts, strict=True):
        if len(y) != expected[path.name]:
            raise ValueError(
                f"{path} has {len(y)} samples instead of {expected[path.name]}; "
                f"download it again from {_ORIGIN}"
            )
    return _dataset("a9a", parts, regression=False, source=paths[-1])


_Part = tuple[NDArray[np.float32], NDArray[np.float64]]


def _existing(path: Path) -> Path:
    if not os.path.isfile(path):
        raise ValueError(
            f"{path} does not exist; put the file there (LIBSVM's are at {_ORIGIN}) "
            "or set data-dir to the folder that has it"
        )
    return path


def _read(paths: list[Path], n_features: int | None) -> list[_Part]:
    """Return dense features of equal width and unchanged labels of each file."""
    from sklearn.datasets import load_svmlight_files

    try:
        columns = load_svmlight_files([str(path) for path in paths], n_features=n_features, dtype=np.float32)
    except (ValueError, OverflowError, EOFError) as error:
        names = " or ".join(map(str, paths))
        raise ValueError(
            f"{names} is not a complete LIBSVM file ({str(error)[:200]}); download it again or check its format"
        ) from error
    rows, width = sum(x.shape[0] for x in columns[::2]), columns[0].shape[1]
    if (needed := 4 * rows * width) > (free := psutil.virtual_memory().available) / 2:
        raise ValueError(
            f"{paths[0]}: {rows:,} samples of {width:,} features (the largest index) take {needed / 1e9:,.0f} GB as "
            f"float32, and {free / 1e9:,.0f} GB of memory are free: number the features from 1 without gaps"
        )
    return [
        (x.toarray(), np.asarray(y, np.float64)) for x, y in zip(columns[::2], columns[1::2], strict=True)
    ]


def _dataset(name: str, parts: list[_Part], *, regression: bool, source: Path) -> Dataset:
    train, test = parts
    if regression:
        return Dataset.of(name, train, test, num_classes=None, default_model="linear")
    classes = np.unique(train[1])
    if not np.array_equal(classes, np.round(classes)):
        raise ValueError(f"{source} has labels that are not whole numbers; set regression = true")
    unknown = np.setdiff1d(test[1], classes)
    if unknown.size:
        raise ValueError(
            f"{source} has label {unknown[0]:g}, which no training sample has; "
            "remove those samples or give a matching test file"
        )
    numbered = [(x, np.searchsorted(classes, y)) for x, y in parts]
    return Dataset.of(name, *numbered, num_classes=len(classes))
