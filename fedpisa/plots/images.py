"""Images side by side, as a PNG file."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray

SMALLEST = 32
"""Smallest height in pixels at which an image is shown."""


def image_grid(images: NDArray[np.floating], low: NDArray[np.floating], high: NDArray[np.floating]) -> bytes:
    """Return images in rows of about as many as there are rows, as the bytes of a PNG file.

    Small images are magnified by whole numbers. A black line of one pixel is between them.

    Parameters
    ----------
    images
        The images ``(n, channels, height, width)``; of more than three channels the first three are shown, and of two
        the first.
    low, high
        For each channel, the values of the darkest and the lightest pixel; values outside are cut.

    Examples
    --------
    >>> content = image_grid(np.zeros((5, 1, 8, 8)), np.array([0.0]), np.array([1.0]))
    >>> content[1:4], int.from_bytes(content[16:20], "big")  # 3 x 32 pixels, 2 lines
    (b'PNG', 98)
    """
    from matplotlib.image import imsave

    channels = 3 if images.shape[1] >= 3 else 1
    low, high = (bound[:channels, None, None] for bound in (low, high))
    scaled = np.clip((images[:, :channels] - low) / np.maximum(high - low, 1e-12), 0, 1)
    pixels = np.round(255 * np.nan_to_num(scaled)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])).transpose(0, 2, 3, 1)
    factor = max(1, math.ceil(SMALLEST / min(pixels.shape[1:3])))
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    columns = math.ceil(len(pixels) ** 0.5)
    rows = math.ceil(len(pixels) / columns)
    _, height, width, _ = pixels.shape
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.uint8)
    for number, image in enumerate(pixels):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    content = io.BytesIO()
    imsave(content, grid, format="png", metadata={"Software": "fedpisa"})
    return content.getvalue()
