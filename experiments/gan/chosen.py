"""Print the results of the chosen values, and draw images that their generators make beside test images.

python chosen.py RESULTS OUT.png

RESULTS is the folder that run.sh wrote for the studies ``digits``, ``finer`` and ``again``. The value of a variant at a
split is that of the first two studies with the lower mean validation distance in the third. A row of the picture is a
split, and a column a variant with the first seed that finished; the variants of a seed have the same latent vectors.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

import fedpisa
from fedpisa.plots.images import image_grid
from fedpisa.simulation.parts import load_dataset

STUDIES = "digits", "finer"
ACROSS, GRID = 5, 8
"""Images that are shown in a row, and images in a row of ``samples.png``."""
SPLITS = {"iid": "mixed", "labels-per-client": "two digits a client"}


def results(folder: Path) -> Iterator[tuple[str, str, dict[str, Sequence[fedpisa.Result]]]]:
    """Yield each split and variant with its results by study, the chosen study first."""
    runs: dict[tuple[str, str], dict[str, list[fedpisa.Result]]] = {}
    tuned: dict[tuple[str, str, str], float] = {}
    for study in STUDIES:
        for row in pd.read_csv(folder / f"{study}-tuned" / "summary.csv").to_dict("records"):
            tuned[row["partitioner"], row["variant"], study] = row["validation_fid_own"]
        for run in fedpisa.load_study(folder / study):
            of_variant = runs.setdefault((str(run.point["partitioner"]), run.variant), {})
            of_variant.setdefault(study, []).append(run.result)
    again: dict[tuple[str, str, str], list[float]] = {}
    for run in fedpisa.load_study(folder / "again"):
        variant, study = run.variant.rsplit("-", 1)
        value = run.result.last("validation_fid_own") if run.result.status == "finished" else inf
        again.setdefault((str(run.point["partitioner"]), variant, study), []).append(value)
    for (split, variant), found in sorted(runs.items(), key=lambda one: one[0][0]):
        keys = {study: (split, variant, study) for study in found}
        for key in keys.values():
            print(*key, f"trials {tuned[key]:.0f}, again {mean(again[key]):.0f} of {len(again[key])}")
        order = sorted(found, key=lambda study: (mean(again[keys[study]]), tuned[keys[study]]))
        yield split, variant, {study: found[study] for study in order}


def line(split: str, variant: str, study: str, of_seeds: Sequence[fedpisa.Result]) -> str:
    """Return mean and standard deviation of the distances over the seeds that finished."""
    ended = [result for result in of_seeds if result.status == "finished"]
    text = f"{SPLITS[split]:20s} {variant:12s} {study:7s} {len(ended)} of {len(of_seeds)} finished"
    for column in ("test_fid_own", "test_kid_own"):
        values = [result.last(column) for result in ended]
        spread = f" ± {stdev(values):.0f}" if len(values) > 1 else ""
        text += f"  {column} {mean(values):.0f}{spread}" if values else f"  {column} -"
    return text


def show(ax: Axes, content: bytes, title: str) -> None:
    """Show the first images of the grid in a PNG file, a pixel for a pixel."""
    pixels = plt.imread(io.BytesIO(content))
    end = (len(pixels) + 1) // GRID * ACROSS - 1
    ax.imshow(pixels[:end, :end], interpolation="none")
    ax.set_title(title, fontsize=9)
    ax.axis("off")


def real(config: fedpisa.RunConfig) -> bytes:
    """Return a grid of test images as a PNG file."""
    x = load_dataset(config).x_test
    return image_grid(x[: GRID**2], x.min((0, 2, 3)), x.max((0, 2, 3)))


def main(folder: str, out: str) -> None:
    """Print the results and draw the picture."""
    shown: dict[str, dict[str, fedpisa.Result]] = {}
    for split, variant, by_study in results(Path(folder)):
        for place, (study, of_seeds) in enumerate(by_study.items()):
            print(line(split, variant, study, of_seeds), "" if place else "*")
        ended = [one for one in next(iter(by_study.values())) if one.status == "finished"]
        if ended:
            shown.setdefault(split, {})[variant] = ended[0]
    across = 1 + max(map(len, shown.values()))
    fig, axes = plt.subplots(len(shown), across, figsize=(2.4 * across, 2.65 * len(shown)), squeeze=False)
    for row, (split, results_of) in zip(axes, shown.items(), strict=True):
        for ax, (variant, result) in zip(row, results_of.items(), strict=False):
            assert result.directory is not None
            title = f"{variant}, {SPLITS[split]}: {result.last('test_fid_own'):.0f}"
            show(ax, (result.directory / "samples.png").read_bytes(), title)
        show(row[-1], real(next(iter(results_of.values())).config), "test images")
    fig.tight_layout(pad=0.3)
    content = io.BytesIO()
    fig.savefig(content, format="png", dpi=100)
    Image.open(content).convert("L").quantize(16).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
