"""Pictures of convergence curves, of studies and of the labels in a partition.

The same data give the same bytes.
"""

from fedpisa.plots.curves import Abscissa, abscissa, draw_curve, label_axes, plot_curves
from fedpisa.plots.splits import plot_partition
from fedpisa.plots.study import Band, plot_study
from fedpisa.plots.style import COLOURS, MARKERS, REFERENCE, picture_path, style, write_picture

__all__ = [
    "COLOURS",
    "MARKERS",
    "REFERENCE",
    "Abscissa",
    "Band",
    "abscissa",
    "draw_curve",
    "label_axes",
    "picture_path",
    "plot_curves",
    "plot_partition",
    "plot_study",
    "style",
    "write_picture",
]
