"""Models that are linear in their weights, with convex losses.

The weights start at zero, as is usual for a convex problem. The first loss is then ``log(C)`` for C classes and does
not depend on the seed.
"""

from __future__ import annotations

import math

from torch import nn


def _zeros(inputs: int, outputs: int, bias: bool) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.Flatten(), layer)


def linear(shape: tuple[int, ...], num_outputs: int, *, bias: bool = False) -> nn.Module:
    """Linear regression ``W x (+ b)`` on the flattened input, starting at zero.

    Parameters
    ----------
    shape
        Shape of one sample.
    num_outputs
        Number of outputs; 1 for a regression on one target.
    bias
        Whether to add a constant term ``b``.

    Examples
    --------
    >>> sum(p.numel() for p in linear((3,), 1).parameters())
    3
    """
    return _zeros(math.prod(shape), num_outputs, bias)


def logistic(shape: tuple[int, ...], num_outputs: int, *, bias: bool = True) -> nn.Module:
    """Logistic regression on the flattened input, starting at zero.

    Two classes have one logit, that of class 1 (binary cross-entropy). C > 2 classes have C logits (softmax
    cross-entropy).

    Parameters
    ----------
    shape
        Shape of one sample.
    num_outputs
        Number of classes.
    bias
        Whether each logit has a constant term.

    Raises
    ------
    ValueError
        If there are fewer than two classes.

    Examples
    --------
    >>> sum(p.numel() for p in logistic((8, 8), 10).parameters())
    650
    >>> sum(p.numel() for p in logistic((123,), 2, bias=False).parameters())
    123
    """
    if num_outputs < 2:
        raise ValueError(
            f"model 'logistic' needs at least 2 classes, not {num_outputs}: for a regression set 'linear'"
        )
    return _zeros(math.prod(shape), 1 if num_outputs == 2 else num_outputs, bias)
