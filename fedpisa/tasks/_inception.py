"""The features of FID: Inception-v3 as TensorFlow has it, with weights from a file.

The usual weights are those of TensorFlow's network, as ``pytorch-fid`` has them. In it, averages at an image's edge
leave the padding out, and the last block takes maxima.

Shapes: ``n`` images, ``D = 2048`` features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import BasicConv2d, Inception3, InceptionE

NUM_CLASSES: Final = 1008
"""Outputs of TensorFlow's network, of which none is used."""
_SIDE: Final = 299
_LAYERS: Final = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
)


class _AfterPooling(BasicConv2d):  # type: ignore[misc]  # torchvision has no types
    """The convolution after a 3x3 average that has counted the zeros of the padding: undo that."""

    def forward(self, x: Tensor) -> Tensor:
        share = F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, 1, 1)
        found: Tensor = super().forward(x / share)
        return found


class _LastBlock(InceptionE):  # type: ignore[misc]  # torchvision has no types
    """The block with a maximum in place of an average."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        half = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(half), self.branch3x3_2b(half)], 1),
            torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1),
            self.branch_pool(F.max_pool2d(x, 3, 1, 1)),
        ]


def inception() -> nn.Module:
    """Return TensorFlow's Inception-v3 without trained weights; `inception_features` calls its layers."""
    model = Inception3(num_classes=NUM_CLASSES, aux_logits=False, init_weights=False)
    model.Mixed_7c.__class__ = _LastBlock
    for name, layer in model.named_modules():
        if name.endswith(".branch_pool") and not name.startswith("Mixed_7c"):
            layer.__class__ = _AfterPooling
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]  # torchvision has no types


def inception_features(path: str, low_C: Tensor, high_C: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function from samples to features.

    Parameters
    ----------
    path
        File of the weights, ``.safetensors``.
    low_C, high_C
        For each channel, the value of a black and of a white pixel.

    Raises
    ------
    ValueError
        If the file does not hold the weights.
    """
    model = inception()
    model.load_state_dict(_weights(Path(path), model.state_dict()))
    low, high = (bound.float().cpu()[:, None, None] for bound in (low_C, high_C))

    def features(x: Tensor) -> Tensor:
        shown = ((x.float().cpu() - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        shown = (255 * shown).round() / 255  # as in a file of pixels
        shown = F.interpolate(
            shown.expand(-1, 3, -1, -1), (_SIDE, _SIDE), mode="bilinear", align_corners=False
        )
        layers: Any = model
        shown = 2 * shown - 1
        for name in _LAYERS:
            shown = getattr(layers, name)(shown)
        return shown.flatten(1)

    return features


def _weights(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"fid-features: {path} is not a .safetensors file, and pickled weights are not read: convert it with "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'inception.safetensors')"
        )
    try:
        found = load_file(path)
    except Exception as error:  # a file may be damaged in any way
        raise ValueError(
            f"fid-features: {path} cannot be read ({type(error).__name__}): give a file of Inception's weights"
        ) from error
    for name, tensor in wanted.items():
        if not isinstance(found.get(name), Tensor) or found[name].shape != tensor.shape:
            raise ValueError(
                f"fid-features: {path} has no {name!r} of shape {tuple(tensor.shape)}: give the weights of "
                "TensorFlow's Inception-v3, such as pytorch-fid's"
            )
    return {name: found[name] for name in wanted}
