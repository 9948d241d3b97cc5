"""What a component is: a public function or a frozen dataclass that a configuration can name.

Its *keys* are its parameters, so that a signature is the only place where a key is written down. `describe` reads
signatures, `values` checks the value of one key, `names` has the words for users. `fedpisa.families` finds components
by name and builds them.
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
from fedpisa.components.names import kebab, name_of, nearest, one_line, show
from fedpisa.components.values import check, plain

__all__ = [
    "INJECTED",
    "REQUIRED",
    "Component",
    "Key",
    "Parameter",
    "check",
    "inspect_component",
    "kebab",
    "name_of",
    "nearest",
    "one_line",
    "parameter_docs",
    "plain",
    "show",
]
