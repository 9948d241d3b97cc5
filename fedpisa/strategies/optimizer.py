"""Optimizers by name, with their own options, and their memory as named tensors.

They are the first-order optimizers of ``torch.optim`` and, with the extra ``optimizers``, some of
``pytorch_optimizer``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, final

import torch
from torch import Tensor

from fedpisa.components import listed, nearest, one_line
from fedpisa.typing import Step

LEFT_OUT: Final = {
    "lbfgs": "it evaluates the loss several times per step, but a round has one gradient",
    "sparse-adam": "it takes sparse gradients only",
}
"""Optimizers of torch that are not supported, each with the reason."""

EXTRA: Final = {
    "adabelief": "AdaBelief", "adabound": "AdaBound", "adam-mini": "AdamMini", "adamp": "AdamP", "adan": "Adan",
    "ademamix": "AdEMAMix", "adopt": "ADOPT", "came": "CAME", "diffgrad": "DiffGrad", "lamb": "Lamb",
    "laprop": "LaProp", "lars": "LARS", "lion": "Lion", "madgrad": "MADGRAD", "mars": "MARS",
    "muon-adamw": "Muon", "novograd": "NovoGrad", "padam": "PAdam", "prodigy": "Prodigy", "qhadam": "QHAdam",
    "ranger": "Ranger", "shampoo": "Shampoo", "soap": "SOAP", "tiger": "Tiger", "yogi": "Yogi",
}  # fmt: skip
"""Optimizers of ``pytorch_optimizer``. ``muon-adamw`` is its Muon, which uses AdamW for all but matrices."""


@final
@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its options, not yet bound to parameters.

    Parameters
    ----------
    name
        The class in lower case: ``sgd``, ``adam``, ``adamw``, ...
    options
        Arguments of the class; omitted ones have the class's defaults.
    rate
        Factor of the learning rate. It is applied to the finished optimizer, as torch's schedulers do.

    Raises
    ------
    ValueError
        If there is no such optimizer, or it does not accept the options.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> Optimizer("sgd", {"lr": 0.1, "momentum": 0.9}).create([weight]).defaults["momentum"]
    0.9
    """

    family: ClassVar[str] = "optimizer"
    name: str = "sgd"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rate: Annotated[float, Step(key="learning-rate")] = 1.0

    def __post_init__(self) -> None:
        if self.rate != 1 and self.name == "rprop":
            raise ValueError(
                "optimizer 'rprop' adapts its step sizes itself: remove the schedule, which has no effect"
            )
        # FedSGD's default is valid. Creating it would import torch's compiler, one second in each process.
        if (self.name, self.options) != ("sgd", {"lr": 0.1}):
            self.create([torch.nn.Parameter(torch.zeros(1, 1))])

    def create(
        self, parameters: Mapping[str, torch.nn.Parameter] | Iterable[torch.nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Return the optimizer, bound to the parameters."""
        if not isinstance(parameters, Mapping):
            parameters = {str(number): parameter for number, parameter in enumerate(parameters)}
        classes = optimizer_classes()
        if self.name not in classes:
            reason = missing(self.name) or nearest(self.name, classes)
            raise ValueError(
                f"no optimizer {self.name!r}{reason} (available: {listed(classes, 'optimizer')})"
            )
        try:
            return classes[self.name](_bundled(self.name, parameters), **self.options)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"optimizer {self.name!r} refuses: {one_line(error)}") from error

    def step(
        self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Take one step; return the new parameters and the new memory.

        Parameters
        ----------
        params, gradients
            Parameters and gradients by name.
        memory
            Memory from the previous step, empty before the first.

        Raises
        ------
        ValueError
            If the optimizer does not accept the parameters, or its memory cannot be stored as tensors.

        Examples
        --------
        >>> momentum = Optimizer("sgd", {"lr": 1.0, "momentum": 0.5})
        >>> w, g = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> w, memory = momentum.step(w, g, {})
        >>> momentum.step(w, g, memory)
        ({'w': tensor([-2.5000])}, {'w/momentum_buffer': tensor([1.5000])})
        """
        bound = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
        for name, gradient in gradients.items():
            bound[name].grad = gradient.clone()
        optimizer = self.create(bound)
        if self.rate != 1:
            for group in optimizer.param_groups:
                group["lr"] *= self.rate
        # The memory includes the entries of a group that the step changes or adds, such as counters.
        fresh = [dict(group) for group in optimizer.param_groups]
        names = {parameter: name for name, parameter in bound.items()}
        try:
            _restore(optimizer, bound, memory)
            optimizer.step()
            kept = dict(_kept(optimizer, names, fresh))
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"optimizer {self.name!r} cannot train this model: {one_line(error)}") from error
        return {name: parameter.detach() for name, parameter in bound.items()}, kept


def missing(name: str) -> str:
    """Return why an optimizer is not available, or an empty string if the reason is unknown.

    Examples
    --------
    >>> missing("sparse-adam")
    ': it takes sparse gradients only'
    """
    if name in LEFT_OUT:
        return f": {LEFT_OUT[name]}"
    if name in EXTRA and name not in optimizer_classes():
        return ": it is pytorch_optimizer's, which is not installed; pip install 'fedpisa[optimizers]'"
    return ""


@functools.cache
def optimizer_classes() -> Mapping[str, type[torch.optim.Optimizer]]:
    """Return the optimizers of the installed packages by name."""
    found = {
        _name(name): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        package = importlib.import_module("pytorch_optimizer")
        # Where both packages have a name, torch's class is used.
        found = {name: getattr(package, cls) for name, cls in EXTRA.items() if hasattr(package, cls)} | found
    return {name: found[name] for name in sorted(found) if name not in LEFT_OUT}


def _bundled(name: str, parameters: Mapping[str, torch.nn.Parameter]) -> Any:
    """Return the parameters in the form that the optimizer expects as first argument."""
    if name == "adam-mini":
        return _Named(parameters)
    if name == "muon-adamw":
        matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
        groups = [{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}]
        return [group for group in groups if group["params"]]
    return list(parameters.values())


@final
class _Named(torch.nn.Module):
    """A module that consists of named parameters alone."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self._named = parameters

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield names, which may contain dots, and parameters."""
        yield from self._named.items()


# ------------------------------------------------------------------------------------------------ memory

_GROUP: Final = "<group>"
_SHARED: Final = "<shared>"
_KINDS: Final = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _kept(
    optimizer: torch.optim.Optimizer,
    names: Mapping[torch.nn.Parameter, str],
    fresh: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the memory of each parameter, the shared memory, and the groups' entries that differ from ``fresh``."""
    for owner, value in optimizer.state.items():
        if isinstance(owner, torch.nn.Parameter):
            for key, item in value.items():
                yield from _pack(f"{names[owner]}/{key}", item)
        else:
            yield from _pack(f"{_SHARED}/{owner}", value)
    for number, (group, before) in enumerate(zip(optimizer.param_groups, fresh, strict=True)):
        for key, item in group.items():
            changed = key not in before or isinstance(item, Tensor) or item != before[key]
            if key != "params" and changed:
                yield from _pack(f"{number}{_GROUP}/{key}", item)


def _restore(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    memory: Mapping[str, Tensor],
) -> None:
    """Write a memory into an optimizer."""
    for path in dict.fromkeys("/".join(path.partition(":")[0].split("/")[:2]) for path in memory):
        owner, _, key = path.partition("/")
        value = _unpack(path, memory)
        if owner == _SHARED:
            optimizer.state[key] = value  # type: ignore[index]
        elif owner.endswith(_GROUP):
            optimizer.param_groups[int(owner.removesuffix(_GROUP))][key] = value
        else:
            optimizer.state[parameters[owner]][key] = value


def _pack(path: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Yield a value as named tensors; the name of a value that is not a tensor ends in its type.

    Examples
    --------
    >>> dict(_pack("step", 3)), [name for name, _ in _pack("bases", [None, torch.eye(1)])]
    ({'step:int': tensor(3)}, ['bases:list', 'bases/0:NoneType', 'bases/1'])
    """
    kind = type(value)
    typed = f"{path}:{kind.__name__}"
    if isinstance(value, Tensor):
        yield path, value
    elif value is None:
        yield typed, torch.zeros(0)
    elif kind in _KINDS:
        yield typed, torch.tensor(value, dtype=_KINDS[kind])
    elif isinstance(value, list | tuple) and kind in (list, tuple):
        yield typed, torch.tensor(len(value))
        for number, item in enumerate(value):
            yield from _pack(f"{path}/{number}", item)
    else:
        raise ValueError(f"its memory has a {kind.__name__} ({path}), which cannot be stored as tensors")


def _unpack(path: str, memory: Mapping[str, Tensor]) -> object:
    """Return the value that `_pack` stored under ``path``.

    Examples
    --------
    >>> _unpack("bases", dict(_pack("bases", [None, (1, 0.5), True, []])))
    [None, (1, 0.5), True, []]
    """
    if path in memory:
        return memory[path]
    if f"{path}:NoneType" in memory:
        return None
    for kind in (list, tuple):
        length = memory.get(f"{path}:{kind.__name__}")
        if length is not None:
            return kind(_unpack(f"{path}/{number}", memory) for number in range(int(length)))
    return next(
        memory[name].item() for name in (f"{path}:{kind.__name__}" for kind in _KINDS) if name in memory
    )


def _name(class_name: str) -> str:
    return "sparse-adam" if class_name == "SparseAdam" else class_name.lower()
