"""Properties of a module that are known before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_unchanged(layer: nn.Module) -> bool:
    """Return whether a call of the layer runs the ``forward`` of its class and nothing else.

    Two things change a call: a hook of the layer or of all modules, and an attribute that hides a method of the class.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> is_unchanged(layer)
    True
    >>> layer.forward = lambda x: 2 * x
    >>> is_unchanged(layer)
    False
    """
    hooked = any(getattr(layer, name) for name in _HOOKS) or any(
        getattr(global_hooks, f"_global{name}") for name in _HOOKS
    )
    hidden = any(callable(getattr(type(layer), name, None)) for name in vars(layer))
    return not hooked and not hidden


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a module's real floating-point tensors and return it; complex and other tensors stay unchanged."""
    return module.double() if dtype is torch.float64 else module.float()


def state_names(module: nn.Module) -> dict[str, str]:
    """Return, for each tensor of the module's ``state_dict``, the first name of its parameter or buffer.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> state_names(nn.Sequential(layer, layer))
    {'0.weight': '0.weight', '0.bias': '0.bias', '1.weight': '0.weight', '1.bias': '0.bias'}
    """
    first = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    state = module.state_dict(keep_vars=True)
    return {name: first[id(tensor)] for name, tensor in state.items() if id(tensor) in first}


def places(module: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """Return the names of all places that hold each parameter and buffer, by its first name.

    A layer with two names is one place.

    Examples
    --------
    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    >>> second.weight = first.weight
    >>> places(nn.Sequential(first, nn.ReLU(), second, first))
    {'0.weight': ('0.weight', '2.weight'), '0.bias': ('0.bias',)}
    """
    first_name: dict[int, str] = {}
    found: dict[str, tuple[str, ...]] = {}
    for path, layer in module.named_modules():
        for attribute, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if tensor is not None:
                name = f"{path}.{attribute}" if path else attribute
                first = first_name.setdefault(id(tensor), name)
                found[first] = (*found.get(first, ()), name)
    return found
