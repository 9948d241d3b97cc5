"""Put a run's values into a module's own tensors while the module is called.

`torch.func.functional_call` replaces a module's tensors by others. Code that finds a parameter in another way still
gets the old one: a list of parameters, a closure, a gradient hook, and `torch.utils.checkpoint`, which calls the module
again during the backward pass. Here the module keeps its tensors, as in plain PyTorch, and each of them temporarily
uses the memory of the values.

Shapes: ``P`` parameters, ``Q`` buffer entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from fedpisa.tasks.buffers import BufferLayout
from fedpisa.tasks.layout import ParamLayout

_OF_EVERY_MODULE: Final = frozenset(vars(nn.Module()))
"""Attributes that PyTorch gives every module."""
_CONTAINERS: Final = (list, dict, set, np.ndarray)


@final
class Places:
    """Where a module keeps its trainable parameters and its buffers, found once for all calls.

    The tensors are looked up at each call: code may bind another tensor to the same name.

    Examples
    --------
    >>> module = nn.Linear(1, 1, bias=False)
    >>> places = Places(module)
    >>> module.weight = nn.Parameter(torch.ones(1, 1))
    >>> places.parameters["weight"] is module.weight
    True
    """

    def __init__(self, module: nn.Module) -> None:
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._parameters = [(name, *_place(module, name)) for name in trained]
        self._buffers = [(name, *_place(module, name)) for name, _ in module.named_buffers()]
        self._layers = [layer for layer in module.modules() if layer._buffers]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, tied ones once."""
        found = {name: layer._parameters[last] for name, layer, last in self._parameters}
        return {name: parameter for name, parameter in found.items() if parameter is not None}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name."""
        found = {name: layer._buffers[last] for name, layer, last in self._buffers}
        return {name: buffer for name, buffer in found.items() if buffer is not None}

    @property
    def buffers_by_layer(self) -> list[tuple[nn.Module, dict[str, Tensor | None]]]:
        """Each layer that has buffers, with a copy of its table of them."""
        return [(layer, dict(layer._buffers)) for layer in self._layers]


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the layer that has a parameter or buffer, and its last name there."""
    path, _, last = name.rpartition(".")
    return module.get_submodule(path), last


@final
class Held:
    """A module that holds values; see `holding`."""

    def __init__(self, parameters: dict[str, nn.Parameter], layout: ParamLayout) -> None:
        self.layout = layout
        self.parameters = parameters
        self._inputs: list[Tensor] | None = None

    def of(self, layout: ParamLayout) -> Held:
        """Return what takes derivatives by some of the parameters."""
        part = copy(self)
        part.layout, part.parameters = layout, {name: self.parameters[name] for name in layout.names}
        part._inputs = list(part.parameters.values())
        return part

    def gradient(self, loss: Tensor) -> Tensor:
        """Return a loss's derivatives as a flat vector ``(P,)``, 0 for parameters that it does not depend on."""
        loss.backward(inputs=self._inputs)  # type: ignore[no-untyped-call]
        gradients = {}
        for name, parameter in self.parameters.items():
            found = parameter.grad
            if found is None:
                found = torch.zeros_like(parameter)
            gradients[name] = found if found.layout is torch.strided else found.to_dense()
            parameter.grad = None
        return self.layout.flatten(gradients)

    def differentiable_gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient with a graph, for second derivatives."""
        return self._derivatives(loss, None, create_graph=True)

    def product(self, gradient_P: Tensor, vector_P: Tensor) -> Tensor:
        """Return the Hessian's product with a vector ``(P,)``."""
        return self._derivatives(gradient_P, vector_P, retain_graph=True)

    def _derivatives(self, outputs: Tensor, weights: Tensor | None, **how: Any) -> Tensor:
        found = torch.autograd.grad(
            outputs, list(self.parameters.values()), weights, allow_unused=True, materialize_grads=True, **how
        )
        return self.layout.flatten(dict(zip(self.parameters, found, strict=True)))


@contextmanager
def holding(
    places: Places, layout: ParamLayout, buffer_layout: BufferLayout, params_P: Tensor, buffers_Q: Tensor
) -> Iterator[Held]:
    """Put values into a module's own tensors inside the block. Take derivatives inside the block too.

    Buffers are copied. Parameters are not: a module that writes into them writes into ``params_P``.

    Examples
    --------
    >>> module = nn.Linear(1, 1, bias=False)
    >>> layout, buffers = ParamLayout.of_parameters(module), BufferLayout.of(module)
    >>> with holding(Places(module), layout, buffers, torch.tensor([3.0]), torch.zeros(0)) as held:
    ...     held.gradient(module(torch.tensor([2.0])) ** 2)
    tensor([24.])
    """
    held = Held(places.parameters, layout)
    values = layout.unflatten(params_P.detach())
    if buffer_layout.names:
        values |= buffer_layout.unflatten(buffers_Q.detach().clone())
    tensors: dict[str, Tensor] = {**held.parameters, **places.buffers}
    # A forward pass may bind another tensor to a buffer's name.
    buffers_by_layer = places.buffers_by_layer
    own = {name: tensor.data for name, tensor in tensors.items()}
    try:
        for name, tensor in tensors.items():
            tensor.data = values[name]
        yield held
    finally:
        for layer, named in buffers_by_layer:
            layer._buffers.clear()
            layer._buffers.update(named)
        for name, tensor in tensors.items():
            tensor.data = own[name]
            tensor.grad = None


@contextmanager
def own_attributes(module: nn.Module) -> Iterator[None]:
    """Restore what a module's layers have at the end of the block, but no tensor's values.

    These are plain attributes, such as a count or a list of calls, and the layers, parameters and buffers themselves.

    Examples
    --------
    >>> module = nn.Sequential(nn.Tanh())
    >>> with own_attributes(module):
    ...     module.calls, module[0] = 1, nn.ReLU()
    >>> hasattr(module, "calls"), module[0]
    (False, Tanh())
    """
    before = [(layer, dict(vars(layer))) for layer in module.modules()]
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table))
        for layer, _ in before
        for table in (layer._parameters, layer._buffers, layer._modules)
    ]
    containers = [
        (value, copy(value))
        for _, attributes in before
        for name, value in attributes.items()
        if name not in _OF_EVERY_MODULE and isinstance(value, _CONTAINERS)
    ]
    try:
        yield
    finally:
        for container, content in containers:
            if isinstance(container, np.ndarray):
                if container.flags.writeable:
                    container[...] = content
            else:
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)
        for table, content in tables:
            table.clear()
            table.update(content)
        for layer, attributes in before:
            attributes["training"] = layer.training
            vars(layer).clear()
            vars(layer).update(attributes)
