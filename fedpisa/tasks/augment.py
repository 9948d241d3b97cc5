"""Random crops and flips of training images, drawn from a local step's key.

Shapes: ``C`` mini-batches of a step, ``B`` samples, ``M`` images with channels, ``H`` rows and ``W`` columns;
``...`` stands for the leading axes ``(C, B)`` or ``(S, C, B)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from fedpisa.tasks.keyed import below, sample_keys


@final
@dataclass(frozen=True)
class CropFlip:
    """A crop of the image with a border of zeros, at a random place, and a flip to the right or not.

    ``out[c, h, w] = padded[c, h + a, w' + b]``, where ``w'`` is ``w`` or ``W - 1 - w``, each with probability 1/2, and
    ``a`` and ``b`` are uniform in ``0 .. 2 padding``. Each sample of each step has its own draws.

    Parameters
    ----------
    padding
        Width of the border.

    References
    ----------
    Lee, Xie, Gallagher, Zhang, Tu (2015), Deeply-supervised nets.
    """

    padding: int

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless samples ``(n, ...)`` are images ``(n, channels, H, W)`` of numbers."""
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(
                f"augment = 'crop-flip' needs images (channels, rows, columns), and a sample has shape "
                f'{tuple(x.shape[1:])}: set augment = "none"'
            )

    def __call__(self, x: Tensor, key: Tensor) -> Tensor:
        """Return the images ``(..., C, B, channels, H, W)`` of a step, changed by draws from its key ``(...)``."""
        batches, size = x.shape[-5:-3]
        end = 2 * self.padding + 1
        draws = below(sample_keys(key, batches, size), 0, (end, end, 2)).flatten(0, -2)
        return self.moved(x.flatten(0, -4), *draws.unbind(1)).view(x.shape)

    def moved(self, x: Tensor, down_M: Tensor, right_M: Tensor, flip_M: Tensor) -> Tensor:
        """Return images ``(M, channels, H, W)``, cropped at rows ``down_M`` and columns ``right_M``, and flipped."""
        (height, width), border = x.shape[-2:], self.padding
        padded = F.pad(x, (border,) * 4)
        rows_MH = down_M[:, None] + torch.arange(height, device=x.device)
        columns_W = torch.arange(width, device=x.device)
        columns_MW = right_M[:, None] + torch.where(flip_M[:, None] == 1, width - 1 - columns_W, columns_W)
        channels = x.shape[1]
        cropped = padded.gather(2, rows_MH[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
        return cropped.gather(3, columns_MW[:, None, None, :].expand(-1, channels, height, -1))


def augmented(augment: CropFlip | None, x: Tensor, key: Tensor) -> Tensor:
    """Return a step's samples for training, changed if the run augments them."""
    return x if augment is None else augment(x, key)
