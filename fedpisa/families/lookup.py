"""Find the components of a family by name: those that fedpisa's packages define, and a user's own."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, ModuleType
from typing import Any, Final

from fedpisa.components.describe import Component, inspect_component
from fedpisa.components.names import kebab, listed, name_of, nearest, one_line
from fedpisa.families.permission import RESERVED, current, note_given


def available(family: str) -> dict[str, Component]:
    """Return the components of a family by name. The first call imports the family's modules.

    Parameters
    ----------
    family
        ``algorithm``, ``dataset``, ``partitioner``, ``model``, ``task``, ``preconditioner``, ``optimizer``,
        ``schedule``, ``server-strategy`` or ``differential-privacy``.

    Examples
    --------
    >>> [name for name in available("model") if name.startswith("l")]
    ['leaf-cnn', 'linear', 'logistic', 'lstm']
    """
    return dict(_collected(family))


@functools.cache
def _collected(family: str) -> Mapping[str, Component]:
    if family not in _FAMILIES:
        names = ", ".join(_FAMILIES)
        raise ValueError(f"unknown family {family!r}{nearest(family, _FAMILIES)} (families: {names})")
    found = sorted(_FAMILIES[family](), key=lambda component: component.name)
    return MappingProxyType({component.name: component for component in found})


def find(family: str, name: str) -> Component:
    """Return the component of that name, or a user's component for ``module:attribute``.

    A user's module may lie in the current directory. Within `fedpisa.families.permission.permitted`, a module that is
    not allowed is not imported.

    Raises
    ------
    ValueError
        If there is no such component, its module may not be imported, or it is not what the family needs.

    Examples
    --------
    >>> find("model", "mlp").parameters[-1].key.default
    (200, 200)
    >>> find("model", "torch.nn:Flatten").name
    'torch.nn:Flatten'
    """
    if ":" in name:
        if name.partition(":")[0] in RESERVED:
            raise ValueError(
                f"{family} {name!r}: the prefixes {', '.join(f'{prefix}:' for prefix in RESERVED)} are reserved and "
                f"name no module; this version has no {family} of that name"
            )
        permission = current()
        if permission is not None and permission.reads:
            return Component(family, name, _unread)
        own = inspect_component(family, name, _import_attribute(family, name))
        return _OWN[family](own) if family in _OWN else own
    known = _collected(family)
    found = known.get(name)
    if found is None and family in _FALLBACKS:
        found = _FALLBACKS[family](name, known)
    if found is None:
        raise ValueError(
            f"unknown {family} {name!r}{nearest(name, known)} "
            f"(available: {listed(known, family)}; or your own as 'module:attribute')"
        )
    return found


def is_unread(component: Component) -> bool:
    """Return whether a component is a user's and was not imported; see `READ_ONLY`."""
    return component.factory is _unread


def _unread() -> None:
    raise ValueError(
        "this configuration was read from a result, and your own components in it are not imported: give it to "
        "fedpisa.run, or use fedpisa.load_config(config)"
    )


def _import_attribute(family: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    permission = current()
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    if permission is None:
        note_given(name)
    else:
        with _on_path(permission.folders):
            permission.require(family, name)
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # a user's module may fail in any way
        raise ValueError(
            f"{family} {name!r} cannot be imported ({type(error).__name__}: {one_line(error)}): write "
            "'module:attribute', with the module installed or in the current directory"
        ) from error
    _require_fit(family, name, found, from_file=permission is not None)
    if permission is not None:
        permission.require_own(family, name, found)
    return found


@contextmanager
def _on_path(folders: Iterable[str]) -> Iterator[None]:
    """Put folders at the end of the path on which modules are looked for, and take them off after an error."""
    added = [folder for folder in folders if folder not in sys.path]
    sys.path.extend(added)
    try:
        yield
    except ValueError:
        for folder in added:
            sys.path.remove(folder)
        raise


def _require_fit(family: str, name: str, found: object, from_file: bool) -> None:
    """Raise a ValueError unless a user's own part can be what its family needs; it is not called.

    What is not known before the call is checked after it. A file's classes are checked here, before they do anything.
    """
    python = inspect.isfunction(found) or inspect.ismethod(found)
    built_in = inspect.isroutine(found) and not python
    if isinstance(found, type) and from_file:
        base = _BASES[family]() if family in _BASES else object
        built_in = not found.__flags__ & _HEAP_TYPE
        if not issubclass(found, base):
            raise ValueError(
                f"{family} {name!r} is a class: it must derive from {base.__module__}.{base.__name__}"
            )
    if built_in or not callable(found):
        kind = "built-in of Python" if built_in else type(found).__name__
        raise ValueError(f"{family} {name!r} is a {kind}: it must be a function or a class")


def _modules(package: str) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{package}.{info.name}")


def _functions(family: str, modules: Iterable[ModuleType], *returns: str) -> Iterator[Component]:
    """Yield the public functions that the modules define and whose return annotation is one of ``returns``."""
    for module in modules:
        for name, function in vars(module).items():
            defined_here = inspect.isfunction(function) and function.__module__ == module.__name__
            if defined_here and not name.startswith("_"):
                annotation = function.__annotations__.get("return")
                if {annotation, getattr(annotation, "__name__", None)} & {*returns}:
                    yield inspect_component(family, kebab(name), function)


def _final_classes(module: ModuleType, base: type) -> Iterator[type]:
    """Yield the final subclasses of ``base`` that a module defines and does not only import."""
    for value in vars(module).values():
        defined_here = inspect.isclass(value) and value.__module__ == module.__name__
        if defined_here and issubclass(value, base) and getattr(value, "__final__", False):
            yield value


def _algorithms() -> Iterator[Component]:
    from fedpisa.strategies.base import Algorithm

    for module in _modules("fedpisa.strategies"):
        for cls in _final_classes(module, Algorithm):
            yield inspect_component("algorithm", kebab(module.__name__.rpartition(".")[2]), cls)


def _preconditioners() -> Iterator[Component]:
    from fedpisa.clients.preconditioners import Preconditioner

    for module in _modules("fedpisa.clients.preconditioners"):
        for cls in _final_classes(module, Preconditioner):
            yield inspect_component("preconditioner", name_of(cls), cls)


def _optimizers() -> Iterable[Component]:
    from fedpisa.families import optimizers

    return optimizers.components()


def _partitioners() -> Iterator[Component]:
    return _functions(
        "partitioner", [importlib.import_module("fedpisa.datasets.partitioners")], "list[Indices]"
    )


def _server_strategies() -> Iterable[Component]:
    from fedpisa.families import flower_strategies

    return flower_strategies.server_strategies()


def _privacy() -> Iterable[Component]:
    from fedpisa.families import flower_strategies

    return flower_strategies.wrappers()


_FAMILIES: Final[Mapping[str, Callable[[], Iterable[Component]]]] = {
    "algorithm": _algorithms,
    "dataset": lambda: _functions("dataset", _modules("fedpisa.datasets"), "Dataset"),
    "partitioner": _partitioners,
    "model": lambda: _functions("model", _modules("fedpisa.models"), "nn.Module"),
    "task": lambda: _functions("task", _modules("fedpisa.tasks"), "Criterion", "Objective", "Adversarial"),
    "preconditioner": _preconditioners,
    "optimizer": _optimizers,
    "schedule": lambda: _functions(
        "schedule", [importlib.import_module("fedpisa.strategies.schedules")], "Factor"
    ),
    "pace": lambda: _functions("pace", [importlib.import_module("fedpisa.clients.devices")], "Pace"),
    "availability": lambda: _functions(
        "availability", [importlib.import_module("fedpisa.clients.devices")], "Reachable"
    ),
    "server-strategy": _server_strategies,
    "differential-privacy": _privacy,
}

FAMILIES: Final = tuple(_FAMILIES)
"""The names of the families."""


def _torchvision_model(name: str, known: Iterable[str]) -> Component | None:
    from fedpisa.families import torchvision_models

    return torchvision_models.find(name, known)


def _missing_optimizer(name: str, known: Iterable[str]) -> None:
    from fedpisa.strategies import optimizer

    if name in optimizer.LEFT_OUT:
        raise ValueError(f"optimizer {name!r} is left out{optimizer.missing(name)}; take another")
    if name in optimizer.EXTRA:
        raise ValueError(f"no optimizer {name!r}{optimizer.missing(name)}")


# Where to look for a name that the family does not have.
_FALLBACKS: Final[Mapping[str, Callable[[str, Iterable[str]], Component | None]]] = {
    "model": _torchvision_model,
    "optimizer": _missing_optimizer,
}


def _own_server_strategy(component: Component) -> Component:
    from fedpisa.families import flower_strategies

    return flower_strategies.own_strategy(component)


def _algorithm() -> type:
    from fedpisa.strategies.base import Algorithm

    return Algorithm


def _module() -> type:
    from torch.nn import Module

    return Module


def _preconditioner() -> type:
    from fedpisa.clients.preconditioners import Preconditioner

    return Preconditioner


def _strategy() -> type:
    from flwr.serverapp.strategy import Strategy

    return Strategy


_HEAP_TYPE: Final = 1 << 9
"""Flag of a class that Python code, and not the interpreter, defines."""
_BASES: Final[Mapping[str, Callable[[], type]]] = {
    "algorithm": _algorithm,
    "model": _module,
    "preconditioner": _preconditioner,
    "server-strategy": _strategy,
}
"""The class from which a user's own class must derive; a function may return any object of it."""


# How to describe a user's component where its signature is not enough.
_OWN: Final[Mapping[str, Callable[[Component], Component]]] = {"server-strategy": _own_server_strategy}
