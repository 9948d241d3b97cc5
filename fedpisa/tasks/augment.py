"""Random crops and flips of training images, functions of a local step's key.

Shapes: ``C`` mini-batches of a step, ``B`` samples, ``M`` images with channels, ``H`` rows and ``W`` columns;
``...`` stands for the leading axes ``(C, B)`` or ``(S, C, B)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from fedpisa.tasks.keyed import below, sample_keys

ATTEMPTS: Final = 10
"""Boxes that a `ResizedCropFlip` draws before it takes the one in the middle."""


@dataclass(frozen=True)
class Augmentation(ABC):
    """A random change of training images, with draws of its own for each sample of each step."""

    name: ClassVar[str]

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless samples ``(n, ...)`` are images ``(n, channels, H, W)`` of numbers."""
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(
                f"augment = {self.name!r} needs images (channels, rows, columns), and a sample has shape "
                f'{tuple(x.shape[1:])}: set augment = "none"'
            )

    def __call__(self, x: Tensor, key: Tensor) -> Tensor:
        """Return the images ``(..., C, B, channels, H, W)`` of a step, changed by draws from its key ``(...)``."""
        keys_M = sample_keys(key, *x.shape[-5:-3]).flatten()
        return self.changed(x.flatten(0, -4), keys_M).view(x.shape)

    @abstractmethod
    def changed(self, x: Tensor, keys_M: Tensor) -> Tensor:
        """Return the images ``(M, channels, H, W)``, each changed by draws from its key."""


@final
@dataclass(frozen=True)
class CropFlip(Augmentation):
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

    name: ClassVar[str] = "crop-flip"

    def changed(self, x: Tensor, keys_M: Tensor) -> Tensor:
        """Return the cropped and flipped images; see `Augmentation.changed`."""
        end = 2 * self.padding + 1
        return self.moved(x, *below(keys_M, 0, (end, end, 2)).unbind(1))

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


@final
@dataclass(frozen=True)
class ResizedCropFlip(Augmentation):
    """A box of the image, scaled to the image's size, and a flip to the right or not [1]_.

    The box's share of the image is uniform in ``scale``, and the logarithm of its width over its height is uniform
    between those of ``ratio``. Both sides are rounded. A box that does not fit is drawn again, and after `ATTEMPTS` of
    them the largest box in the middle whose ratio is in ``ratio`` is taken. The place of the box is uniform. These are
    the rules of torchvision's ``RandomResizedCrop``. A box is never larger than the image, so that scaling only
    enlarges, and an antialiasing filter would change nothing.

    Parameters
    ----------
    scale
        Smallest and largest share of the image.
    ratio
        Smallest and largest width over height.

    References
    ----------
    .. [1] Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """

    name: ClassVar[str] = "resized-crop-flip"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def changed(self, x: Tensor, keys_M: Tensor) -> Tensor:
        """Return the scaled boxes of the images; see `Augmentation.changed`."""
        box_M4, flip_M = self.boxes(keys_M, *x.shape[-2:])
        return resized_boxes(x, box_M4, flip_M)

    def boxes(self, keys_M: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return top, left, height and width of each box ``(M, 4)``, and whether it is flipped ``(M,)``, int64."""
        # The numbers of pixels are rounded from float64, so that the last bits of `exp` and `sqrt` do not matter.
        draws = below(keys_M, 0, (2**31,) * (2 * ATTEMPTS + 3))
        share_MA, shape_MA = (draws[:, :-3].double() / 2**31).chunk(2, 1)
        (least, most), (narrow, wide) = self.scale, map(math.log, self.ratio)
        area_MA = height * width * (least + (most - least) * share_MA)
        ratio_MA = (narrow + (wide - narrow) * shape_MA).exp()
        size_MA2 = torch.stack([(area_MA / ratio_MA).sqrt(), (area_MA * ratio_MA).sqrt()], -1).round().long()
        image_2 = torch.tensor([height, width], device=keys_M.device)
        fits_MA = ((size_MA2 > 0) & (size_MA2 <= image_2)).all(-1)
        first_M = fits_MA.long().argmax(1)
        size_M2 = size_MA2.gather(1, first_M[:, None, None].expand(-1, 1, 2))[:, 0]
        middle_2 = torch.tensor(self._largest(height, width), device=keys_M.device)
        is_any_M1 = fits_MA.any(1)[:, None]
        size_M2 = torch.where(is_any_M1, size_M2, middle_2)
        free_M2 = image_2 - size_M2
        begin_M2 = torch.where(is_any_M1, draws[:, -3:-1] * (free_M2 + 1) >> 31, free_M2 // 2)
        return torch.cat([begin_M2, size_M2], 1), draws[:, -1] >> 30

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the largest box whose ratio is in ``ratio``."""
        narrow, wide = self.ratio
        return min(height, round(width / narrow)), min(width, round(height * wide))


def resized_boxes(x: Tensor, box_M4: Tensor, flip_M: Tensor) -> Tensor:
    """Return boxes of images ``(M, channels, H, W)``, scaled bilinearly to ``H x W``, and mirrored where ``flip`` is 1.

    The pixel ``t`` of a side is at ``clamp((t + 1/2) size / length - 1/2, 0, size - 1)`` in the box, so that nothing
    beyond the box counts.

    Parameters
    ----------
    x
        The images.
    box_M4
        Top, left, height and width of each box, in pixels.
    flip_M
        0 or 1.

    Examples
    --------
    >>> image, box = torch.tensor([[[[0.0, 1.0, 2.0, 4.0]]]]), torch.tensor([[0, 2, 1, 2]])
    >>> resized_boxes(image, box, torch.tensor([0])), resized_boxes(image, box, torch.tensor([1]))
    (tensor([[[[2.0000, 2.5000, 3.5000, 4.0000]]]]), tensor([[[[4.0000, 3.5000, 2.5000, 2.0000]]]]))
    """
    height, width = x.shape[-2:]
    top_M, left_M, height_M, width_M = box_M4.double().unbind(1)
    rows_MH, columns_MW = _places(top_M, height_M, height), _places(left_M, width_M, width)
    columns_MW = torch.where(flip_M[:, None] == 1, columns_MW.flip(1), columns_MW)
    grid_MHW2 = torch.stack(
        [columns_MW[:, None].expand(-1, height, -1), rows_MH[..., None].expand(-1, -1, width)], -1
    )
    return F.grid_sample(x, grid_MHW2.to(x.dtype), padding_mode="border", align_corners=False)


def _places(begin_M: Tensor, size_M: Tensor, length: int) -> Tensor:
    """Return where a side's pixels are in the image ``(M, length)``, whose ends are -1 and 1."""
    step_M1, last_M1 = size_M[:, None] / length, size_M[:, None] - 1
    in_box = (torch.arange(length, device=size_M.device) + 0.5) * step_M1 - 0.5
    place = begin_M[:, None] + torch.minimum(in_box.clamp(min=0), last_M1)
    return (2 * place + 1) / length - 1


def augmented(augment: Augmentation | None, x: Tensor, key: Tensor) -> Tensor:
    """Return a step's samples for training, changed if the run augments them."""
    return x if augment is None else augment(x, key)
