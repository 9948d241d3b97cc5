"""Deep networks for small images, with the sizes that papers on CIFAR-10 use."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from fedpisa.models.cnn import image_shape


def cifar_resnet34(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """ResNet-34 for small images: a 3x3 stem without pooling, then 16 residual blocks.

    As in [1]_, with the stem of its networks for CIFAR-10. A 1x1 convolution with batch normalisation is the shortcut
    where the shape changes, and the last layer sees the mean over all positions. For colour images and ten classes
    the network has 21,282,122 parameters.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of one image, at least 8x8.
    num_outputs
        Number of classes.

    Raises
    ------
    ValueError
        If a sample is not an image or is too small.

    References
    ----------
    .. [1] He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in cifar_resnet34((3, 32, 32), 10).parameters())
    21282122
    """
    width, layers = 64, _normalised(image_shape("cifar-resnet34", shape, smallest=8)[0], 64, 3)
    for outputs, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for number in range(count):
            layers.append(_Residual(width, outputs, stride=2 if number == 0 and outputs > 64 else 1))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_outputs))


def cifar_vgg11(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """VGG-11 for small images: eight 3x3 convolutions without normalisation, then two hidden layers with dropout.

    As configuration A of [1]_, with 512 instead of 4,096 hidden units. Without normalisation it needs larger initial
    weights than torch's: the convolutions have those of [2]_, which keep the variance of the gradients. For colour
    images of 32x32 and ten classes the network has 9,750,922 parameters.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of one image, at least 32x32.
    num_outputs
        Number of classes.

    Raises
    ------
    ValueError
        If a sample is not an image or is too small.

    References
    ----------
    .. [1] Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
       arXiv 1409.1556.
    .. [2] He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, arXiv 1502.01852.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in cifar_vgg11((3, 32, 32), 10).parameters())
    9750922
    """
    inputs, height, width = image_shape("cifar-vgg11", shape, smallest=32)
    layers: list[nn.Module] = []
    for block in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for outputs in block:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    flat = inputs * (height // 32) * (width // 32)
    return nn.Sequential(
        *(*layers, nn.Flatten()),
        *(nn.Dropout(), nn.Linear(flat, 512), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_outputs)),
    )


def cifar_densenet121(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """DenseNet-121 for small images: a 3x3 stem without pooling, then 58 dense layers that each add 32 channels.

    As DenseNet-BC of [1]_: a dense layer has a 1x1 convolution to 128 channels before its 3x3 convolution, and the
    transitions between its four blocks halve channels and size. For colour images and ten classes the network has
    6,956,298 parameters.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of one image, at least 8x8.
    num_outputs
        Number of classes.

    Raises
    ------
    ValueError
        If a sample is not an image or is too small.

    References
    ----------
    .. [1] Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
       arXiv 1608.06993.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in cifar_densenet121((3, 32, 32), 10).parameters())
    6956298
    """
    growth = 32
    width = 2 * growth
    channels, _, _ = image_shape("cifar-densenet121", shape, smallest=8)
    layers: list[nn.Module] = [_conv(channels, width, 3)]
    for number, count in enumerate((6, 12, 24, 16)):
        if number:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(count):
            layers.append(_Dense(width, growth))
            width += growth
    return nn.Sequential(
        *(*layers, nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_outputs)),
    )


@final
class _Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``; the first convolution of the body may halve the size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        second = [_conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*_normalised(inputs, outputs, 3, stride), *second)
        same = inputs == outputs and stride == 1
        shortcut = [] if same else [_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for images ``(B, channels, height, width)``."""
        return torch.relu(self.body(x) + self.shortcut(x))


@final
class _Dense(nn.Module):
    """``concatenate(x, body(x))``, which adds channels."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU(), _conv(inputs, 4 * growth, 1)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(), _conv(4 * growth, growth, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for images ``(B, channels, height, width)``."""
        return torch.cat([x, self.body(x)], dim=1)


def _normalised(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [_conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU()]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
