"""Which of a user's modules a configuration may name.

What a user's own Python code or command line names is imported. A file that names ``module:attribute`` may come from
elsewhere, so its modules must lie in a folder that the user chose, or the user allows them. A result is only read: the
names in its configuration stay text.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self, final

from fedpisa.components.log import LOG

ENTRY_POINTS: Final = "fedpisa.components"
"""Entry-point group of packages with components: the value of an entry is the module that has them."""
RESERVED: Final = ("timm", "hf", "env")
"""Prefixes that are never looked up as modules."""
_PACKAGE: Final = Path(__file__).resolve().parents[1]


@final
@dataclass(frozen=True)
class Permission:
    """Modules that a configuration may name.

    Parameters
    ----------
    folders
        Folders whose modules may be imported. The packages that are installed below them do not count.
    allow
        Modules that may be imported from any place, with their submodules, and full names ``module:attribute``.
    installed
        Whether installed packages that declare components in the entry-point group `ENTRY_POINTS` may be imported.
    fix
        How to allow a module, for error messages; ``{module}`` stands for its name.
    reads
        Whether nothing is imported. A user's components then remain names.
    """

    folders: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    installed: bool = True
    fix: str = "add --allow {module}, or allow=[{module!r}] in Python"
    reads: bool = False

    @classmethod
    def of_file(
        cls,
        file: str | os.PathLike[str],
        allow: Iterable[str] = (),
        typed: Mapping[str, object] | None = None,
    ) -> Self:
        """Return the permission of a file: modules in its folder, in the current folder, and those in ``allow``.

        Parameters
        ----------
        file
            The file with the configuration.
        allow
            Names of further modules.
        typed
            Keys that the user gave in addition to the file. Their modules are allowed.
        """
        names = (text for text in _texts(typed or {}) if ":" in text)
        allow = (allow,) if isinstance(allow, str) else allow
        folders = dict.fromkeys((str(Path(file).resolve().parent), str(Path.cwd().resolve())))
        return cls(tuple(folders), (*allow, *names))

    def require(self, what: str, name: str) -> None:
        """Raise a ValueError unless the module of ``module:attribute`` may be imported; nothing is imported yet.

        Parameters
        ----------
        what
            Name of the component's family, for the error message.
        name
            The component's name.
        """
        module = name.partition(":")[0]
        if self._knows(name) or self._allows(module):
            if module not in sys.modules:
                places = ", ".join(map(str, _places(module))) or "no file"
                LOG.info("%s %r imports the module %r (%s)", what, name, module, places)
            return
        where = f"is not in {' or '.join(self.folders)}" if self.folders else "is not allowed here"
        raise ValueError(
            f"{what} {name!r} names the module {module!r}, which {where}: if you trust it, "
            f"{self.fix.format(module=module)}"
        )

    def require_own(self, what: str, name: str, found: object) -> None:
        """Raise a ValueError if the object of a name is defined in a module that may not be imported.

        Otherwise a configuration could call what a module happens to import.
        """
        if self._knows(name):
            return
        module = name.partition(":")[0]
        home = _home(found)
        if _top(home) != _top(module) and not self._allows(home):
            raise ValueError(
                f"{what} {name!r} is defined in {home!r} and not in {module!r}: if you trust it, "
                f"{self.fix.format(module=home)}"
            )

    def _knows(self, name: str) -> bool:
        return name in self.allow or (self.folders != () and name in _GIVEN)

    def _allows(self, module: str) -> bool:
        allowed = [*self.allow, *(_declared() if self.installed else ())]
        if any(module == name or module.startswith(f"{name}.") for name in allowed):
            return True
        places = _places(module)
        return bool(places) and all(self._is_inside(place) for place in places)

    def _is_inside(self, place: Path) -> bool:
        if any(place.is_relative_to(folder) for folder in _installed()):
            return False
        if {"site-packages", "dist-packages"} & set(place.parts):
            return False
        return any(place.is_relative_to(folder) for folder in self.folders)


READ_ONLY: Final = Permission(reads=True)
"""The permission for configurations that are only read."""
_CURRENT: ContextVar[Permission | None] = ContextVar("permission", default=None)
_GIVEN: Final = set[str]()
"""Names that this process's code has used. A resumed run may use them again."""


def current() -> Permission | None:
    """Return the permission in force; ``None`` if names come from the user and everything may be imported."""
    return _CURRENT.get()


def note_given(name: str) -> None:
    """Record a name that the user's own code or command line has used."""
    _GIVEN.add(name)


@contextmanager
def permitted(permission: Permission | None) -> Iterator[None]:
    """Apply a permission inside the block; ``None`` changes nothing.

    Examples
    --------
    >>> with permitted(READ_ONLY):
    ...     current() is READ_ONLY, current() is None
    (True, False)
    """
    token = _CURRENT.set(permission or _CURRENT.get())
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _places(module: str) -> list[Path]:
    """Return the files and folders of a module's top-level package, without running its code."""
    top, spec = _top(module), None
    loaded = sys.modules.get(top)
    with suppress(ImportError, ValueError):  # no module has this name
        spec = loaded.__spec__ if loaded else find_spec(top)
    if spec is None:
        found = [getattr(loaded, "__file__", None)]
    else:
        found = [spec.origin if spec.has_location else None, *(spec.submodule_search_locations or ())]
    return [Path(place).resolve() for place in found if place]


def _home(found: Any) -> str:
    """Return the module that defines an object."""
    while isinstance(found, functools.partial):
        found = found.func
    return str(getattr(inspect.unwrap(found), "__module__", None) or type(found).__module__)


@functools.cache
def _declared() -> frozenset[str]:
    return frozenset(entry.module for entry in entry_points(group=ENTRY_POINTS))


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Return the folders of the standard library, of installed packages and of this package."""
    paths = sysconfig.get_paths()
    return (
        _PACKAGE,
        *(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    )


def _texts(value: object) -> Iterator[str]:
    """Yield the texts among the values of a table and of the tables in it."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
