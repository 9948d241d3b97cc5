"""The families of components, and their members by name: algorithms, data sets, partitioners, models, ...

There is no registry. A component is what a package of its *family* defines; ``module:attribute`` names a
user's component. `lookup` finds components. `builder` checks the values of their keys and builds them. `data` and
`models` build data sets, partitions and models by name. The other modules describe components that other libraries
define.
"""

from fedpisa.families.builder import (
    bind,
    build,
    checked_values,
    keys_of,
    owners,
    parts_of,
    resolve,
    used_elsewhere,
)
from fedpisa.families.lookup import FAMILIES, available, find

__all__ = [
    "FAMILIES",
    "available",
    "bind",
    "build",
    "checked_values",
    "find",
    "keys_of",
    "owners",
    "parts_of",
    "resolve",
    "used_elsewhere",
]
