"""Multi-layer perceptrons."""

from __future__ import annotations

import itertools
import math

from torch import nn

from fedpisa.typing import PositiveInt


def mlp(
    shape: tuple[int, ...], num_outputs: int, *, widths: tuple[PositiveInt, ...] = (200, 200)
) -> nn.Module:
    """Multi-layer perceptron on the flattened input, with ReLU between its layers.

    The default widths are those of the "2NN" of FedAvg [1]_.

    Parameters
    ----------
    shape
        Shape of one sample.
    num_outputs
        Number of classes, or of targets.
    widths
        Width of each hidden layer; empty for a linear model.

    References
    ----------
    .. [1] McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
       Networks from Decentralized Data", AISTATS 2017.

    Examples
    --------
    >>> sum(p.numel() for p in mlp((28, 28), 10).parameters())
    199210
    """
    sizes = (math.prod(shape), *widths, num_outputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def tabular_mlp(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """NIID-Bench's multi-layer perceptron for tabular data: hidden widths 32, 16 and 8.

    As in the code of [1]_, weights start from a normal distribution with standard deviation 0.1, and biases start at
    0.1.

    Parameters
    ----------
    shape
        Shape of one sample.
    num_outputs
        Number of classes, or of targets.

    References
    ----------
    .. [1] Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022.

    Examples
    --------
    >>> sum(p.numel() for p in tabular_mlp((123,), 2).parameters())
    4650
    """
    model = mlp(shape, num_outputs, widths=(32, 16, 8))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.constant_(layer.bias, 0.1)
    return model
