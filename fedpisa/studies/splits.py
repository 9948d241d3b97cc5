"""The keys of a run that define its split: data, partition, model and clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpisa import families
from fedpisa.families import READ_ONLY, is_unread, permitted

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig

FAMILIES = ("dataset", "partitioner", "model")
"""Families whose components, with their keys, define a split."""
SETTING = (*FAMILIES, "num-clients", "fraction-train", "validation-fraction")
BOOKKEEPING = frozenset(
    {
        "seed",
        "data-dir",
        "eval-every",
        "target-accuracy",
        "target",
        "target-measure",
        "exact-diagnostics",
        "per-client",
        "checkpoint-every",
    }
)
"""Keys that change what is measured or stored, but not what is trained."""


def split_keys(config: RunConfig) -> dict[str, object]:
    """Return the keys of the split; nothing that the configuration names is imported.

    Examples
    --------
    >>> from fedpisa.config.run import RunConfig
    >>> found = split_keys(RunConfig.from_mapping({"dirichlet-alpha": 0.1}))
    >>> found["dirichlet-alpha"], "sigma" in found
    (0.1, False)
    """
    names, keys = set(SETTING), config.to_mapping()
    with permitted(READ_ONLY):
        parts = [config.component(family) for family in FAMILIES if family in keys]
        names |= {key for part in parts for key in families.keys_of(part, keys)}
        # Keys of a component that is not imported are the split's if the algorithm is known.
        trained = families.parts_of(config.component("algorithm"), keys)
        if any(map(is_unread, parts)) and not any(map(is_unread, trained)):
            names |= config.options_of_unread()
    return {name: value for name, value in keys.items() if name in names - BOOKKEEPING}
