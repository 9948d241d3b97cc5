"""Losses on a network's features, which are the inputs of its last layer.

Shapes: ``P`` parameters, ``B`` samples of a mini-batch, ``F`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn


@final
@dataclass(frozen=True)
class FeatureLoss:
    """A loss that compares the samples' features with their features under other parameters, the anchors.

    The loss adds to the gradient but not to the reported training loss, which thus stays comparable. No gradient flows
    through the anchors.

    Parameters
    ----------
    anchors
        Parameter vectors ``(P,)``.
    loss
        Function that returns each sample's loss ``(B,)`` from its features ``(B, F)`` and its features under each
        anchor ``(B, F)``.
    """

    anchors: Sequence[Tensor]
    loss: Callable[..., Tensor]


def with_features(module: nn.Module, call: Callable[[], Any]) -> tuple[Any, Tensor]:
    """Return what a call of the module returns, and the features ``(B, F)`` in it.

    Features are the input, flattened, of the last layer with parameters.

    Raises
    ------
    ValueError
        If the last defined layer with parameters is not called last.

    Examples
    --------
    >>> import torch
    >>> module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> outputs, features = with_features(module, lambda: module(torch.ones(5, 2)))
    >>> outputs.shape, features.shape, bool((features >= 0).all())
    (torch.Size([5, 1]), torch.Size([5, 3]), True)
    """
    layers = {layer: name for name, layer in module.named_modules() if list(layer.parameters(recurse=False))}
    calls: list[tuple[nn.Module, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: calls.append((layer, inputs)))
        for layer in layers
    ]
    try:
        result = call()
    finally:
        for hook in hooks:
            hook.remove()
    last = list(layers)[-1] if layers else None
    called, inputs = calls[-1] if calls else (None, ())
    if called is None or called is not last or not inputs:
        raise ValueError(
            f"no features: the last layer with parameters is {_named(layers, last)} by definition and "
            f"{_named(layers, called)} by call; let a model define its output layer last and call it last, as a module"
        )
    return result, inputs[0].flatten(1)


def _named(layers: Mapping[nn.Module, str], layer: nn.Module | None) -> str:
    return "none" if layer is None else f"{layers[layer] or 'the model'} ({type(layer).__name__})"
