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


def escaped(text: str) -> str:
    r"""Return a text that a terminal shows as it is: characters that control it or hide are escaped.

    Examples
    --------
    >>> escaped("a word"), escaped("\x1b[31mred\n")
    ('a word', '\\x1b[31mred\\n')
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def one_line(message: object) -> str:
    r"""Return an error's message, or another text, in one line that a terminal shows as it is.

    Examples
    --------
    >>> one_line(ValueError("two\nlines")), one_line("\x1b[2J")
    ('two lines', '\\x1b[2J')
    """
    return escaped(" ".join(str(message).split())) or type(message).__name__
