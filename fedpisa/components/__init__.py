"""Finding the parts of a run by name: algorithms, datasets, partitioners, models, ...

There is no registry. A *component* is a public function or a frozen dataclass that lives in the package of
its *family*; its *keys* are its own parameters, so that what a configuration may say is written down once,
in the signature. ``module:attribute`` names a component of the user's.

`describe` says what a component is and reads signatures, `families` finds components, `values` checks the values
of their keys and builds them, `names` has the words for users.
"""

from fedpisa.components.describe import (
    INJECTED,
    REQUIRED,
    Component,
    Key,
    Parameter,
    inspect_component,
    parameter_docs,
)
from fedpisa.components.families import FAMILIES, available, find
from fedpisa.components.names import kebab, name_of, nearest, one_line, show
from fedpisa.components.values import (
    bind,
    build,
    check,
    keys_of,
    owners,
    parts_of,
    plain,
    resolve,
    settle,
    used_elsewhere,
)

__all__ = [
    "FAMILIES",
    "INJECTED",
    "REQUIRED",
    "Component",
    "Key",
    "Parameter",
    "available",
    "bind",
    "build",
    "check",
    "find",
    "inspect_component",
    "kebab",
    "keys_of",
    "name_of",
    "nearest",
    "one_line",
    "owners",
    "parameter_docs",
    "parts_of",
    "plain",
    "resolve",
    "settle",
    "show",
    "used_elsewhere",
]
