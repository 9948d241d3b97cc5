"""Measures that are no mean over samples, by scikit-learn.

Shapes: ``n`` samples, ``C`` classes, ``L`` labels of a sample.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedpisa.tasks.measures import Measure

Array = NDArray[Any]

ClassMetric = Literal["f1-macro", "f1-micro", "balanced-accuracy", "top-5", "auroc"]
LabelMetric = Literal["f1-macro", "f1-micro", "exact-match", "auroc"]
NumberMetric = Literal["mae", "rmse", "r2"]

MEASURES: Final[Mapping[str, Measure]] = {
    "f1-macro": Measure("f1_macro", "macro F1", True),
    "f1-micro": Measure("f1_micro", "micro F1", True),
    "balanced-accuracy": Measure("balanced_accuracy", "balanced accuracy", True, "percent"),
    "top-5": Measure("top5_accuracy", "top-5 accuracy", True, "percent"),
    "exact-match": Measure("exact_match_accuracy", "exact-match accuracy", True, "percent"),
    "auroc": Measure("auroc", "AUROC", True),
    "mae": Measure("mae", "mean absolute error", False),
    "rmse": Measure("rmse", "root mean squared error", False),
    "r2": Measure("r2", "R²", True),
}
"""The measures that the key ``metrics`` names."""


def require_distinct(metrics: Sequence[str]) -> None:
    """Raise a ValueError if a metric is named twice."""
    if len(set(metrics)) < len(metrics):
        raise ValueError(f"metrics = {list(metrics)}: name each metric once")


def of_classes(metric: ClassMetric, probs_nC: Array, y_n: Array) -> float:
    """Return a measure of the classes' probabilities ``(n, C)``; NaN if the labels do not define it.

    Macro F1 is the mean over the classes that occur among labels or predictions. AUROC is that of class 1 for two
    classes; for more it is the mean over the classes, each against the others, which must all occur among the labels.

    Examples
    --------
    >>> probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    >>> of_classes("auroc", probs, np.array([0, 1, 1, 1])), of_classes("auroc", probs, np.zeros(4, int))
    (1.0, nan)
    """
    from sklearn import metrics

    found_n, classes = probs_nC.argmax(1), np.arange(probs_nC.shape[1])
    with _quiet():
        if metric == "f1-macro":
            return float(metrics.f1_score(y_n, found_n, average="macro", zero_division=0))
        if metric == "f1-micro":
            return float(metrics.f1_score(y_n, found_n, average="micro"))
        if metric == "balanced-accuracy":
            return float(metrics.balanced_accuracy_score(y_n, found_n))
        if metric == "top-5":
            k = min(5, len(classes))
            if k == len(classes):
                return 1.0
            return float(metrics.top_k_accuracy_score(y_n, probs_nC, k=k, labels=classes))
        if len(np.unique(y_n)) < len(classes):
            return math.nan
        if len(classes) == 2:
            return float(metrics.roc_auc_score(y_n, probs_nC[:, 1]))
        return float(metrics.roc_auc_score(y_n, probs_nC, multi_class="ovr", labels=classes))


def of_labels(metric: LabelMetric, probs_nL: Array, y_nL: Array) -> float:
    """Return a measure of labels' probabilities ``(n, L)``; NaN if the labels do not define it.

    A label is predicted if its probability is above 1/2. AUROC is the mean over the labels, each of which must have
    samples with it and without it.

    Examples
    --------
    >>> of_labels("exact-match", np.array([[0.9, 0.2], [0.6, 0.4]]), np.array([[1, 0], [1, 1]]))
    0.5
    """
    from sklearn import metrics

    found_nL, y_nL = probs_nL > 0.5, y_nL > 0.5
    with _quiet():
        if metric in ("f1-macro", "f1-micro"):
            average = metric.removeprefix("f1-")
            return float(metrics.f1_score(y_nL, found_nL, average=average, zero_division=0))
        if metric == "exact-match":
            return float((found_nL == y_nL).all(1).mean())
        if not (y_nL.any(0) & ~y_nL.all(0)).all():
            return math.nan
        return float(np.mean([metrics.roc_auc_score(y, p) for y, p in zip(y_nL.T, probs_nL.T, strict=True)]))


def of_numbers(metric: NumberMetric, outputs_n: Array, y_n: Array) -> float:
    """Return a measure of numbers ``(n,)``; R² of equal targets is NaN.

    Examples
    --------
    >>> of_numbers("mae", np.array([1.0, 2.0]), np.array([2.0, 4.0])), of_numbers("r2", np.zeros(2), np.ones(2))
    (1.5, nan)
    """
    from sklearn import metrics

    if metric == "mae":
        return float(metrics.mean_absolute_error(y_n, outputs_n))
    if metric == "rmse":
        return float(metrics.root_mean_squared_error(y_n, outputs_n))
    return float(metrics.r2_score(y_n, outputs_n)) if np.ptp(y_n) > 0 else math.nan


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide scikit-learn's warnings about classes that do not occur: the docstrings above say what they give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
