"""Components and their keys, as signatures and docstrings describe them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final, get_args, get_origin

from fedpisa.components.names import kebab, name_of, one_line

INJECTED: Final = frozenset(
    {
        "seed", "data_dir", "num_clients", "rng", "labels", "groups", "shape", "num_outputs",
        "rounds_done", "num_rounds", "clients_S", "server_round", "num_log_stds",
    }
)  # fmt: skip
"""Parameters that a run passes to a component by name; they are not keys."""

PART: Final = "part"
"""Family of a dataclass inside a component, which a configuration cannot name."""


@final
class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()
"""Marker of a key without default."""


@final
@dataclass(frozen=True)
class Key:
    """A setting of a configuration: its kebab-case name, annotation, default and meaning.

    An ``option`` is a parameter of another library's component. It belongs to the table of options of the key that
    selects the component, such as ``optimizer-options.betas`` for ``optimizer``.

    A key with a ``family`` is a table whose entries are components of this family: names, or tables of a name and keys.
    """

    name: str
    annotation: object = Any
    default: object = REQUIRED
    doc: str = ""
    option: bool = False
    family: str = ""


@final
@dataclass(frozen=True)
class Parameter:
    """One parameter of a component's factory.

    It is one of four kinds: a plain value (``key`` alone), a component of another family that the key's value names
    (``key`` and ``family``), a dataclass whose keys count as keys of the component (``nested`` alone), or an injected
    parameter (none of these).
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

    ``read`` returns the arguments that made an object of the factory. A dataclass needs no ``read``.
    """

    family: str
    name: str
    factory: Callable[..., object]
    summary: str = ""
    parameters: tuple[Parameter, ...] = ()
    read: Callable[[Any], Mapping[str, object]] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.family} {self.name!r}"


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
        Family of the component and its name for users.
    factory
        A function, a dataclass or another class. Its parameters are keys, except the injected ones.
    like
        Object of the factory whose values become the defaults.
    injected
        Names of the parameters that are not keys.

    Examples
    --------
    >>> def ring(shape: tuple[int, ...], num_outputs: int, *, width: int = 3) -> object:
    ...     '''Make a ring.'''
    >>> component = inspect_component("model", "ring", ring)
    >>> component.summary, [parameter.key.name for parameter in component.parameters if parameter.key]
    ('Make a ring.', ['width'])
    """
    # A dataclass inherits fields and their descriptions.
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
    if family := _family_of_entries(annotation):
        if isinstance(default, Mapping):
            default = {entry: _entry(item) for entry, item in default.items()}
        return Parameter(name, Key(kebab(name), _ENTRIES, default, doc, family=family))
    part = annotation if dataclasses.is_dataclass(annotation) else type(default)
    if isinstance(part, type) and dataclasses.is_dataclass(part):
        like = None if default is REQUIRED else default
        return Parameter(name, nested=inspect_component(PART, name_of(part), part, like=like))
    return Parameter(name, Key(kebab(name), annotation, default, doc))


_ENTRIES: Final = dict[str, str | dict[str, Any]]


def _family_of_entries(annotation: object) -> str:
    """Return the family of a mapping's components, "" for another annotation."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Mapping:
            family = getattr(get_args(kind)[1], "family", "")
            return family if isinstance(family, str) else ""
    return ""


def _entry(part: Any) -> dict[str, object]:
    """Return a component as an entry of a table."""
    keys = {kebab(item.name): getattr(part, item.name) for item in dataclasses.fields(part)}
    return {"name": name_of(part), **keys}


def _signature(
    factory: Callable[..., object], injected: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    """Yield name, annotation and default of each parameter."""
    if isinstance(factory, type) and dataclasses.is_dataclass(factory):
        yield from _fields(factory, injected)
        return
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    made_by = getattr(factory, "__init__", None) if isinstance(factory, type) else inspect.unwrap(factory)
    namespace = getattr(made_by, "__globals__", {})
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            # The annotation of an injected parameter is not needed, and may name what only type checkers import.
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
    except Exception as error:  # an annotation can be any expression
        raise ValueError(
            f"the annotation {annotation!r} of {getattr(factory, '__name__', factory)} cannot be evaluated "
            f"({one_line(error)}): import what it names at the top of the module"
        ) from error


def _docstring(part: object) -> str:
    text = inspect.cleandoc(getattr(part, "__doc__", None) or "")
    # The generated docstring of a dataclass is only its signature.
    return "" if text.startswith(f"{getattr(part, '__name__', '')}(") else text


def parameter_docs(text: str) -> dict[str, str]:
    """Return the description of each parameter from the "Parameters" section of a numpy-style docstring.

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
