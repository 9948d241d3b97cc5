"""Flat keys as they are written: in a TOML file, with the options of a class in a table, and with mistakes."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any, cast

from fedpisa import components, families
from fedpisa.components import Component
from fedpisa.config.flat_options import option_of


def read_toml(path: str | os.PathLike[str]) -> dict[str, object]:
    """Return the keys of a TOML file.

    Raises
    ------
    ValueError
        If the file cannot be read or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        reason = error.strerror or components.one_line(error)
        raise ValueError(f"cannot read the configuration {os.fspath(path)!r}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not TOML: {components.one_line(error)}") from error


def flatten(values: Mapping[str, object], table: str = "") -> dict[str, object]:
    """Return the keys in kebab-case, with the options of a table as ``table.option``.

    Raises
    ------
    ValueError
        If a key is given twice, or is not a string.

    Examples
    --------
    >>> flatten({"num_clients": 3, "optimizer-options": {"betas": [0.5, 0.999]}})
    {'num-clients': 3, 'optimizer-options.betas': [0.5, 0.999]}
    """
    result: dict[str, object] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"key {name!r} is not a string: write the name of a key")
        key = table + name.rstrip("_").replace("_", "-")
        is_table = isinstance(value, Mapping) and key.endswith("-options") and not table
        for flat_key, item in (flatten(cast(Any, value), f"{key}.") if is_table else {key: value}).items():
            if flat_key in result:
                raise ValueError(f"key {flat_key!r} is given twice: give it once")
            result[flat_key] = item
    return result


def nest(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the keys with their options in tables, the reverse of `flatten`.

    Examples
    --------
    >>> nest({"num-clients": 3, "optimizer-options.eps": 1e-8, "optimizer-options.betas": [0.5, 0.999]})
    {'num-clients': 3, 'optimizer-options': {'eps': 1e-08, 'betas': [0.5, 0.999]}}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        table, dot, option = name.partition(".")
        if dot:
            result.setdefault(table, {})[option] = value
        else:
            result[name] = value
    return result


def key_error(name: str, value: object, valid: list[str], chosen: list[Component]) -> str:
    """Return the error message for a key that is not valid among the options."""
    if isinstance(value, Mapping) and not families.owners(name):
        return f"[{name}] is a table, and keys are flat: write its keys without it"
    if name in valid:
        return f"key {name!r} belongs to the run and is among the options too: remove it from the options"
    table, dot, option = name.partition(".")
    if options := [option_of(key) for key in valid if key.startswith(f"{table}.")]:
        if not dot:
            return f"key {name!r} = {components.show(value)}: must be a table of {', '.join(options)}"
        fix = (
            f"; it is a key: write it without {table}"
            if option in valid
            else components.nearest(option, options)
        )
        return f"unknown option {option!r} of {table}{fix} (options: {', '.join(options)})"
    users = families.owners(table)
    if not users:
        meant = components.SYNONYMS.get(components.kebab(table), ())
        if not {*meant} & {*valid} and (
            elsewhere := "".join(families.used_elsewhere(k, chosen) for k in meant[:1])
        ):
            return f"unknown key {table!r}: {elsewhere}"
        return f"unknown key {table!r}{components.nearest(table, valid)} (all keys: fedpisa list)"
    for family in ("model", "task"):
        if list(users) == [family] and all(part.family != family for part in chosen):
            names = f"{family}s {', '.join(users[family])}"
            return f"key {table!r} is used by the {names}: set the key {family!r} too"
    return families.used_elsewhere(table, chosen)
