"""Plots: their content, and equal bytes for equal data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedpisa.plots import abscissa, plot_curves, plot_partition

RNG = np.random.default_rng(0)


def frame(rounds: int = 20) -> pd.DataFrame:
    number = np.arange(rounds + 1)
    spent = np.where(number > 0, 1.0, np.nan)
    return pd.DataFrame(
        {
            "round": number,
            "train_loss": 2 * 0.9**number * spent,
            "test_loss": 2.2 * 0.9**number,
            "test_accuracy": np.where(number % 5 == 0, 1 - 0.9 * 0.9**number, np.nan),
            "bytes_up": 1e6 * spent,
            "bytes_down": 2e6 * spent,
            "local_steps": 50 * spent,
            "seconds": 0.5 * spent,
        }
    )


@pytest.mark.parametrize(
    ("x", "per_round"),
    [("rounds", 1), ("bytes", 3), ("gradients", 50), ("seconds", 0.5), ("round", 1), ("local-steps", 50)],
)
def test_abscissa_sums_what_rounds_spent(x: str, per_round: float) -> None:
    np.testing.assert_allclose(abscissa(frame(), x), per_round * np.arange(21))


def test_curves_hold_the_measured_rounds_only() -> None:
    figure = plot_curves({"_a": frame(), "b": frame()}, y="test_accuracy", target=("test_accuracy", 0.9))
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 5, 10, 15, 20])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_a", "b"]
    assert ax.texts[0].get_text() == "target 90%"


def test_panels_scales_and_labels() -> None:
    figure = plot_curves({"a": frame()}, x="bytes")
    accuracy, loss = figure.axes
    assert (accuracy.get_ylabel(), accuracy.get_yscale()) == ("test accuracy", "linear")
    assert (loss.get_ylabel(), loss.get_yscale()) == ("train loss", "log")
    assert accuracy.get_xlabel() == "megabytes up and down"


def test_a_loss_that_touches_zero_stays_linear() -> None:
    figure = plot_curves({"a": frame().assign(train_loss=0.0)}, y="train_loss")
    assert figure.axes[0].get_yscale() == "linear"


def test_regression_shows_test_loss() -> None:
    figure = plot_curves({"a": frame().drop(columns="test_accuracy")})
    assert [ax.get_ylabel() for ax in figure.axes] == ["test loss", "train loss"]


def test_curves_differ_without_colour() -> None:
    figure = plot_curves({str(i): frame() for i in range(20)}, y="train_loss")
    looks = {
        (line.get_marker(), line.get_linestyle(), line._unscaled_dash_pattern)
        for line in figure.axes[0].lines
    }
    assert len(looks) == 20


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_same_data_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        plot_curves({"a": frame(), "b": frame()}, path=tmp_path / f"{name}{suffix}")
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one) > 1000


def test_bad_requests_are_explained() -> None:
    with pytest.raises(ValueError, match=r"must end in \.png, \.pdf, \.svg, \.pgf, not 'a\.bmp'"):
        plot_curves({"a": frame()}, path="a.bmp")
    with pytest.raises(ValueError, match=r"no column 'accuracy'.*choose from train_loss"):
        plot_curves({"a": frame()}, y="accuracy")
    with pytest.raises(ValueError, match="choose from rounds, bytes, gradients, seconds"):
        plot_curves({"a": frame()}, x="epoch")
    with pytest.raises(ValueError, match="no column 'seconds'"):
        plot_curves({"a": frame().drop(columns="seconds")}, x="seconds")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_curves({})


def test_partition_shows_every_count(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    figure = plot_partition(labels, [np.array([0, 1, 3]), np.array([2, 4, 5])], 3, tmp_path / "split.png")
    bars, grid = figure.axes[:2]
    assert [bar.get_height() for bar in bars.patches] == [3, 3]
    assert [text.get_text() for text in grid.texts] == ["2", "1", "1", "1", "1"]
    assert (tmp_path / "split.png").stat().st_size > 1000


@pytest.mark.parametrize(("num_clients", "num_classes"), [(1000, 10), (30, 100), (3, None)])
def test_partitions_of_any_size(num_clients: int, num_classes: int | None) -> None:
    labels = RNG.normal(size=5000) if num_classes is None else RNG.integers(0, num_classes, 5000)
    parts = np.array_split(np.arange(5000), num_clients)
    figure = plot_partition(labels, parts, num_classes)
    assert figure.axes[1].images[0].get_array().shape == (num_classes or 10, num_clients)


def test_no_global_figures() -> None:
    plot_curves({"a": frame()})
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
