"""Components: public functions and frozen dataclasses that a configuration can name.

The parameters of a component are its *keys*: its signature alone defines them. `describe` reads signatures, `values`
checks the value of a key, and `names` converts names and values for users. `fedpisa.families` finds components by name
and builds them.
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
from fedpisa.components.log import LOG
from fedpisa.components.names import (
    MOST_LISTED,
    SYNONYMS,
    escaped,
    kebab,
    listed,
    name_of,
    nearest,
    one_line,
    printable,
    show,
)
from fedpisa.components.values import are_distinct, check, fits_float32, plain, total

__all__ = [
    "INJECTED",
    "LOG",
    "MOST_LISTED",
    "REQUIRED",
    "SYNONYMS",
    "Component",
    "Key",
    "Parameter",
    "are_distinct",
    "check",
    "escaped",
    "fits_float32",
    "inspect_component",
    "kebab",
    "listed",
    "name_of",
    "nearest",
    "one_line",
    "parameter_docs",
    "plain",
    "printable",
    "show",
    "total",
]
