"""Critics and generators for generative adversarial networks.

Shapes: ``B`` samples, ``Z`` numbers of a latent vector.
"""

from __future__ import annotations

import itertools
import math
from typing import final

import torch
from torch import Tensor, nn

from fedpisa.typing import Finite, PositiveInt


@final
class Adversaries(nn.Module):
    """A critic, which gives a sample a number, and a generator, which makes a sample of a latent vector ``(B, Z)``.

    Parameters
    ----------
    critic, generator
        The networks.
    latent
        Length ``Z`` of the latent vectors.
    """

    def __init__(self, critic: nn.Module, generator: nn.Module, latent: int) -> None:
        super().__init__()
        self.critic, self.generator, self.latent = critic, generator, latent

    def forward(self, x: Tensor) -> Tensor:
        """Return the critic's outputs ``(B, 1)``."""
        outputs: Tensor = self.critic(x)
        return outputs


@final
class Scaled(nn.Module):
    """``low + (high - low) (1 + tanh(a)) / 2``, a smooth bound on pixels.

    Examples
    --------
    >>> Scaled(0.0, 1.0)(torch.tensor([0.0, 50.0]))
    tensor([0.5000, 1.0000])
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"output-range = [{low:g}, {high:g}]: give the lower end first")
        self.low, self.high = low, high

    def forward(self, a: Tensor) -> Tensor:
        """Return the values."""
        return self.low + (self.high - self.low) / 2 * (1 + torch.tanh(a))


def mlp_gan(
    shape: tuple[int, ...],
    *,
    widths: tuple[PositiveInt, ...] = (128, 128),
    latent: PositiveInt = 16,
    critic_sigmoid: bool = False,
    output_range: tuple[Finite, Finite] | None = None,
) -> nn.Module:
    """Critic and generator that are multi-layer perceptrons with leaky ReLU (0.2) and ReLU, for ``task = "gan"``.

    Parameters
    ----------
    shape
        Shape of one sample.
    widths
        Width of each hidden layer of the critic; those of the generator are in reverse order.
    latent
        Length of the latent vectors.
    critic_sigmoid
        Whether the critic's output goes through a sigmoid.
    output_range
        Smallest and largest value of a generated sample, such as ``[0, 1]``; by default the outputs are not bounded.

    Examples
    --------
    >>> model = mlp_gan((1, 8, 8), widths=(32,), latent=4)
    >>> model(model.generator(torch.zeros(2, 4))).shape
    torch.Size([2, 1])
    """
    critic: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise((math.prod(shape), *widths)):
        critic += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    critic.append(nn.Linear(widths[-1] if widths else math.prod(shape), 1))
    sizes = (latent, *reversed(widths))
    generator: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        generator += [nn.Linear(inputs, outputs), nn.ReLU()]
    generator += [nn.Linear(sizes[-1], math.prod(shape)), nn.Unflatten(1, shape)]
    return Adversaries(_headed(critic, critic_sigmoid), _bounded(generator, output_range), latent)


def dcgan(
    shape: tuple[int, ...],
    *,
    width: PositiveInt = 64,
    latent: PositiveInt = 100,
    critic_batchnorm: bool = False,
    critic_sigmoid: bool = False,
    output_range: tuple[Finite, Finite] | None = None,
) -> nn.Module:
    """DCGAN [1]_: a critic of strided convolutions and a generator of transposed ones, for ``task = "gan"``.

    Each level halves the image, until its sides are at most 7 or odd: 28 -> 14 -> 7, 64 -> 32 -> 16 -> 8 -> 4. The
    first level has ``width`` channels, and each further one twice as many. Kernels are 4x4. Weights start from a normal
    distribution with standard deviation 0.02. The generator's BatchNorm layers keep no running statistics, so nothing
    but the weights is sent.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of one image, whose height and width are even and above 7.
    width
        Channels of the first level.
    latent
        Length of the latent vectors.
    critic_batchnorm
        Whether the critic has BatchNorm too, from its second level on. A gradient penalty is defined sample by sample,
        and does without.
    critic_sigmoid
        Whether the critic's output goes through a sigmoid.
    output_range
        Smallest and largest value of a generated pixel, such as ``[0, 1]``; by default the outputs are not bounded.

    References
    ----------
    .. [1] Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
       Adversarial Networks", ICLR 2016.

    Examples
    --------
    >>> model = dcgan((1, 28, 28), width=8, latent=4)
    >>> model.generator(torch.zeros(2, 4)).shape
    torch.Size([2, 1, 28, 28])
    """
    if len(shape) != 3 or min(shape[1:]) <= 7 or shape[1] % 2 or shape[2] % 2:
        raise ValueError(
            f"dcgan needs images (channels, height, width) of even sides above 7, and a sample has shape {shape}: take "
            "mlp-gan"
        )
    channels, height, breadth = shape
    levels = 0
    while min(height, breadth) > 7 and height % 2 == 0 and breadth % 2 == 0:
        height, breadth, levels = height // 2, breadth // 2, levels + 1
    widths = [channels, *(width * 2**level for level in range(levels))]
    critic: list[nn.Module] = []
    for level, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        critic.append(nn.Conv2d(inputs, outputs, 4, 2, 1))
        if critic_batchnorm and level:
            critic.append(nn.BatchNorm2d(outputs, track_running_stats=False))
        critic.append(nn.LeakyReLU(0.2))
    deepest = widths[-1] * height * breadth
    critic += [nn.Flatten(), nn.Linear(deepest, 1)]
    generator: list[nn.Module] = [nn.Linear(latent, deepest), nn.Unflatten(1, (widths[-1], height, breadth))]
    for inputs, outputs in itertools.pairwise(reversed(widths)):
        normed = nn.BatchNorm2d(inputs, track_running_stats=False)
        generator += [normed, nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
    model = Adversaries(_headed(critic, critic_sigmoid), _bounded(generator, output_range), latent)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return model


def _headed(critic: list[nn.Module], sigmoid: bool) -> nn.Module:
    return nn.Sequential(*critic, *[nn.Sigmoid()] * sigmoid)


def _bounded(generator: list[nn.Module], output_range: tuple[float, float] | None) -> nn.Module:
    return nn.Sequential(*generator, *([] if output_range is None else [Scaled(*output_range)]))
