"""Losses and measures against closed forms, PyTorch and independent formulas."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedpisa import families
from fedpisa.families import tasks
from fedpisa.tasks.classification import Classification
from fedpisa.tasks.measures import (
    ACCURACY,
    CLASSIFICATION,
    LOSS,
    Measure,
    as_records,
    from_records,
    measure_of,
)
from fedpisa.tasks.multi_label import MultiLabel
from fedpisa.tasks.regression import Regression
from fedpisa.tasks.scores import of_classes, of_labels, of_numbers
from fedpisa.tasks.supervised import Supervised, supervised

SEEDS = st.integers(0, 10_000)


def sample(seed: int, n: int = 9, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(classes, (n,), generator=generator)


@settings(deadline=None)
@given(SEEDS, st.floats(0, 0.9), st.floats(0, 4), st.booleans())
def test_cross_entropy_by_its_formula(seed: int, smoothing: float, gamma: float, weighted: bool) -> None:
    outputs, y = sample(seed)
    weights = (0.5, 2.0, 0.0, 1.5) if weighted else None
    criterion = Classification(4, weights, smoothing, gamma)
    p, w = outputs.softmax(1), np.array(weights or (1, 1, 1, 1))
    wanted = [
        (1 - float(p[i, c])) ** gamma
        * sum(
            w[k] * -math.log(float(p[i, k])) * ((1 - smoothing) * (k == c) + smoothing / 4) for k in range(4)
        )
        for i, c in enumerate(y.tolist())
    ]
    np.testing.assert_allclose(criterion.loss(outputs, y).numpy(), wanted, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(SEEDS, st.floats(0, 0.9), st.sampled_from([0.0, 1.0, 2.5]))
def test_one_logit_is_two_classes(seed: int, smoothing: float, gamma: float) -> None:
    outputs, y = sample(seed, classes=2)
    two = Classification(2, (0.5, 3.0), smoothing, gamma)
    logit = outputs[:, 1:] - outputs[:, :1]
    torch.testing.assert_close(two.loss(logit, y), two.loss(outputs, y))
    assert torch.equal(two.sample_scores(logit, y)["accuracy"], two.sample_scores(outputs, y)["accuracy"])


def test_a_focal_loss_has_a_gradient_where_a_sample_is_certain() -> None:
    outputs = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    Classification(2, focal_gamma=0.5).loss(outputs, torch.tensor([0, 0])).sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[1].abs().min() > 0.5


@pytest.mark.parametrize("criterion", [Classification(4), Classification(2), Regression()])
def test_the_closed_form_is_the_loss(criterion: Any) -> None:
    from fedpisa.tasks.losses import losses_and_gradients

    for width in (4, 1) if criterion == Classification(2) else (1,) if criterion == Regression() else (4,):
        outputs, y = sample(3, classes=max(width, 2))
        outputs = outputs[:, :width].clone().requires_grad_()
        targets = y.double() if criterion == Regression() else y
        losses_B = criterion.loss(outputs, targets)
        losses_B.sum().backward()
        closed = criterion.closed_form(width)
        found_SB, grads_SFB = losses_and_gradients(closed, outputs.detach().mT[None], targets[None])
        torch.testing.assert_close(found_SB[0], losses_B.detach())
        torch.testing.assert_close(grads_SFB[0].mT, outputs.grad)


@pytest.mark.parametrize(
    "changed",
    [
        Classification(2, (1.0, 2.0)),
        Classification(2, None, 0.1),
        Classification(2, None, 0.0, 1.0),
        MultiLabel(),
    ],
)
def test_another_loss_has_no_closed_form(changed: Any) -> None:
    assert [changed.closed_form(width) for width in (1, 2)] == [None, None]


def test_balanced_weights_count_all_classes_the_same() -> None:
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    made = tasks.criterion(families.find("task", "classification"), {"class-weights": "balanced"}, 4, labels)
    assert isinstance(made, Classification)
    assert made.weights is not None
    total = np.bincount(labels, weights=np.array(made.weights)[labels])
    np.testing.assert_allclose(total, [10 / 3, 10 / 3, 0, 10 / 3])
    assert made.weights[2] == 1  # no sample has this class


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 3), np.int64), r"the data have targets of shape \(3,\): take multi-label"),
        (np.zeros(5), "the data have numbers: take regression"),
    ],
)
def test_balanced_weights_of_what_is_no_class_are_refused(labels: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.criterion(families.find("task", "classification"), {"class-weights": "balanced"}, 4, labels)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("classification", {"class-weights": [1.0, 2.0]}, "one weight for each of the 4 classes"),
        ("classification", {"class-weights": [0.0] * 4}, "not all 0"),
        ("classification", {"class-weights": "balanced"}, "only the nodes have"),
        ("classification", {"metrics": ["f1-macro", "f1-macro"]}, "name each metric once"),
        ("classification", {"metrics": ["f2"]}, "must be 'f1-macro'"),
        ("classification", {"label-smoothing": 1.0}, "label-smoothing"),
        ("regression", {"metrics": ["auroc"]}, "must be 'mae'"),
        ("regression", {"class-weights": "balanced"}, "class-weights"),
    ],
)
def test_what_cannot_be_is_refused(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.criterion(families.find("task", name), keys, 4, None)


@settings(deadline=None)
@given(SEEDS)
def test_binary_cross_entropy_of_labels(seed: int) -> None:
    outputs, _ = sample(seed)
    y = (outputs.flip(0) > 0).double()
    p = outputs.sigmoid()
    wanted = -(y * p.log() + (1 - y) * (1 - p).log()).mean(1)
    torch.testing.assert_close(MultiLabel().loss(outputs, y), wanted)


# --------------------------------------------------------------------------------------------- measures


def auroc(scores_n: NDArray[Any], positive_n: NDArray[Any]) -> float:
    """Return the share of pairs of a positive and a negative sample that are in order; ties count half."""
    pairs = list(itertools.product(scores_n[positive_n], scores_n[~positive_n]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def f1(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    both = (found & wanted).sum()
    return 2 * both / (found.sum() + wanted.sum()) if found.any() or wanted.any() else 0.0


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 7))
def test_measures_of_classes_by_counting(seed: int, classes: int) -> None:
    outputs, labels = sample(seed, 12, classes)
    probs, y = outputs.softmax(1).numpy(), labels.numpy()
    found = probs.argmax(1)
    seen = sorted({*found.tolist(), *y.tolist()})
    assert of_classes("f1-macro", probs, y) == pytest.approx(np.mean([f1(found == c, y == c) for c in seen]))
    assert of_classes("f1-micro", probs, y) == pytest.approx((found == y).mean())
    recalls = [(found[y == c] == c).mean() for c in np.unique(y)]
    assert of_classes("balanced-accuracy", probs, y) == pytest.approx(np.mean(recalls))
    best = np.argsort(-probs, 1)[:, :5]
    assert of_classes("top-5", probs, y) == pytest.approx((best == y[:, None]).any(1).mean())
    area = of_classes("auroc", probs, y)
    if len(np.unique(y)) < classes:
        assert math.isnan(area)
    elif classes == 2:
        assert area == pytest.approx(auroc(probs[:, 1], y == 1))
    else:
        assert area == pytest.approx(np.mean([auroc(probs[:, c], y == c) for c in range(classes)]))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_measures_of_labels_by_counting(seed: int) -> None:
    outputs, _ = sample(seed, 8, 3)
    probs, y = outputs.sigmoid().numpy(), (outputs.roll(1, 0) > 0.3).numpy()
    found = probs > 0.5
    assert of_labels("exact-match", probs, y) == pytest.approx((found == y).all(1).mean())
    assert of_labels("f1-micro", probs, y) == pytest.approx(f1(found.ravel(), y.ravel()))
    assert of_labels("f1-macro", probs, y) == pytest.approx(
        np.mean([f1(found[:, k], y[:, k]) for k in range(3)])
    )
    area = of_labels("auroc", probs, y)
    if all(0 < y[:, k].sum() < 8 for k in range(3)):
        assert area == pytest.approx(np.mean([auroc(probs[:, k], y[:, k]) for k in range(3)]))
    else:
        assert math.isnan(area)


@settings(deadline=None)
@given(SEEDS)
def test_measures_of_numbers_by_formula(seed: int) -> None:
    outputs, y = (part.numpy() for part in sample(seed))
    o, t = outputs[:, 0], y + outputs[:, 1]
    assert of_numbers("mae", o, t) == pytest.approx(np.abs(o - t).mean())
    assert of_numbers("rmse", o, t) == pytest.approx(np.sqrt(((o - t) ** 2).mean()))
    assert of_numbers("r2", o, t) == pytest.approx(1 - ((o - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_evaluation_does_not_depend_on_its_batches(batch_size: int) -> None:
    x, y = sample(5, 13, 4)
    criterion = Classification(4, metrics=("f1-macro", "auroc", "top-5"))
    task = Supervised(nn.Linear(4, 4).double(), criterion)
    vectors = task.initial_params(), task.initial_buffers()
    found = task.evaluate(*vectors, x, y, batch_size)
    assert list(found) == ["loss", "accuracy", "f1_macro", "auroc", "top5_accuracy"]
    assert found == pytest.approx(task.evaluate(*vectors, x, y))
    probs = task.module(x).softmax(1).detach().numpy()
    assert found["auroc"] == pytest.approx(of_classes("auroc", probs, y.numpy()))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(task.module(x), y)))


def test_outputs_that_are_not_finite_have_no_measure() -> None:
    x, y = sample(5)
    task = Supervised(nn.Linear(4, 4).double(), Classification(4, metrics=("f1-macro",)))
    found = task.evaluate(torch.full((20,), math.nan).double(), torch.zeros(0), x, y)
    assert list(found) == ["loss", "accuracy", "f1_macro"]
    assert all(map(math.isnan, found.values()))


def test_measures_survive_run_json() -> None:
    measures = (*CLASSIFICATION, Measure("perplexity", "perplexity", False), Measure("auroc", "AUROC", True))
    assert from_records(as_records(measures)) == measures
    assert from_records(None) == CLASSIFICATION
    for damaged in ([], {}, [1], [{"column": "a"}], [{**as_records([LOSS])[0], "form": "euro"}]):
        with pytest.raises(ValueError, match="measure"):
            from_records(damaged)


@settings(deadline=None)
@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.booleans())
def test_a_target_is_reached_by_what_is_as_good(value: float, target: float, higher: bool) -> None:
    measure = Measure("a", "a", higher)
    assert measure.reaches(value, target) == (value >= target if higher else value <= target)
    assert measure.rank(measure.worst) >= measure.rank(value)


def test_columns_find_their_measure() -> None:
    own = (Measure("wrong", "wrong", False), Measure("accuracy", "accuracy", True, "percent"))
    assert measure_of("test_wrong", own) == Measure("test_wrong", "test wrong", False)
    assert measure_of("validation_accuracy", own) == ACCURACY.of("validation")
    assert measure_of("train_loss") == Measure("train_loss", "train loss", False)
    assert supervised(nn.Linear(1, 1), None).measures == (LOSS,)
