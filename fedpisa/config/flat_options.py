"""The old flat names of options: ``eps`` for what is now ``optimizer-options.eps``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Iterable, Mapping

from fedpisa.components import show


def option_of(key: str) -> str:
    """Return the option that a key in a table sets, empty for a key that is in no table.

    Examples
    --------
    >>> option_of("optimizer-options.eps"), option_of("sigma")
    ('eps', '')
    """
    return key.partition(".")[2]


def flat_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the keys that are options, by their old flat names.

    Examples
    --------
    >>> flat_names(["sigma", "optimizer-options.eps"])
    {'eps': 'optimizer-options.eps'}
    """
    return {option_of(key): key for key in keys if option_of(key)}


def in_tables(values: Mapping[str, object], valid: Collection[str]) -> dict[str, object]:
    """Return the values under their present names, with a warning that shows how to write the old ones.

    Parameters
    ----------
    values
        Values by key; options may have their old flat names.
    valid
        All valid keys. A flat name that is itself a valid key is not an old one.

    Raises
    ------
    ValueError
        If an option is given under both names.
    """
    names = flat_names(valid)
    renamed = {old: names[old] for old in values if old in names and old not in valid}
    tables: dict[str, list[str]] = {}
    for old, new in renamed.items():
        if new in values:
            raise ValueError(
                f"{old} = {show(values[old])} and {new} = {show(values[new])} set the same option: remove {old}"
            )
        tables.setdefault(new.partition(".")[0], []).append(f"{old} = {show(values[old])}")
    if renamed:
        lines = [f"{table} = {{{', '.join(options)}}}" for table, options in tables.items()]
        _warn_once(
            f"{', '.join(renamed)} {'is an option' if len(renamed) == 1 else 'are options'} and no longer flat: "
            f"write {' and '.join(lines)}"
        )
    return {renamed.get(name, name): value for name, value in values.items()}


@functools.cache
def _warn_once(text: str) -> None:
    """Warn once in a process, which reads a run's keys several times."""
    warnings.warn(text, FutureWarning, stacklevel=1)
