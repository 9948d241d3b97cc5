"""Flower's run config: a run's keys as flat values, and the keys that only a run on nodes has."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, cast, final

from fedpisa import families
from fedpisa.config.overrides import parse_overrides
from fedpisa.config.run import RunConfig, nest, run_keys

UNSET: Final = ""
"""The value of a key that is not set. Flower requires a value for every key."""
MORE: Final = "more"
"""The key whose text holds all other keys: those of a user's components."""

Value = bool | int | float | str


@final
@dataclass(frozen=True)
class NodeSettings:
    """The keys of a run on nodes that a `RunConfig` does not have.

    Parameters
    ----------
    out
        A new directory for the result, on the server. By default ``runs/<algorithm>-<dataset>-<seed>`` in the
        folder where the SuperLink was started.
    resume
        Directory of an interrupted run, which the run continues. Replaces ``out``.
    node_data
        ``partition``: each node trains on its part of the data set. ``own``: each node trains on its own samples.
    connect_timeout
        Seconds to wait for the nodes before the first round.
    """

    out: str = ""
    resume: str = ""
    node_data: Literal["partition", "own"] = "partition"
    connect_timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.node_data not in ("partition", "own"):
            raise ValueError(f"node-data is {self.node_data!r}: set it to partition or own")
        if self.out and self.resume:
            raise ValueError(
                f"out = {self.out} and resume = {self.resume} exclude each other: a resumed run stays in its directory"
            )
        if isinstance(self.connect_timeout, str) or not self.connect_timeout > 0:
            raise ValueError(f"connect-timeout is {self.connect_timeout!r}: set it to seconds above 0")


def read_run_config(values: Mapping[str, object]) -> tuple[NodeSettings, dict[str, object]]:
    """Split Flower's run config into the settings of a run on nodes and the keys of its `RunConfig`.

    The value ``""`` means that a key is not set. Flower's values cannot be lists or tables, so text that begins with
    ``[`` or ``{`` is read as one, in TOML or in JSON.

    Raises
    ------
    ValueError
        If a setting has a bad value. `RunConfig` checks the other keys.

    Examples
    --------
    >>> settings, keys = read_run_config({"algorithm": "sisa", "sigma": "", "widths": "[8, 4]", "node-data": "own"})
    >>> settings.node_data, keys
    ('own', {'algorithm': 'sisa', 'widths': [8, 4]})
    >>> read_run_config({"more": "depth=3", "optimizer-options": "{betas = [0.5, 0.999]}"})[1]
    {'optimizer-options': {'betas': [0.5, 0.999]}, 'depth': 3}
    """
    given: dict[str, object] = {key: value for key, value in values.items() if value != UNSET}
    given |= parse_overrides(str(given.pop(MORE, "")))
    keys = {field.name.replace("_", "-"): field.name for field in fields(NodeSettings)}
    own = {keys[key]: given.pop(key) for key in keys if key in given}
    return NodeSettings(**cast(dict[str, Any], own)), {key: _decoded(value) for key, value in given.items()}


def to_run_config(settings: NodeSettings, config: RunConfig) -> dict[str, Value]:
    """Return the Flower run config that `read_run_config` reads.

    Examples
    --------
    >>> config = RunConfig(algorithm="fedavg", num_clients=3)
    >>> settings, keys = read_run_config(to_run_config(NodeSettings(out="here"), config))
    >>> settings.out, RunConfig.from_mapping(keys) == config
    ('here', True)
    """
    values = {key.replace("_", "-"): value for key, value in asdict(settings).items()}
    values |= nest(config.to_mapping())
    return {key: _encoded(value) for key, value in values.items()}


def all_keys() -> list[str]:
    """Return all keys of a run, for ``pyproject.toml``: Flower refuses a key that is not listed there."""
    parts = (part for family in families.FAMILIES for part in families.available(family).values())
    keys = (key for part in parts for key in families.keys_of(part).values() if not key.option)
    own = (key.name.partition(".")[0] for key in keys)
    settings = (field.name.replace("_", "-") for field in fields(NodeSettings))
    return [*dict.fromkeys([*run_keys(), *settings, *sorted(own), MORE])]


def _encoded(value: object) -> Value:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _decoded(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return cast(object, json.loads(value))
    except (json.JSONDecodeError, RecursionError):
        pass
    try:
        return cast(object, tomllib.loads(f"value = {value}")["value"])
    except RecursionError:
        raise ValueError(f"the value {value[:20]!r}... is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        kind = "list" if value.startswith("[") else "table"
        raise ValueError(
            f"{value!r} is not a {kind} ({error}): write it as in TOML, [64, 32] or {{betas = [0.5, 0.999]}}"
        ) from error
