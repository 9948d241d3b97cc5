"""Names and values in the form that users write and read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def kebab(name: str) -> str:
    """Return the kebab-case name of a Python name.

    Examples
    --------
    >>> kebab("label_dirichlet"), kebab("NewtonSchulz"), kebab("RMSProp"), kebab("lambda_")
    ('label-dirichlet', 'newton-schulz', 'rmsprop', 'lambda')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name.rstrip("_")).replace("_", "-").lower()


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate nearest to a misspelt name, or ``""`` if none is near.

    Examples
    --------
    >>> nearest("sigm", ["rho", "sigma"])
    "; did you mean 'sigma'?"
    """
    close = difflib.get_close_matches(kebab(name), list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def name_of(part: object) -> str:
    """Return the component name of a class or an instance: its attribute ``name``, or else its class name.

    Examples
    --------
    >>> class NewtonSchulz: ...
    >>> name_of(NewtonSchulz()), name_of(NewtonSchulz)
    ('newton-schulz', 'newton-schulz')
    """
    own = getattr(part, "name", None)
    return own if isinstance(own, str) else kebab((part if isinstance(part, type) else type(part)).__name__)


def show(value: object) -> str:
    """Return the text of a value in an error message."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def printable(text: object, length: int = 200) -> str:
    r"""Return text that somebody else wrote on one line, without control characters and cut to ``length`` characters.

    Examples
    --------
    >>> printable("red: \x1b[31m\nok"), printable("x" * 9, length=4)
    ('red: \\x1b[31m\\nok', 'xxxx...')
    """
    begin = str(text)[: length + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in begin)
    return escaped if len(escaped) <= length else f"{escaped[:length]}..."


def one_line(error: BaseException) -> str:
    r"""Return an error's message without line breaks.

    Examples
    --------
    >>> one_line(ValueError("two\nlines"))
    'two lines'
    """
    return " ".join(str(error).split()) or type(error).__name__
