"""The figure on which pictures of studies are drawn."""

from __future__ import annotations

import io
from typing import final

from matplotlib.figure import Figure

RESOLUTION = 110
"""Dots per inch in a notebook."""


@final
class Picture(Figure):
    """A figure outside pyplot, which a notebook shows once, as the value of a cell."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=RESOLUTION)
        return content.getvalue()
