"""Values of keys: checks against the annotation, and conversion to TOML's types."""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
import pydantic_core

from fedpisa.components.describe import Key
from fedpisa.components.names import printable, show


def check(key: Key, value: object) -> object:
    """Return a value converted to a key's annotation.

    An integer is valid for a float. Neither a boolean nor a string is valid for a number.

    Raises
    ------
    ValueError
        If the value does not fit, with the values that do.

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
    for number in given if isinstance(given, list) else [given]:
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise ValueError(
                f"key {key.name!r} = {printable(number, 40)}: must be between -2**63 and 2**63 - 1, as in TOML"
            )
    try:
        # The strict rules for JSON are right for TOML: they accept integers for floats and arrays for tuples.
        text = pydantic_core.to_json(given, inf_nan_mode="constants")
        return _adapter(key.annotation).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        # A JSON object is a table in TOML.
        texts = (item["msg"].replace("an object", "a table") for item in error.errors())
        wanted = dict.fromkeys(text.removeprefix("Input should be ") for text in texts)
        raise ValueError(f"key {key.name!r} = {show(given)}: must be {' or '.join(wanted)}") from None
    except pydantic_core.PydanticSerializationError:
        raise ValueError(
            f"key {key.name!r}: a value of type {type(value).__name__} cannot be configured"
        ) from None


def fits_float32(value: object) -> bool:
    """Return whether the numbers of a value stay finite, and other than 0, as float32.

    Examples
    --------
    >>> [fits_float32(value) for value in (0.1, 0.0, math.inf, 1e39, [0.5, 1e-50])]
    [True, True, True, False, False]
    """
    if isinstance(value, Mapping):
        return all(map(fits_float32, value.values()))
    if isinstance(value, list | tuple):
        return all(map(fits_float32, value))
    if not isinstance(value, float) or not math.isfinite(value):
        return True
    try:
        return value == 0 or struct.unpack("<f", struct.pack("<f", value))[0] != 0
    except OverflowError:
        return False


def are_distinct(values: Iterable[object]) -> bool:
    """Return whether no value is listed twice; ``1`` and ``1.0`` are the same number.

    Examples
    --------
    >>> are_distinct([1, True, "1", [1]]), are_distinct([0.5, 1, 1.0])
    (True, False)
    """
    listed = [v if isinstance(v, int | float) and not isinstance(v, bool) else repr(v) for v in values]
    return len(set(listed)) == len(listed)


def total(numbers: Iterable[float]) -> float:
    """Return the sum of finite numbers, rounded once; infinite if it is out of the range of floats.

    Examples
    --------
    >>> total([0.1] * 10), total([1e308, 1e308])
    (1.0, inf)
    """
    listed = list(numbers)
    try:
        return math.fsum(listed)
    except OverflowError:
        return sum(listed)


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    is_dataclass = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
    config = None if is_dataclass else pydantic.ConfigDict(arbitrary_types_allowed=True)
    return pydantic.TypeAdapter(annotation, config=config)


def plain(value: object) -> object:
    """Return a value in TOML's types: tuples as lists, NumPy's numbers as numbers, paths as strings.

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
