"""Properties of a module that are known before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as global_hooks

_OF_ALL: Final = frozenset(vars(nn.Module()))
CONTAINERS: Final = list | tuple | dict | set | np.ndarray
"""Types of attributes in which a layer may keep what it has seen."""
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
    """Cast a module's parameters and real floating-point buffers and return it; other buffers stay unchanged."""
    module = module.double() if dtype is torch.float64 else module.float()
    for parameter in module.parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(dtype.to_complex())
    return module


def copy_of(module: nn.Module) -> nn.Module:
    """Return a copy that shares no tensor with the module.

    An attribute that a layer has computed, such as the weight of a pruned layer, has a graph, and PyTorch copies only
    what has none; the copy has its values.

    Raises
    ------
    ValueError
        If the module's own way to copy itself returns shared tensors.

    Examples
    --------
    >>> from torch.nn.utils import prune
    >>> layer = prune.l1_unstructured(nn.Linear(2, 2), "weight", amount=1)
    >>> copy_of(layer).weight_orig.data_ptr() == layer.weight_orig.data_ptr()
    False
    """
    computed = [
        value
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and value.grad_fn is not None
    ]
    copy = deepcopy(module, {id(value): value.detach().clone() for value in computed})
    own = {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    if any(id(tensor) in own for tensor in [*copy.parameters(), *copy.buffers()]):
        raise ValueError("the copy shares its tensors")
    return copy


def plain_attributes(module: nn.Module) -> dict[str, object]:
    """Return the layers' attributes that are numbers or texts, or containers of such, without the mode of training.

    Examples
    --------
    >>> plain_attributes(nn.Flatten())
    {'start_dim': 1, 'end_dim': -1}
    """
    return {
        f"{path}.{name}" if path else name: _content(value)
        for path, layer in module.named_modules()
        for name, value in vars(layer).items()
        if isinstance(value, bool | int | float | complex | str | CONTAINERS) and name not in _OF_ALL
    }


def _content(value: object) -> object:
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value.tobytes()
    return repr(value) if isinstance(value, CONTAINERS) else value


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
