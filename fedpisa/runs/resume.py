"""How a run goes on: with which configuration, and from which checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fedpisa import components
from fedpisa.config.run import RunConfig, load_config
from fedpisa.runs.results import RunDirectory, read_partition
from fedpisa.storage import checkpoint
from fedpisa.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    from fedpisa.runs.simulation import Simulation

_LOG = getLogger("fedpisa")

FREE: Final = ("num-server-rounds", "checkpoint-every", "state-memory", "num-cpus", "num-gpus", "ray-address")
"""Keys that may change when a run goes on; the first of them can only grow."""


def changed(
    before: RunConfig, config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None
) -> RunConfig:
    """Return the configuration with which a run goes on.

    Parameters
    ----------
    before
        The run's own.
    config
        Keys that change, or a whole configuration.

    Raises
    ------
    ValueError
        If a key changes that may not, or there are to be fewer rounds.

    Examples
    --------
    >>> changed(RunConfig(num_server_rounds=5), {"num-server-rounds": 10}).num_server_rounds
    10
    >>> changed(RunConfig(), {"seed": 1})
    Traceback (most recent call last):
        ...
    ValueError: seed cannot change so while a run goes on: seed was 0 and is now 1; put back what it was, ...
    """
    if config is None:
        return before
    if isinstance(config, Mapping):
        after = before.replace(config)
    else:
        after = load_config(config)
        # A run writes down which model its data chose.
        after = after.replace({"model": before.model}) if after.model is None else after
    refuse(differences(before, after))
    return after


def differences(before: RunConfig, after: RunConfig) -> dict[str, str]:
    """Return which keys differ though they may not, and how; the rounds may grow and not shrink."""
    old, new = before.to_mapping(), after.to_mapping()
    free = FREE if after.num_server_rounds >= before.num_server_rounds else FREE[1:]
    return {
        key: f"{key} was {_show(old.get(key))} and is now {_show(new.get(key))}"
        for key in old | new
        if key not in free and old.get(key) != new.get(key)
    }


def refuse(different: Mapping[str, str]) -> None:
    """Raise an error that names what differs, if anything does."""
    if different:
        raise ValueError(
            f"{', '.join(different)} cannot change so while a run goes on: {', '.join(different.values())}; "
            "put back what it was, or start a new run in another directory"
        )


def _show(value: object) -> str:
    return "not set" if value is None else components.show(value)


def pick(files: RunDirectory, simulation: Simulation) -> Checkpoint | None:
    """Return the newest checkpoint that can be used, ``None`` if the run has to begin again.

    Warnings are logged for those that cannot be used.

    Raises
    ------
    ValueError
        If the checkpoint is of another configuration, model or split of the data than the simulation.
    """
    stored = checkpoint.newest_first(files.checkpoints)
    length = files.metrics.stat().st_size if files.metrics.exists() else 0
    for file in stored:
        try:
            found = checkpoint.read(file)
        except ValueError as error:
            _LOG.warning("%s: it is left out", error)
            continue
        if found.metadata["metrics_bytes"] > length:
            _LOG.warning("%s lacks rounds that %s has: it is left out", files.metrics, file)
            continue
        _require_same(found, files, simulation)
        return found
    if stored or length:
        _LOG.warning("%s has no checkpoint that can be used: the run begins again at round 0", files.path)
    return None


def _require_same(found: Checkpoint, files: RunDirectory, simulation: Simulation) -> None:
    config = simulation.config
    refuse(differences(RunConfig.from_mapping(found.metadata["config"]), config))
    if found.metadata["layout"] != simulation.federation.task.layout.fingerprint:
        raise ValueError(
            f"{config.model} has other parameters than when {files.path} was begun: bring back that model, "
            "or start a new run"
        )
    before, now = read_partition(files.path / "partition.npz"), simulation.federation.partition
    if len(before) != len(now) or not all(map(np.array_equal, before, now)):
        raise ValueError(
            f"{config.dataset} is split otherwise than when {files.path} was begun: bring back those data, "
            "or start a new run"
        )


def require_same_data(before: object, now: str, directory: Path) -> None:
    """Refuse to go on with other samples than a run began with; warn if it does not say which those were.

    Raises
    ------
    ValueError
        If the digests differ.
    """
    if before is None:
        _LOG.warning(
            "%s: run.json has no digest of the data, so a change of the data would not be seen", directory
        )
    elif before != now:
        raise ValueError(
            f"the data or their partition are not those with which the run in {directory} began: put the data back, or "
            "start a new run"
        )
