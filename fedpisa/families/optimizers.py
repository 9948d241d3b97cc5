"""The family ``optimizer``: every optimizer of the installed packages, with its arguments as keys and options."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Final, Union

import torch
from pydantic import Field

from fedpisa.components import REQUIRED, Component, Key, Parameter, kebab
from fedpisa.strategies.optimizer import Optimizer, optimizer_classes

# Except for `maximize`, these do not change the step, only how it is computed. Losses are never maximised.
_NOT_KEYS: Final = frozenset(
    {"params", "model", "model_sharding", "foreach", "fused", "capturable", "differentiable", "maximize"}
)
_KEYS: Final = {
    "lr": "learning-rate", "momentum": "momentum", "weight_decay": "weight-decay", "nesterov": "nesterov",
}  # fmt: skip
"""The arguments that are flat keys, because the clients' SGD has them too. All others are options."""


def components() -> Iterator[Component]:
    """Yield a component for each optimizer of the installed packages.

    Examples
    --------
    >>> {"sgd", "adam", "adamw", "nadam"} <= {component.name for component in components()}
    True
    """
    for name, cls in optimizer_classes().items():
        yield Component(
            "optimizer",
            name,
            # A default argument, because a closure would see only the loop's last name.
            lambda _name=name, **options: Optimizer(_name, options),
            f"{'torch.optim' if cls.__module__.startswith('torch.') else 'pytorch_optimizer'}.{cls.__name__}",
            tuple(_parameters(cls)),
            read=lambda optimizer: optimizer.options,
        )


def _parameters(cls: type[torch.optim.Optimizer]) -> Iterator[Parameter]:
    hints = typing.get_type_hints(cls.__init__)
    for name, parameter in inspect.signature(cls).parameters.items():
        written = parameter.kind is not parameter.VAR_KEYWORD and not inspect.isroutine(parameter.default)
        if name not in _NOT_KEYS and written:
            default = parameter.default if parameter.default is not parameter.empty else REQUIRED
            annotation = without_tensors(hints.get(name, type(default)))
            if name == "lr":
                annotation = Annotated[float, Field(ge=0)]
            elif annotation is float and isinstance(default, int):
                default = float(default)
            key = _KEYS.get(name, kebab(name))
            yield Parameter(name, Key(key, annotation, default, _doc(cls, name), option=name not in _KEYS))


def without_tensors(annotation: Any) -> Any:
    """Return an annotation without the tensors that torch allows in place of numbers.

    Examples
    --------
    >>> without_tensors(tuple[float | torch.Tensor, float | torch.Tensor])
    tuple[float, float]
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if not arguments:
        return annotation
    kept = tuple(without_tensors(argument) for argument in arguments if argument is not torch.Tensor)
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, kept)
    return origin[kept] if origin is not None else annotation


def _doc(cls: type, name: str) -> str:
    """Return the first sentence of the class's own description of an argument."""
    found = re.search(
        rf"^\s*{name}(?: \([^)]*\))?: (.*?)(?=\n\s*\w+(?: \(|:)|\n\n|\(default|\. |\Z)",
        cls.__doc__ or "",
        re.M | re.S,
    )
    return " ".join(found[1].split()) if found else ""
