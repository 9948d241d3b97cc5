"""Pictures of the labels that each client of a partition holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.heterogeneity import heterogeneity
from fedpisa.plots.style import picture_path, style, write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_partition(
    labels: NDArray[Any],
    partition: Sequence[NDArray[np.int64]],
    num_classes: int | None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the number of samples of each label that every client holds, and the clients' sizes.

    Parameters
    ----------
    labels
        Labels of the training set, ``(n,)``; targets of a regression are shown by their deciles.
    partition
        Sample indices of each client.
    num_classes
        Number of classes; ``None`` for a regression.
    path
        File of the picture, ``.png``, ``.pdf``, ``.svg`` or ``.pgf``; not written by default.

    Raises
    ------
    ValueError
        If the file's suffix is unknown.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    file = picture_path(path)
    if num_classes is None:
        labels = np.searchsorted(np.quantile(labels, np.linspace(0, 1, 11)[1:-1]), labels)
    statistics = heterogeneity(labels, partition, 10 if num_classes is None else num_classes)
    sizes, counts = statistics.sizes, statistics.label_counts
    assert counts is not None
    num_clients, num_rows = counts.shape
    with style():
        width = float(np.clip(0.45 * num_clients + 1.8, 4.2, 7.4))
        height = float(np.clip(0.22 * num_rows + 1.9, 2.8, 4.6))
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=0.02))
        above, grid = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])

        above.bar(
            range(num_clients), sizes, width=0.85 if num_clients <= 60 else 1.0, color="#8a8a8a", linewidth=0
        )
        above.set_ylabel("samples")
        above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        above.grid(visible=False, axis="x")
        above.tick_params(bottom=False, labelbottom=False)

        blues = LinearSegmentedColormap.from_list("share", ["#e3eef8", "#9ecae1", "#0072B2", "#00304d"])
        shares = counts / sizes[:, None]
        held = np.ma.masked_equal(shares.T, 0)  # zero stays white, so that a single sample is visible
        picture = grid.imshow(
            held, aspect="auto", origin="lower", cmap=blues, vmin=0, interpolation="nearest"
        )
        grid.grid(visible=False)
        grid.set_xlabel("client")
        grid.set_ylabel("label" if num_classes is not None else "decile of the target")
        for axis, size in ((grid.xaxis, num_clients), (grid.yaxis, num_rows)):
            if size <= 20:
                axis.set_ticks(range(size))
            else:
                axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        if num_clients <= 20 and num_rows <= 20:
            for client, label in np.argwhere(counts):
                colour = "white" if shares[client, label] > 0.45 * shares.max() else "#222222"
                text = str(counts[client, label])
                grid.text(client, label, text, ha="center", va="center", fontsize=7, color=colour)
        bar = figure.colorbar(
            picture, ax=grid, fraction=0.06, pad=0.015, format=PercentFormatter(1, decimals=0)
        )
        bar.set_label("of the client's samples")
        bar.outline.set_visible(False)
        write_picture(figure, file)
    return figure
