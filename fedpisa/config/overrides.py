"""Keys of a run as text, ``key=value key=value``."""

from __future__ import annotations

import re
import tomllib
from typing import Final

from fedpisa import components

_STRING: Final = r"""(?:"(?:\\.|[^"\\])*"|'[^']*')"""
_INNER: Final = rf"""\{{(?:{_STRING}|[^{{}}"'])*\}}"""
_OVERRIDE: Final = re.compile(
    rf"""\s*(?P<key>[\w.-]+)\s*=\s*(?P<value>{_STRING}|\[(?:{_STRING}|[^]"'])*\]|\{{(?:{_STRING}|{_INNER}|[^{{}}"'])*\}}"""
    r"""|[^\s"'\[{]\S*)(?=\s|$)"""
)


def parse_overrides(text: str) -> dict[str, object]:
    """Return the keys of ``key=value key=value``, as in Flower's ``--run-config``.

    Values are TOML; a bare word is a string.

    Raises
    ------
    ValueError
        If the text does not have this form.

    Examples
    --------
    >>> parse_overrides("sigma=0.5 batch-size=full widths=[64, 32] data-dir='my data' bias=false")
    {'sigma': 0.5, 'batch-size': 'full', 'widths': [64, 32], 'data-dir': 'my data', 'bias': False}
    """
    values: dict[str, object] = {}
    position, text = 0, text.rstrip()
    while position < len(text):
        found = _OVERRIDE.match(text, position)
        if not found:
            raise ValueError(
                f"cannot read {components.printable(text[position:].strip())!r}: write key=value key=value, "
                "and quote a value with spaces"
            )
        key, value = found["key"], found["value"]
        if key in values:
            raise ValueError(f"key {key!r} is given twice: give it once")
        try:
            values[key] = tomllib.loads(f"value = {value}")["value"]
        except ValueError as error:  # Python limits the digits of a number, too
            if value[0] in "\"'[{" or not isinstance(error, tomllib.TOMLDecodeError):
                raise ValueError(f"the value of {key!r} is not TOML: {components.one_line(error)}") from error
            values[key] = value
        except RecursionError:
            raise ValueError(f"the value of {key!r} is nested too deeply") from None
        position = found.end()
    return values
