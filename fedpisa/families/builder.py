"""List the keys of a component and of its parts, check their values, and build the component."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from fedpisa.components.describe import PART, REQUIRED, Component, Key, Parameter, inspect_component
from fedpisa.components.names import kebab, listed, nearest, show
from fedpisa.components.values import check, plain
from fedpisa.families.lookup import FAMILIES, available, find, is_unread

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


def keys_of(component: Component, values: Mapping[str, object] = _NOTHING) -> dict[str, Key]:
    """Return the keys of a component and of the parts that ``values`` choose.

    The options of a part have the name of their table in front, as in ``optimizer-options.betas``.

    Examples
    --------
    >>> list(keys_of(find("model", "logistic")))
    ['bias']
    >>> [name for name in keys_of(find("algorithm", "fedsgd"), {"optimizer": "adamax"}) if "." in name]
    ['optimizer-options.betas', 'optimizer-options.eps']
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
    """Return the component that builds a parameter's value, or None for a plain value."""
    if parameter.family is None or parameter.key is None:
        return parameter.nested
    name = values.get(parameter.key.name)
    if name is None:
        name = parameter.key.default
    if not isinstance(name, str):
        raise ValueError(
            f"key {parameter.key.name!r} = {show(name)}: must be the name of one of "
            f"{', '.join(available(parameter.family))}"
        )
    chosen = _with_options_in(f"{parameter.key.name}-options", find(parameter.family, name))
    if name != parameter.key.default or parameter.default is REQUIRED:
        return chosen
    if chosen.read is None:
        return inspect_component(chosen.family, name, chosen.factory, like=parameter.default)
    return _with_defaults(chosen, chosen.read(parameter.default))


def _with_options_in(table: str, component: Component) -> Component:
    parameters = tuple(
        dataclasses.replace(
            item, key=dataclasses.replace(item.key, name=f"{table}.{item.key.name}", option=False)
        )
        if item.key and item.key.option
        else item
        for item in component.parameters
    )
    return dataclasses.replace(component, parameters=parameters)


def _with_defaults(component: Component, arguments: Mapping[str, object]) -> Component:
    parameters = tuple(
        dataclasses.replace(item, key=dataclasses.replace(item.key, default=arguments[item.name]))
        if item.key and item.name in arguments
        else item
        for item in component.parameters
    )
    return dataclasses.replace(component, parameters=parameters)


def checked_values(component: Component, values: Mapping[str, object]) -> dict[str, object]:
    """Check the values of a component's keys, and fill in the defaults.

    The value ``None`` means the default.

    Raises
    ------
    ValueError
        For an unknown key, a bad value, or a missing key that has no default.

    Examples
    --------
    >>> checked_values(find("model", "mlp"), {"widths": [64]})
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
    return {name: _checked(key, given[name]) if name in given else key.default for name, key in keys.items()}


def _checked(key: Key, value: object) -> object:
    """Check a key's value; the entries of a table of components become tables of all their keys."""
    if not key.family:
        return check(key, value)
    entries = _entries(key, value)
    return {entry: {"name": part.name, **values} for entry, (part, values) in entries.items()} or None


def _entries(key: Key, value: object) -> dict[str, tuple[Component, dict[str, object]]]:
    """Return the components of a table of components, with the values of all their keys."""
    found: dict[str, tuple[Component, dict[str, object]]] = {}
    for entry, given in cast(dict[str, Any], check(key, value)).items():
        table = {"name": given} if isinstance(given, str) else given
        values: dict[str, object] = {kebab(name): item for name, item in table.items()}
        name = values.pop("name", None)
        try:
            if not isinstance(name, str):
                choices = listed(available(key.family), key.family)
                raise ValueError(f"a table needs name = ..., the {key.family}: {choices}")
            part = find(key.family, name)
            found[entry] = part, values if is_unread(part) else resolve(part, values)
        except ValueError as error:
            raise ValueError(f"{key.name} of {entry!r}: {error}") from error
    return found


def parts_of(component: Component, values: Mapping[str, object] = _NOTHING) -> list[Component]:
    """Return a component and the components that its keys choose.

    Examples
    --------
    >>> [str(part) for part in parts_of(find("algorithm", "sisa"), {"preconditioner": "rmsprop"})]
    ["algorithm 'sisa'", "preconditioner 'rmsprop'"]
    """
    found = [component] if component.family != PART else []
    for parameter in component.parameters:
        part = _part(parameter, values)
        found += parts_of(part, values) if part else []
        key = parameter.key
        if key and key.family and (table := values.get(key.name)) is not None:
            found += [one for entry in _entries(key, table).values() for one in parts_of(*entry)]
    return found


def owners(name: str) -> dict[str, list[str]]:
    """Return the components, by family, that have a key or a table of options with this name.

    Examples
    --------
    >>> owners("bias"), owners("optimizer-options")
    ({'model': ['linear', 'logistic']}, {'algorithm': ['fedsgd']})
    """
    found = {
        family: [owner for owner, component in available(family).items() if name in _flat_names(component)]
        for family in FAMILIES
    }
    return {family: names for family, names in found.items() if names}


def _flat_names(component: Component) -> set[str]:
    return {key.name.partition(".")[0] for key in keys_of(component).values() if not key.option}


def used_elsewhere(name: str, chosen: Iterable[Component]) -> str:
    """Return an error text that names the components with a key of this name, or "" if there is none.

    ``chosen`` are the run's components, which do not have the key.

    Examples
    --------
    >>> used_elsewhere("widths", [find("model", "linear")])
    "key 'widths' is not used by model 'linear' (but by mlp, mlp-gan)"
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
    """Return the value of every key as TOML holds it, with defaults filled in and ``None`` left out.

    Examples
    --------
    >>> resolve(find("model", "mlp"))
    {'widths': [200, 200]}
    """
    checked = {name: plain(value) for name, value in checked_values(component, values).items()}
    return {name: value for name, value in checked.items() if not _has_none(value)}


def _has_none(value: object) -> bool:
    """Return whether a plain value contains None, which TOML cannot express. Only defaults do."""
    return value is None or (isinstance(value, list) and any(map(_has_none, value)))


def build(component: Component, values: Mapping[str, object] = _NOTHING, **injected: object) -> Any:
    """Build a component: call its factory with the checked values of its keys.

    Parameters
    ----------
    component
        The component to build.
    values
        Values by key. A key that is missing or ``None`` takes its default.
    injected
        Values of the run, such as ``seed``, for the parameters of the same name.

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
    """Check the values of a component's keys, and return a function of the injected values that builds it.

    Examples
    --------
    >>> rule = bind(find("schedule", "step"), {"schedule-every": 2})
    >>> [rule(rounds_done=t, num_rounds=4) for t in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    """
    checked = checked_values(component, values)
    return lambda **injected: _make(component, checked, injected)


def _make(component: Component, checked: Mapping[str, object], injected: Mapping[str, object]) -> object:
    arguments: dict[str, object] = {}
    for parameter in component.parameters:
        part = _part(parameter, checked)
        if part:
            arguments[parameter.name] = _make(part, checked, injected)
        elif parameter.key:
            arguments[parameter.name] = _built(parameter.key, checked[parameter.key.name], injected)
        elif parameter.name in injected:
            arguments[parameter.name] = injected[parameter.name]
        elif parameter.default is REQUIRED:
            raise ValueError(f"{component} needs {parameter.name!r}, which is not available here")
    return component.factory(**arguments)


def _built(key: Key, value: object, injected: Mapping[str, object]) -> object:
    """Return a key's value, with the components of a table of components built."""
    if not key.family or value is None:
        return value
    entries = _entries(key, value).items()
    return {entry: build(part, values, **injected) for entry, (part, values) in entries}
