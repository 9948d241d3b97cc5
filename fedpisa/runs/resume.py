"""The configuration and the checkpoint of a resumed run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fedpisa import components
from fedpisa.components import LOG
from fedpisa.config.run import RunConfig, load_config
from fedpisa.runs.results import RunDirectory
from fedpisa.storage import checkpoint
from fedpisa.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    from fedpisa.datasets.base import Indices
    from fedpisa.runs.run_files import RunReader
    from fedpisa.runs.simulation import Simulation

FREE: Final = ("num-server-rounds", "checkpoint-every", "state-memory", "num-cpus", "num-gpus", "ray-address")
"""Keys that may change when a run resumes; the first one may only increase."""


def changed(
    before: RunConfig,
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None,
    *,
    allow: Iterable[str] = (),
) -> RunConfig:
    """Return the configuration of a resumed run.

    Parameters
    ----------
    before
        The configuration in the run's directory.
    config
        Keys that change, or a whole configuration.
    allow
        Further modules that a file may name.

    Raises
    ------
    ValueError
        If a key changes that must not change, or the number of rounds decreases.

    Examples
    --------
    >>> changed(RunConfig(num_server_rounds=5), {"num-server-rounds": 10}).num_server_rounds
    10
    >>> changed(RunConfig(), {"seed": 1})
    Traceback (most recent call last):
        ...
    ValueError: a run cannot resume with another configuration: seed was 0 and is now 1; restore the old value, ...
    """
    if config is None:
        return before
    if isinstance(config, Mapping):
        after = before.replace(config)
    else:
        after = load_config(config, allow=allow)
        # The run's directory names the default model of its data set.
        after = after.replace({"model": before.model}) if after.model is None else after
    _require_unchanged(before, after)
    if after.num_server_rounds != before.num_server_rounds and "epsilon" in after.options:
        raise ValueError(
            f"the noise was solved for epsilon after {before.num_server_rounds} rounds, and more rounds would spend "
            "more: start a new run, or give noise-multiplier in place of epsilon"
        )
    return after


def differences(before: RunConfig, after: RunConfig) -> dict[str, str]:
    """Return the keys that differ and must not, with both values; the number of rounds may only increase."""
    old, new = before.to_mapping(), after.to_mapping()
    free = FREE if after.num_server_rounds >= before.num_server_rounds else FREE[1:]
    return {
        key: f"{key} was {_show(old.get(key))} and is now {_show(new.get(key))}"
        for key in old | new
        if key not in free and old.get(key) != new.get(key)
    }


def _require_unchanged(before: RunConfig, after: RunConfig) -> None:
    if changes := differences(before, after).values():
        raise ValueError(
            f"a run cannot resume with another configuration: {', '.join(changes)}; restore the old "
            f"value{'s' * (len(changes) > 1)}, or start a new run in another directory"
        )


def _show(value: object) -> str:
    return "not set" if value is None else components.show(value)


def earlier_partition(reader: RunReader, config: RunConfig) -> list[Indices] | None:
    """Return the stored split of a run whose partitioner made other splits in earlier versions; otherwise ``None``.

    Ray's actors make the split themselves, so such a run cannot resume on Ray.
    """
    if config.partitioner != "client-dirichlet" or config.engine == "ray":
        return None
    return reader.partition() or None


def pick(files: RunDirectory, simulation: Simulation) -> Checkpoint | None:
    """Return the newest usable checkpoint; ``None`` if the run has to start again.

    A warning is logged for each checkpoint that cannot be used.

    Raises
    ------
    ValueError
        If the simulation has another configuration, model or split of the data than the checkpoint.
    """
    stored = checkpoint.newest_first(files.checkpoints)
    length = files.metrics.stat().st_size if files.metrics.exists() else 0
    for file in stored:
        try:
            found = checkpoint.read(file)
        except ValueError as error:
            LOG.warning("%s: the checkpoint is skipped", error)
            continue
        if found.metadata["metrics_bytes"] > length:
            LOG.warning("%s lacks rounds that %s has: the checkpoint is skipped", files.metrics, file)
            continue
        try:
            files.reader().rows(found.metadata["metrics_bytes"], found.metadata.get("metrics_digest"))
        except ValueError as error:
            LOG.warning("%s: %s is skipped", error, file)
            continue
        _require_same(found, files, simulation)
        return found
    if stored or length:
        LOG.warning("%s has no usable checkpoint: the run starts again at round 0", files.path)
    return None


def _require_same(found: Checkpoint, files: RunDirectory, simulation: Simulation) -> None:
    config = simulation.config
    _require_unchanged(RunConfig.from_mapping(found.metadata["config"], stored=True), config)
    if found.metadata["layout"] != simulation.federation.task.layout.fingerprint:
        raise ValueError(
            f"{config.model} has other parameters than when {files.path} was started: restore the old model, "
            "or start a new run"
        )
    if found.metadata.get("base") != simulation.base.get("digest"):
        raise ValueError(
            f"the pretrained model in {simulation.base.get('pretrained')} is not the one with which {files.path} was "
            "started: put the original back, or start a new run"
        )
    before, now = files.reader().partition(), simulation.federation.partition
    if len(before) != len(now) or not all(map(np.array_equal, before, now)):
        raise ValueError(
            f"{config.dataset} is split differently than in {files.path / 'partition.npz'}: restore the old data "
            "or the version of fedpisa that began the run, or start a new run"
        )


def require_same_data(before: object, now: str, directory: Path) -> None:
    """Refuse to go on with other samples than a run began with; warn if it does not say which those were.

    Raises
    ------
    ValueError
        If the digests differ.
    """
    if before is None:
        LOG.warning(
            "%s: run.json has no digest of the data, so a change of the data would not be seen", directory
        )
    elif before != now:
        raise ValueError(
            f"the data or their partition are not those with which the run in {directory} began: put the data back, or "
            "start a new run"
        )


def require_no_second_release(simulation: Simulation, files: RunDirectory, done: int) -> None:
    """Refuse to repeat rounds whose models real nodes have seen, if their noise would be another.

    A round's model goes to the nodes in the next round, so the last row may be repeated.

    Raises
    ------
    ValueError
        If the run has more than one row after round ``done`` and noise from the operating system.
    """
    if (
        simulation.privacy is None
        or not simulation.privacy.secure
        or simulation.grid.client_states is not None
    ):
        return
    rows = files.reader().rows() if files.metrics.exists() else []
    last = max((int(row["round"] or 0) for row in rows), default=0)
    if last > done + 1:
        raise ValueError(
            f"{files.path} has rounds up to {last} and a checkpoint of round {done}: the rounds between would be "
            "released twice with different noise, which epsilon does not count; start a new run"
        )


def warn_of_other_code(part: str, before: object, now: object, directory: Path) -> None:
    """Log a warning if the code of a user's ``model`` or ``task`` has changed since the run began."""
    if before is not None and now is not None and before != now:
        LOG.warning("%s: the code of the %s has changed since the run began", directory, part)
