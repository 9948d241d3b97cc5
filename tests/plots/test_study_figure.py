"""The figure of a study: its numbers, its notes, and that nothing leaves the picture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedpisa.plots import plot_curves, plot_study
from fedpisa.plots.intervals import mean_interval
from fedpisa.plots.style import LATEX


def study(
    variants: list[str],
    alphas: list[float],
    seeds: int,
    status: Mapping[tuple[str, float, int], str] = {},
    rounds: Mapping[int, int] = {},
) -> pd.DataFrame:
    rng, parts = np.random.default_rng(0), []
    for variant in variants:
        for alpha in alphas:
            for seed in range(seeds):
                number = np.arange(rounds.get(seed, 20) + 1)
                spent = np.where(number > 0, 1.0, np.nan)
                columns = {
                    "variant": variant,
                    "dirichlet-alpha": alpha,
                    "seed": seed,
                    "status": status.get((variant, alpha, seed), "finished"),
                    "round": number,
                    "test_accuracy": 1 - np.exp(-number / 5) * rng.uniform(0.7, 0.9),
                    "test_loss": np.exp(-number / 3) * rng.uniform(0.5, 2),
                    "bytes_up": 1e6 * spent * (1 + seed),
                    "bytes_down": 1e6 * spent * (1 + seed),
                    "local_steps": 50 * spent,
                    "seconds": 0.5 * spent,
                }
                parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def words(figure: Figure) -> list[str]:
    found = (text for text in figure.findobj(Text) if isinstance(text, Text))
    return [text.get_text().replace("\u00a0", " ").replace("\n", " ") for text in found]


@pytest.mark.parametrize("band", ["deviation", "interval"])
def test_lines_are_means_and_bands_are_what_they_say(band: Any) -> None:
    frame = study(["a"], [0.1], 4)
    (ax,) = plot_study(frame, ["dirichlet-alpha"], x="bytes", band=band).axes
    table = frame.pivot_table(index="round", columns="seed", values="test_accuracy").to_numpy()
    mean, sd = table.mean(axis=1), table.std(axis=1, ddof=1)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mean)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), np.arange(21) * 2 * np.mean([1, 2, 3, 4]))
    low, high = mean_interval(mean, sd, 4, share=True) if band == "interval" else (mean - sd, mean + sd)
    ends = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((low.min(), min(1.0, high.max())))


def test_panels_are_splits_and_lines_are_variants() -> None:
    frame = study(["sisa", "fedavg"], [0.1, 1.0, 10.0, 100.0], 2)
    figure = plot_study(frame, ["dirichlet-alpha"], labels={"sisa": "SISA"}, target=("test_accuracy", 0.9))
    assert [len(ax.lines) for ax in figure.axes] == [3] * 4
    titles = [ax.get_title(loc="left").replace("\u00a0", " ") for ax in figure.axes]
    assert titles == [f"dirichlet-alpha = {alpha}" for alpha in ("0.1", "1", "10", "100")]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SISA", "fedavg"]


def test_other_swept_keys_make_lines() -> None:
    frame = pd.concat(
        study(["a"], [0.1], 2).assign(**{"local-steps": steps, "model": "mlp"}) for steps in (1, 5)
    )
    figure = plot_study(frame, ["dirichlet-alpha"], ["variant", "local-steps", "model"])
    names = [text.get_text().replace("\u00a0", " ") for text in figure.legends[0].get_texts()]
    assert names == ["a (local-steps = 1)", "a (local-steps = 5)"]


def test_several_columns_are_rows() -> None:
    frame = study(["a"], [0.1, 1.0], 2)
    figure = plot_study(frame, ["dirichlet-alpha"], y=["test_accuracy", "test_loss"])
    assert [ax.get_ylabel() for ax in figure.axes] == ["test accuracy", "", "test loss", ""]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "server round", "server round"]
    assert [ax.get_yscale() for ax in figure.axes] == ["linear"] * 2 + ["log"] * 2


def test_every_column_is_drawn_against_every_axis() -> None:
    frame = study(["a", "b"], [0.1], 2)
    frame.loc[frame["variant"] == "a", "local_steps"] /= 10
    figure = plot_study(frame, x=["rounds", "gradients"], y=["test_accuracy", "test_loss"])
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log", "linear", "log"]
    left, right = figure.axes[0].lines[0], figure.axes[1].lines[0]
    # Round 0 is at 0, which a logarithmic axis lacks.
    np.testing.assert_allclose(right.get_ydata(), left.get_ydata()[1:])
    np.testing.assert_allclose(right.get_xdata(), 5.0 * np.arange(1, 21))
    assert [ax.get_xlabel() for ax in figure.axes[:2]] == ["", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["test accuracy", "", "test loss", ""]


def test_runs_that_did_not_finish_are_said_and_not_averaged() -> None:
    status = {("a", 0.1, 1): "diverged", **{("b", 0.1, seed): "failed" for seed in range(3)}}
    figure = plot_study(study(["a", "b"], [0.1, 1.0], 3, status), ["dirichlet-alpha"])
    (note,) = (text for text in words(figure) if "diverged" in text)
    assert note == (
        "a, dirichlet-alpha = 0.1: 1 diverged of 3 runs, not in the mean. "
        "b, dirichlet-alpha = 0.1: 3 failed of 3 runs, dotted because none finished"
    )
    frame = study(["a"], [0.1], 3)
    kept = frame[(frame["seed"] != 1) & (frame["round"] == 20)]["test_accuracy"].mean()
    alone = plot_study(study(["a"], [0.1], 3, status))
    assert np.asarray(alone.axes[0].lines[0].get_ydata())[-1] == pytest.approx(kept)
    assert figure.axes[0].lines[1].get_linestyle() == ":"


def test_the_mean_is_over_the_same_seeds_at_every_round() -> None:
    figure = plot_study(study(["a"], [0.1], 3, rounds={1: 12}))
    assert len(np.asarray(figure.axes[0].lines[0].get_xdata())) == 13
    assert "a: ends at round 12 with the shortest run" in words(figure)


def test_a_single_seed_has_no_band_and_a_column_may_be_measured_rarely() -> None:
    frame = study(["a"], [0.1], 1)
    frame.loc[frame["round"] % 5 > 0, "test_accuracy"] = np.nan
    (ax,) = plot_study(frame).axes
    assert len(ax.collections) == 0
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 5, 10, 15, 20])


@pytest.mark.parametrize("width", [None, 3.25, 7.0])
@pytest.mark.parametrize(("font_size", "x"), [(6.0, "gradients"), (9.0, "gradients"), (8.0, "bytes")])
@pytest.mark.parametrize(
    ("variants", "panels"),
    [(["a", "b"], 1), ([f"variant-{i}" for i in range(8)], 6), (["long name " * 8, "b"], 2)],
)
def test_nothing_leaves_the_picture(
    variants: list[str], panels: int, font_size: float, x: str, width: float | None
) -> None:
    status = {(variants[0], 0.25, 0): "diverged"}
    frame = study(variants, [0.25 * 2**n for n in range(panels)], 2, status)
    figure = plot_study(frame, ["dirichlet-alpha"], x=x, width=width, font_size=font_size)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, whole = canvas.get_renderer(), figure.bbox
    if width is not None:
        assert figure.get_figwidth() == width
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    axes = [ax for ax in figure.axes if ax.get_visible()]
    boxes += [box for ax in axes if (box := ax.get_tightbbox(renderer)) is not None]
    slack = figure.dpi / 72  # a point
    for box in boxes:
        assert box.x0 >= whole.x0 - slack
        assert box.x1 <= whole.x1 + slack
        assert box.y0 >= whole.y0 - slack
        assert box.y1 <= whole.y1 + slack
    bottom = min(box.y0 for ax in axes if (box := ax.get_tightbbox(renderer)) is not None)
    assert figure.legends[0].get_window_extent(renderer).y1 <= bottom + slack
    assert all(ax.get_window_extent(renderer).height > 0.3 * figure.dpi for ax in axes)


def test_lines_differ_in_grey() -> None:
    figure = plot_study(study([str(i) for i in range(20)], [0.1], 1))
    looks = {(line.get_marker(), line._unscaled_dash_pattern) for line in figure.axes[0].lines}
    assert len(looks) == 20


def test_a_notebook_shows_it_once_and_pyplot_never() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    for figure in (plot_study(study(["a"], [0.1], 2)), plot_curves({"a": study(["a"], [0.1], 1)})):
        shown, _ = formatters.DisplayFormatter().format(figure)
        assert set(shown) == {"text/plain", "image/png"}
        assert shown["image/png"].startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_same_data_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        plot_study(study(["a"], [0.1, 1.0], 2), ["dirichlet-alpha"], path=tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_pgf_needs_latex_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.pgf needs LaTeX.*: install one, or write a\.pdf"):
        plot_study(study(["a"], [0.1], 2), path=tmp_path / "a.pgf")


def test_pgf_with_any_name_is_latex(tmp_path: Path) -> None:
    program = next((name for name in LATEX if shutil.which(name)), None)
    if program is None:
        pytest.skip("no LaTeX is installed")
    name = r"a_b & 5% #1 {x} ~ \y ^2"
    figure = plot_study(
        study([name, r"$\sigma_1$"], [0.1, 1.0], 2), ["dirichlet-alpha"], path=tmp_path / "a.pgf"
    )
    assert name in words(figure)  # what was escaped for LaTeX is as before
    head = r"\documentclass{article}\usepackage{pgf}\def\mathdefault#1{#1}\begin{document}"
    (tmp_path / "t.tex").write_text(head + r"\input{a.pgf}\end{document}")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_bad_requests_are_explained() -> None:
    frame = study(["a"], [0.1], 2)
    with pytest.raises(ValueError, match=r"no column 'accuracy'.*choose from test_accuracy, test_loss"):
        plot_study(frame, ["dirichlet-alpha"], y="accuracy")
    with pytest.raises(ValueError, match="no variant 'b' to label: choose from a"):
        plot_study(frame, labels={"b": "B"})
    with pytest.raises(ValueError, match="choose from rounds, bytes, gradients, seconds"):
        plot_study(frame, x="epochs")
    with pytest.raises(ValueError, match="choose deviation or interval"):
        plot_study(frame, band="wide")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no run that has started"):
        plot_study(frame[:0])
    with pytest.raises(ValueError, match="cannot be read: give a size such as 8"):
        plot_study(frame, font_size=0)
