"""The families of components, and their members by name: algorithms, data sets, partitioners, models, ...

There is no registry. A component is what a package of its *family* defines; ``module:attribute`` names a
user's component. `lookup` finds components, and `permission` says which of a user's modules a configuration may name.
`builder` checks the values of their keys and builds them. `data` and `models` build data sets, partitions and models by
name. The other modules describe components that other libraries define.
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
from fedpisa.families.lookup import FAMILIES, available, find, is_unread
from fedpisa.families.permission import READ_ONLY, Permission, permitted

__all__ = [
    "FAMILIES",
    "READ_ONLY",
    "Permission",
    "available",
    "bind",
    "build",
    "checked_values",
    "find",
    "is_unread",
    "keys_of",
    "owners",
    "parts_of",
    "permitted",
    "resolve",
    "used_elsewhere",
]
