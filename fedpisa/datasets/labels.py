"""What a label is: a class or a number, by one rule for files, torch data sets and nodes.

Integers, booleans and strings are classes, numbered from 0 in sorted order. Numbers with a decimal point are regression
targets. The rule asks where a file does not say which of the two is meant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def targets_of(
    name: str, labels: NDArray[Any], regression: bool | None = None
) -> tuple[NDArray[Any] | None, NDArray[Any]]:
    """Return the classes and each label's class, or ``None`` and the regression targets.

    Parameters
    ----------
    name
        Of the data, for messages.
    labels
        ``(n,)``, as they are written.
    regression
        What they are; ``None`` decides by how they are written.

    Raises
    ------
    ValueError
        If labels are missing or not of one kind, or it is in doubt what they are.

    Examples
    --------
    >>> targets_of("data", np.array(["no", "yes", "no"]))
    (array(['no', 'yes'], dtype='<U3'), array([0, 1, 0]))
    >>> targets_of("data", np.array([0.5, 1.5]))
    (None, array([0.5, 1.5]))
    """
    if labels.ndim != 1:
        raise ValueError(f"{name}: labels have shape {labels.shape}; give one label per sample")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "backslashreplace")
    if labels.dtype.kind not in "fiubU":
        raise ValueError(f"{name}: labels are {labels.dtype}; give integers, strings or decimal numbers")
    decimal = labels.dtype.kind == "f"
    whole = decimal and bool(np.isfinite(labels).all()) and bool((labels == np.round(labels)).all())
    if regression is None and whole:
        raise ValueError(
            f"{name}: the labels are whole numbers with a decimal point, such as {labels[0]}: set regression = true to "
            "predict numbers, or regression = false for classes"
        )
    if regression is None and labels.dtype.kind in "iu" and len(labels) >= 20:
        distinct = len(np.unique(labels))
        if distinct > len(labels) / 2:
            raise ValueError(
                f"{name}: {distinct} of {len(labels)} integer labels differ: set regression = true to predict numbers, "
                "or regression = false for classes"
            )
    if regression or (decimal and regression is None):
        try:
            targets = labels.astype(np.float64)
        except ValueError:
            raise ValueError(f"{name}: the labels are not numbers, which a regression needs") from None
        if not np.isfinite(targets).all():
            sample = int(np.argmin(np.isfinite(targets)))
            raise ValueError(f"{name}: sample {sample} has a NaN or infinite target; remove the sample")
        return None, targets
    if decimal:
        if not whole:
            raise ValueError(
                f"{name}: label {labels[~np.isfinite(labels) | (labels != np.round(labels))][0]} is no class: "
                "regression = true"
            )
        if float(np.abs(labels).max(initial=0)) >= 2**53:
            raise ValueError(
                f"{name}: label {labels[np.abs(labels).argmax()]} has lost its last digits: write the classes as "
                "integers or strings"
            )
        labels = labels.astype(np.int64)
    classes, y = np.unique(labels, return_inverse=True)
    return classes, y.astype(np.int64)


def known_targets(
    name: str, classes: NDArray[Any] | None, labels: NDArray[Any], regression: bool | None = None
) -> NDArray[Any]:
    """Return the targets of a test set whose classes must be those of the training set.

    Raises
    ------
    ValueError
        If the test labels are of another kind, or a class is in no training sample.

    Examples
    --------
    >>> known_targets("data", np.array([1, 3]), np.array([3, 3, 1])).tolist()
    [1, 1, 0]
    """
    own, targets = targets_of(name, labels, regression if regression is not None else classes is None)
    if classes is None or own is None:
        if classes is not None or own is not None:
            raise ValueError(f"{name}: y and y_test are of different kinds; give both the same type")
        return targets
    unknown = np.setdiff1d(own, classes)
    if unknown.size:
        raise ValueError(f"{name}: test label {unknown[0]} is in no training sample; remove those samples")
    renumbered: NDArray[np.int64] = np.searchsorted(classes, own)[targets]
    return renumbered
