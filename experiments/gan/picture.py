"""Show images that the generators of a study make, beside test images.

python picture.py STUDY OUT.png

A row is a split, and a column a variant with its first seed. All variants of a seed have the same latent vectors.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import fedpisa
from fedpisa.plots.images import image_grid
from fedpisa.simulation.parts import load_dataset

ACROSS, GRID = 6, 8
"""Images that are shown in a row, and images in a row of ``samples.png``."""
SPLITS = {"iid": "mixed", "labels-per-client": "two digits a client"}


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


def main(study: str, out: str) -> None:
    """Draw the picture."""
    found: dict[str, dict[str, Any]] = {}
    for run in fedpisa.load_study(study):
        found.setdefault(str(run.point["partitioner"]), {}).setdefault(run.variant, run.result)
    across = 1 + max(map(len, found.values()))
    fig, axes = plt.subplots(len(found), across, figsize=(2.4 * across, 2.65 * len(found)), squeeze=False)
    for row, (split, results) in zip(axes, found.items(), strict=True):
        for ax, (variant, result) in zip(row, results.items(), strict=False):
            value = result.last("test_fid_own")
            title = f"{variant}, {SPLITS.get(split, split)}: {value:.0f}"
            show(ax, (result.directory / "samples.png").read_bytes(), title)
        show(row[-1], real(next(iter(results.values())).config), "test images")
    fig.tight_layout(pad=0.3)
    fig.savefig(Path(out), dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main(*sys.argv[1:])
