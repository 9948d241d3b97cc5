"""Finding the parts of a run by name: algorithms, datasets, partitioners, models, ...

There is no registry. A *component* is a public function or a frozen dataclass that lives in the package of
its *family*; its *keys* are its own parameters, so that what a configuration may say is written down once,
in the signature. ``module:attribute`` names a component of the user's.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import operator
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any, Final, final

import pydantic
import pydantic_core

INJECTED: Final = frozenset(
    {
        "seed", "data_dir", "num_clients", "rng", "labels", "groups", "shape", "num_outputs",
        "rounds_done", "num_rounds", "clients_S", "server_round",
    }
)  # fmt: skip
"""Parameters that the run fills in where a signature names them; they are not keys."""


@final
class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()
"""The default of a key that has none."""


@final
@dataclass(frozen=True)
class Key:
    """One thing that a configuration can set: its kebab-case name, annotation, default and meaning."""

    name: str
    annotation: object = Any
    default: object = REQUIRED
    doc: str = ""


@final
@dataclass(frozen=True)
class Parameter:
    """One parameter of a component's factory.

    It is a plain value (only ``key``), a component of another family that the key's value names (``key`` and
    ``family``), a dataclass whose keys are the whole's own (only ``nested``), or injected (none of these).
    """

    name: str
    key: Key | None = None
    family: str | None = None
    nested: Component | None = None
    default: object = REQUIRED


@final
@dataclass(frozen=True)
class Component:
    """A named part of a run.

    ``read`` takes a finished object apart: it gives the arguments that the factory was called with. A
    dataclass does without.
    """

    family: str
    name: str
    factory: Callable[..., object]
    summary: str = ""
    parameters: tuple[Parameter, ...] = ()
    read: Callable[[Any], Mapping[str, object]] | None = field(default=None, repr=False)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys, with those of the parts that are chosen by default."""
        return tuple(keys_of(self).values())

    def __str__(self) -> str:
        return f"{self.family} {self.name!r}"


# ------------------------------------------------------------------------------------------------ names


def kebab(name: str) -> str:
    """Return the name that users see for a Python name.

    Examples
    --------
    >>> kebab("label_dirichlet"), kebab("NewtonSchulz"), kebab("RMSProp"), kebab("lambda_")
    ('label-dirichlet', 'newton-schulz', 'rmsprop', 'lambda')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name.rstrip("_")).replace("_", "-").lower()


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate nearest to a misspelt name, or nothing.

    Examples
    --------
    >>> nearest("sigm", ["rho", "sigma"])
    "; did you mean 'sigma'?"
    """
    close = difflib.get_close_matches(kebab(name), list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def name_of(part: object) -> str:
    """Return the component name of a class or an instance: its own ``name``, or else its class's.

    Examples
    --------
    >>> class NewtonSchulz: ...
    >>> name_of(NewtonSchulz()), name_of(NewtonSchulz)
    ('newton-schulz', 'newton-schulz')
    """
    own = getattr(part, "name", None)
    return own if isinstance(own, str) else kebab((part if isinstance(part, type) else type(part)).__name__)


# --------------------------------------------------------------------------------------------- families


def available(family: str) -> dict[str, Component]:
    """Return the components of a family by name; its modules are imported only now.

    Parameters
    ----------
    family
        ``algorithm``, ``dataset``, ``partitioner``, ``model``, ``preconditioner``, ``optimizer``, ``schedule``,
        ``server-strategy`` or ``differential-privacy``.

    Examples
    --------
    >>> sorted(available("model"))[:3]
    ['leaf-cnn', 'linear', 'logistic']
    """
    return dict(_collected(family))


@functools.cache
def _collected(family: str) -> Mapping[str, Component]:
    if family not in _FAMILIES:
        listed = ", ".join(_FAMILIES)
        raise ValueError(f"unknown family {family!r}{nearest(family, _FAMILIES)} (families: {listed})")
    found = sorted(_FAMILIES[family](), key=lambda component: component.name)
    return MappingProxyType({component.name: component for component in found})


def find(family: str, name: str) -> Component:
    """Return the component of that name, or the user's own for ``module:attribute``.

    A module of the user's may lie in the current directory.

    Raises
    ------
    ValueError
        If there is no such component.

    Examples
    --------
    >>> find("model", "mlp").keys[0].default
    (200, 200)
    >>> find("model", "collections:OrderedDict").name
    'collections:OrderedDict'
    """
    if ":" in name:
        own = inspect_component(family, name, _import_attribute(family, name))
        return _OWN[family](own) if family in _OWN else own
    known = _collected(family)
    found = known.get(name)
    if found is None and family in _FALLBACKS:
        found = _FALLBACKS[family](name, known)
    if found is None:
        listed = ", ".join(known)
        raise ValueError(
            f"unknown {family} {name!r}{nearest(name, known)} "
            f"(available: {listed}; or your own as 'module:attribute')"
        )
    return found


def _import_attribute(family: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # a module of the user's may fail in any way
        raise ValueError(
            f"{family} {name!r} cannot be imported ({type(error).__name__}: {one_line(error)}): write "
            "'module:attribute', with the module installed or in the current directory"
        ) from error
    if not callable(found):
        raise ValueError(f"{family} {name!r} is a {type(found).__name__}: it must be a function or a class")
    return found


def _modules(package: str) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{package}.{info.name}")


def _functions(family: str, modules: Iterable[ModuleType], returns: str) -> Iterator[Component]:
    """Yield the public functions that the modules define and that say they return ``returns``."""
    for module in modules:
        for name, function in vars(module).items():
            defined_here = inspect.isfunction(function) and function.__module__ == module.__name__
            if defined_here and not name.startswith("_"):
                annotation = function.__annotations__.get("return")
                if returns in (annotation, getattr(annotation, "__name__", None)):
                    yield inspect_component(family, kebab(name), function)


def _final_classes(module: ModuleType, base: type) -> Iterator[type]:
    """Yield the final subclasses of ``base`` that a module defines itself."""
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
    from fedpisa.strategies import optimizers

    return optimizers.components()


def _partitioners() -> Iterator[Component]:
    return _functions(
        "partitioner", [importlib.import_module("fedpisa.datasets.partitioners")], "list[Indices]"
    )


def _server_strategies() -> Iterable[Component]:
    from fedpisa.strategies import flower_components

    return flower_components.server_strategies()


def _privacy() -> Iterable[Component]:
    from fedpisa.strategies import flower_components

    return flower_components.wrappers()


_FAMILIES: Final[Mapping[str, Callable[[], Iterable[Component]]]] = {
    "algorithm": _algorithms,
    "dataset": lambda: _functions("dataset", _modules("fedpisa.datasets"), "Dataset"),
    "partitioner": _partitioners,
    "model": lambda: _functions("model", _modules("fedpisa.models"), "nn.Module"),
    "preconditioner": _preconditioners,
    "optimizer": _optimizers,
    "schedule": lambda: _functions("schedule", [importlib.import_module("fedpisa.schedules")], "Factor"),
    "pace": lambda: _functions("pace", [importlib.import_module("fedpisa.simulation.devices")], "Pace"),
    "availability": lambda: _functions(
        "availability", [importlib.import_module("fedpisa.simulation.devices")], "Reachable"
    ),
    "server-strategy": _server_strategies,
    "differential-privacy": _privacy,
}

FAMILIES: Final = tuple(_FAMILIES)
"""The names of the families."""


def _torchvision_model(name: str, known: Iterable[str]) -> Component | None:
    from fedpisa.models import torchvision_models

    return torchvision_models.find(name, known)


def _missing_optimizer(name: str, known: Iterable[str]) -> None:
    from fedpisa.strategies import optimizers

    if name in optimizers.LEFT_OUT:
        raise ValueError(f"optimizer {name!r} is left out{optimizers.missing(name)}; take another")
    if name in optimizers.EXTRA:
        raise ValueError(f"no optimizer {name!r}{optimizers.missing(name)}")


# Where to look for a name that the family itself does not have.
_FALLBACKS: Final[Mapping[str, Callable[[str, Iterable[str]], Component | None]]] = {
    "model": _torchvision_model,
    "optimizer": _missing_optimizer,
}


def _own_server_strategy(component: Component) -> Component:
    from fedpisa.strategies import flower_components

    return flower_components.own_strategy(component)


# How a user's own part is described, where its signature alone does not say it.
_OWN: Final[Mapping[str, Callable[[Component], Component]]] = {"server-strategy": _own_server_strategy}


# ---------------------------------------------------------------------------------------- introspection


def inspect_component(
    family: str,
    name: str,
    factory: Callable[..., object],
    *,
    like: object = None,
    injected: Collection[str] = INJECTED,
) -> Component:
    """Describe a function or a dataclass by its signature.

    Parameters
    ----------
    family, name
        What the component is and what users call it.
    factory
        A function, a dataclass or another class. Its parameters are keys, except the injected ones.
    like
        An object that the factory made, whose values become the defaults.
    injected
        Names of the parameters that are not keys.

    Examples
    --------
    >>> def ring(shape: tuple[int, ...], num_outputs: int, *, width: int = 3) -> object:
    ...     '''Make a ring.'''
    >>> component = inspect_component("model", "ring", ring)
    >>> component.summary, [key.name for key in component.keys]
    ('Make a ring.', ['width'])
    """
    # A dataclass inherits fields, and what is said about them.
    texts = [_docstring(part) for part in reversed(getattr(factory, "__mro__", (factory,)))]
    docs = {parameter: doc for text in texts for parameter, doc in parameter_docs(text).items()}
    parameters = tuple(
        Parameter(parameter, default=default)
        if parameter in injected
        else _parameter(
            parameter,
            annotation,
            default if like is None else getattr(like, parameter),
            docs.get(parameter, ""),
        )
        for parameter, annotation, default in _signature(factory, injected)
    )
    return Component(family, name, factory, texts[-1].partition("\n")[0].strip(), parameters)


def _parameter(name: str, annotation: object, default: object, doc: str) -> Parameter:
    family = vars(annotation).get("family") if isinstance(annotation, type) else None
    if isinstance(family, str):
        chosen = default if default is REQUIRED else name_of(default)
        return Parameter(name, Key(kebab(name), str, chosen, doc), family, default=default)
    whole = annotation if dataclasses.is_dataclass(annotation) else type(default)
    if isinstance(whole, type) and dataclasses.is_dataclass(whole):
        like = None if default is REQUIRED else default
        return Parameter(name, nested=inspect_component("part", name_of(whole), whole, like=like))
    return Parameter(name, Key(kebab(name), annotation, default, doc))


def _signature(
    factory: Callable[..., object], injected: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    """Yield name, annotation and default of each parameter."""
    if isinstance(factory, type) and dataclasses.is_dataclass(factory):
        yield from _fields(factory, injected)
        return
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a builtin that does not tell its parameters
        return
    made_by = getattr(factory, "__init__", None) if isinstance(factory, type) else inspect.unwrap(factory)
    namespace = getattr(made_by, "__globals__", {})
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            # The annotation of an injected one is not needed, and may name what only type checkers import.
            annotation = Any if name in injected else _evaluate(parameter.annotation, namespace, factory)
            yield name, annotation, REQUIRED if parameter.default is parameter.empty else parameter.default


def _fields(cls: type, injected: Collection[str]) -> Iterator[tuple[str, object, object]]:
    assert dataclasses.is_dataclass(cls)
    for item in dataclasses.fields(cls):
        if item.init:
            owner = next(base for base in cls.__mro__ if item.name in vars(base).get("__annotations__", {}))
            namespace = vars(sys.modules[owner.__module__])
            annotation = Any if item.name in injected else _evaluate(item.type, namespace, cls)
            default: object = REQUIRED
            if item.default is not dataclasses.MISSING:
                default = item.default
            elif item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            yield item.name, annotation, default


def _evaluate(annotation: object, namespace: Mapping[str, object], factory: object) -> object:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(namespace))
    except Exception as error:  # an annotation is any expression
        raise ValueError(
            f"the annotation {annotation!r} of {getattr(factory, '__name__', factory)} cannot be evaluated "
            f"({one_line(error)}): import what it names at the top of the module"
        ) from error


def _docstring(part: object) -> str:
    text = inspect.cleandoc(getattr(part, "__doc__", None) or "")
    # The docstring that a dataclass writes itself is only its signature.
    return "" if text.startswith(f"{getattr(part, '__name__', '')}(") else text


def parameter_docs(text: str) -> dict[str, str]:
    """Return what the "Parameters" section of a numpy-style docstring says about each parameter.

    Examples
    --------
    >>> docs = parameter_docs(inspect.getdoc(inspect_component))
    >>> docs["injected"]
    'Names of the parameters that are not keys.'
    """
    section = re.search(r"^Parameters\n-{3,}\n(.*?)(?=^\S[^\n]*\n-{3,}\n|\Z)", text, re.M | re.S)
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.partition(":")[0].split(",")]
        elif line.strip():
            docs |= {name: f"{docs.get(name, '')} {line.strip()}".strip() for name in names}
    return docs


# --------------------------------------------------------------------------------------- keys and values

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


def keys_of(component: Component, values: Mapping[str, object] = _NOTHING) -> dict[str, Key]:
    """Return the keys of a component and of the parts that ``values`` choose.

    Examples
    --------
    >>> list(keys_of(find("model", "logistic")))
    ['bias']
    """
    keys: dict[str, Key] = {}
    for parameter in component.parameters:
        if parameter.key:
            keys[parameter.key.name] = parameter.key
        part = _part(parameter, values)
        if part:
            keys |= keys_of(part, values)
    return keys


def _part(parameter: Parameter, values: Mapping[str, object]) -> Component | None:
    """Return the component that makes a parameter's value, for a parameter that is not a plain value."""
    if parameter.family is None or parameter.key is None:
        return parameter.nested
    name = values.get(parameter.key.name)
    if name is None:
        name = parameter.key.default
    if not isinstance(name, str):
        raise ValueError(
            f"key {parameter.key.name!r} = {show(name)}: must be the name of one of "
            f"{', '.join(_collected(parameter.family))}"
        )
    chosen = find(parameter.family, name)
    if name != parameter.key.default or parameter.default is REQUIRED:
        return chosen
    if chosen.read is None:
        return inspect_component(chosen.family, name, chosen.factory, like=parameter.default)
    return _with_defaults(chosen, chosen.read(parameter.default))


def _with_defaults(component: Component, arguments: Mapping[str, object]) -> Component:
    parameters = tuple(
        dataclasses.replace(item, key=dataclasses.replace(item.key, default=arguments[item.name]))
        if item.key and item.name in arguments
        else item
        for item in component.parameters
    )
    return dataclasses.replace(component, parameters=parameters)


def check(key: Key, value: object) -> object:
    """Return a value converted to a key's annotation.

    Numbers written as integers are fine for a float; ``true`` is not a number and neither is a string.

    Raises
    ------
    ValueError
        If the value does not fit, in one line that says what would.

    Examples
    --------
    >>> check(Key("widths", tuple[int, ...]), [32, 16])
    (32, 16)
    >>> check(Key("sigma", float), 1)
    1.0
    >>> check(Key("sigma", float), "1")
    Traceback (most recent call last):
    ...
    ValueError: key 'sigma' = '1': must be a valid number
    """
    given = plain(value)
    if isinstance(given, float) and math.isnan(given):
        raise ValueError(f"key {key.name!r} = nan: must be a number")
    try:
        # JSON's strict rules are right for TOML: integers do for floats, arrays for tuples, and that is all.
        text = pydantic_core.to_json(given, inf_nan_mode="constants")
        return _adapter(key.annotation).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        wanted = dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors())
        raise ValueError(f"key {key.name!r} = {show(given)}: must be {' or '.join(wanted)}") from None
    except pydantic_core.PydanticSerializationError:
        raise ValueError(
            f"key {key.name!r}: a value of type {type(value).__name__} cannot be configured"
        ) from None


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return pydantic.TypeAdapter(annotation)
    return pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(arbitrary_types_allowed=True))


def plain(value: object) -> object:
    """Return a value as TOML would hold it: tuples as lists, NumPy's numbers as numbers, paths as strings.

    Examples
    --------
    >>> plain({"widths": (200, 100)})
    {'widths': [200, 100]}
    """
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        numbers: object = value.tolist()
        return numbers
    return value


def settle(component: Component, values: Mapping[str, object]) -> dict[str, object]:
    """Return the checked value of every key of a component, with defaults filled in.

    ``None`` stands for the default.

    Raises
    ------
    ValueError
        For an unknown key, a bad value, or a key without default that is not given.

    Examples
    --------
    >>> settle(find("model", "mlp"), {"widths": [64]})
    {'widths': (64,)}
    """
    given = {name: value for name, value in values.items() if value is not None}
    keys = keys_of(component, given)
    for name in given:
        if name not in keys:
            users = used_elsewhere(name, parts_of(component, given))
            takes = f"it takes: {', '.join(keys)}" if keys else "it takes no keys"
            raise ValueError(
                f"{users}; {takes}"
                if users
                else f"unknown key {name!r} for {component}{nearest(name, keys)} ({takes})"
            )
    for name, key in keys.items():
        if key.default is REQUIRED and name not in given:
            meaning = f" ({key.doc.rstrip('.')})" if key.doc else ""
            raise ValueError(f"{component} needs the key {name!r}{meaning}, which has no default: set it")
    return {name: check(key, given[name]) if name in given else key.default for name, key in keys.items()}


def parts_of(component: Component, values: Mapping[str, object] = _NOTHING) -> list[Component]:
    """Return a component and the components that its keys choose.

    Examples
    --------
    >>> [str(part) for part in parts_of(find("algorithm", "sisa"), {"preconditioner": "rmsprop"})]
    ["algorithm 'sisa'", "preconditioner 'rmsprop'"]
    """
    found = [component] if component.family in _FAMILIES else []
    for parameter in component.parameters:
        part = _part(parameter, values)
        found += parts_of(part, values) if part else []
    return found


def owners(name: str) -> dict[str, list[str]]:
    """Return, by family, the components that have a key of that name.

    Examples
    --------
    >>> owners("bias")
    {'model': ['linear', 'logistic']}
    """
    found = {
        family: [owner for owner, component in available(family).items() if name in keys_of(component)]
        for family in FAMILIES
    }
    return {family: names for family, names in found.items() if names}


def used_elsewhere(name: str, chosen: Iterable[Component]) -> str:
    """Say which components, other than the chosen ones, have a key of that name; empty if none has.

    Examples
    --------
    >>> used_elsewhere("widths", [find("model", "linear")])
    "key 'widths' is not used by model 'linear' (but by mlp)"
    """
    found = owners(name)
    if not found:
        return ""
    others = [
        f"{part} (but by {', '.join(found[part.family])})"
        for part in chosen
        if part.family in found and part.name not in found[part.family]
    ]
    if others:
        return f"key {name!r} is not used by {' or '.join(others)}"
    everywhere = [f"{family} {', '.join(names)}" for family, names in found.items()]
    return f"key {name!r} is only used by {' and '.join(everywhere)}"


def resolve(component: Component, values: Mapping[str, object] = _NOTHING) -> dict[str, object]:
    """Return the value of every key, defaults filled in, as TOML would hold it (``None`` is left out).

    Examples
    --------
    >>> resolve(find("model", "mlp"))
    {'widths': [200, 200]}
    """
    settled = {name: plain(value) for name, value in settle(component, values).items()}
    return {name: value for name, value in settled.items() if not _has_none(value)}


def _has_none(value: object) -> bool:
    """Tell whether a plain value holds a None, which TOML cannot write; only a default can."""
    return value is None or (isinstance(value, list) and any(map(_has_none, value)))


def build(component: Component, values: Mapping[str, object] = _NOTHING, **injected: object) -> Any:
    """Make what a component describes: call its factory with the checked values of its keys.

    Parameters
    ----------
    component
        What to make.
    values
        Values by key; keys that are left out, or ``None``, take their defaults.
    injected
        Values of the run that are handed over where a signature names them, such as ``seed``.

    Raises
    ------
    ValueError
        For an unknown key, a bad value, or a required key or injected value that is missing.

    Examples
    --------
    >>> build(find("model", "linear"), {"bias": True}, shape=(3,), num_outputs=1)[1].bias.shape
    torch.Size([1])
    """
    return bind(component, values)(**injected)


def bind(component: Component, values: Mapping[str, object] = _NOTHING) -> Callable[..., Any]:
    """Check the values of a component's keys, and return what then makes it of injected values; see `build`.

    Examples
    --------
    >>> rule = bind(find("schedule", "step"), {"schedule-every": 2})
    >>> [rule(rounds_done=t, num_rounds=4) for t in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    """
    settled = settle(component, values)
    return lambda **injected: _make(component, settled, injected)


def _make(component: Component, settled: Mapping[str, object], injected: Mapping[str, object]) -> object:
    arguments: dict[str, object] = {}
    for parameter in component.parameters:
        part = _part(parameter, settled)
        if part:
            arguments[parameter.name] = _make(part, settled, injected)
        elif parameter.key:
            arguments[parameter.name] = settled[parameter.key.name]
        elif parameter.name in injected:
            arguments[parameter.name] = injected[parameter.name]
        elif parameter.default is REQUIRED:
            raise ValueError(f"{component} needs {parameter.name!r}, which is not known here")
    return component.factory(**arguments)


def show(value: object) -> str:
    """Return a value as an error message writes it."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def one_line(error: BaseException) -> str:
    r"""Return an error's message without line breaks.

    Examples
    --------
    >>> one_line(ValueError("two\nlines"))
    'two lines'
    """
    return " ".join(str(error).split()) or type(error).__name__
