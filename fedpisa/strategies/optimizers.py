"""Optimizers by name: every first-order optimizer of ``torch.optim``, with its own options as keys."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Union, final

import torch
from pydantic import Field

from fedpisa.components import REQUIRED, Component, Key, Parameter, kebab, nearest, one_line

LEFT_OUT: Final = {
    "lbfgs": "it evaluates the loss several times per step, and here a step has one gradient",
    "sparse-adam": "it takes sparse gradients only",
}
"""Optimizers of torch that cannot be used here, and why."""

# These choose how a step is computed, not which step is taken; and nobody maximises a loss.
_NOT_KEYS: Final = frozenset({"params", "foreach", "fused", "capturable", "differentiable", "maximize"})
_KEY_NAMES: Final = {"lr": "learning-rate"}


@final
@dataclass(frozen=True)
class Optimizer:
    """An optimizer of ``torch.optim`` and its options, not yet bound to parameters.

    Parameters
    ----------
    name
        The class in lower case: ``sgd``, ``adam``, ``adamw``, ...
    options
        Arguments of the class under torch's own names; those left out take torch's defaults.

    Raises
    ------
    ValueError
        If there is no such optimizer or it refuses the options.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> Optimizer("sgd", {"lr": 0.1, "momentum": 0.9}).create([weight]).defaults["momentum"]
    0.9
    """

    family: ClassVar[str] = "optimizer"
    name: str = "sgd"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self.create([torch.nn.Parameter(torch.zeros(1, 1))])

    def create(self, parameters: Iterable[torch.nn.Parameter | torch.Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters."""
        classes = _classes()
        if self.name not in classes:
            reason = f": {LEFT_OUT[self.name]}" if self.name in LEFT_OUT else nearest(self.name, classes)
            raise ValueError(f"no optimizer {self.name!r}{reason} (available: {', '.join(classes)})")
        try:
            return classes[self.name](list(parameters), **self.options)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"optimizer {self.name!r} refuses: {one_line(error)}") from error


def _classes() -> dict[str, type[torch.optim.Optimizer]]:
    found = {
        _name(name): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    return {name: found[name] for name in sorted(found) if name not in LEFT_OUT}


def _name(class_name: str) -> str:
    return "sparse-adam" if class_name == "SparseAdam" else class_name.lower()


def components() -> Iterator[Component]:
    """Yield a component for each optimizer of the installed torch.

    Examples
    --------
    >>> {"sgd", "adam", "adamw", "nadam"} <= {component.name for component in components()}
    True
    """
    for name, cls in _classes().items():
        yield Component(
            "optimizer",
            name,
            # A default argument, because a closure would see the loop's last name.
            lambda _name=name, **options: Optimizer(_name, options),
            f"torch.optim.{cls.__name__}",
            tuple(_parameters(cls)),
            read=lambda optimizer: optimizer.options,
        )


def _parameters(cls: type[torch.optim.Optimizer]) -> Iterator[Parameter]:
    hints = typing.get_type_hints(cls.__init__)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in _NOT_KEYS:
            default = parameter.default if parameter.default is not parameter.empty else REQUIRED
            annotation = without_tensors(hints.get(name, type(default)))
            if name == "lr":
                annotation = Annotated[float, Field(ge=0)]
            elif annotation is float and isinstance(default, int):
                default = float(default)
            key = Key(_KEY_NAMES.get(name, kebab(name)), annotation, default, _doc(cls, name))
            yield Parameter(name, key)


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
    """Return the first sentence of torch's own description of an argument."""
    found = re.search(
        rf"^\s*{name} \([^)]*\): (.*?)(?=\n\s*\w+ \(|\n\n|\(default|\. |\Z)", cls.__doc__ or "", re.M | re.S
    )
    return " ".join(found[1].split()) if found else ""
