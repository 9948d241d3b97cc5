"""Run an algorithm from its configuration to its result, and resume runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray

from fedpisa.config.run import RunConfig, load_config
from fedpisa.families import Permission, permitted
from fedpisa.runs.events import Generated, RoundFinished, RunFinished, Stopping
from fedpisa.runs.generated import tokenizer_file, vocabulary_file
from fedpisa.runs.per_client import Table, require_parquet
from fedpisa.runs.places import require_free
from fedpisa.runs.process import is_own, reserved_heap
from fedpisa.runs.provenance import now, provenance_of
from fedpisa.runs.results import Result, RunDirectory, load_result
from fedpisa.runs.resume import (
    changed,
    earlier_partition,
    pick,
    require_no_second_release,
    require_same_data,
    warn_of_other_code,
)
from fedpisa.runs.run_files import Row, Status
from fedpisa.runs.signals import Interrupted, Stop, postponed
from fedpisa.runs.simulation import Simulation
from fedpisa.runs.tracking import Listener, Listeners, fan_out
from fedpisa.storage import checkpoint
from fedpisa.storage.checkpoint import Checkpoint
from fedpisa.storage.checkpoint_writer import CheckpointWriter
from fedpisa.storage.files import locked
from fedpisa.tasks.modules import state_names

__all__ = ["Simulation", "run", "train"]


def run(
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    on_event: Listener | Iterable[Listener] | None = None,
    allow: Iterable[str] = (),
) -> Result:
    """Train one algorithm on one federated data set.

    Parameters
    ----------
    config
        A configuration, flat keys, or the path of a TOML file; SISA on the embedded digits by default.
    out
        Directory of the result, which must be empty or not exist; by default nothing is written.
    resume
        Directory of an interrupted run, instead of ``out``. The run resumes from its last checkpoint and ends with
        the same bytes as an uninterrupted run. ``config`` is the run's own by default. It may increase the number of
        rounds, also of a finished run; other keys that change the result must stay the same.
    on_event
        One or several listeners, such as those of `fedpisa.runs.tracking`. They are called with `RunStarted`,
        `RoundFinished` for every row, `Stopping`, `Generated` if the final model makes texts or images, and
        `RunFinished`.
    allow
        Modules that a TOML file, or the configuration of a resumed run, may name, besides those in its folder and in
        the current one. What a mapping or your own configuration names needs no permission.

    Returns
    -------
    Result
        Result with ``status`` ``finished``, or ``diverged`` if a loss, in training, on the test set or on the
        validation set, or the parameters were no longer finite; the rounds until then are kept. A run that
        ``early-stopping`` ends is finished too.

    Raises
    ------
    ValueError
        If the configuration, the data or the directory is unusable, or another process writes to the directory;
        nothing is written.
    KeyboardInterrupt
        At once after Ctrl-C; the directory has the finished rounds and the last checkpoint. Within
        `fedpisa.runs.process.own_process`, as in ``fedpisa run``, Ctrl-C and SIGTERM raise
        `fedpisa.runs.signals.Interrupted` after the round and its checkpoint; a second signal ends the run at once.

    Examples
    --------
    >>> result = run({"num-server-rounds": 2, "model": "logistic"})
    >>> result.status, len(result.history)
    ('finished', 3)
    """
    return train(config, out, resume=resume, on_event=on_event, allow=allow)


def train(
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    on_event: Listener | Iterable[Listener] | None = None,
    simulation_of: Callable[..., Simulation] = Simulation,
    allow: Iterable[str] = (),
) -> Result:
    """Run like `run`, with the simulation that ``simulation_of`` returns for a configuration and a ``partition``.

    The partition is that of an earlier version, see `fedpisa.runs.resume.earlier_partition`, or ``None``.
    """
    notify = fan_out(on_event)
    with reserved_heap():
        if resume is None:
            return _begin(config, out, notify, simulation_of, allow)
        if out is not None:
            raise ValueError(
                f"out = {out} and resume = {resume} exclude each other: a run resumes in its directory, remove out"
            )
        return _resume(Path(resume), config, notify, simulation_of, allow)


def _begin(
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    notify: Listeners,
    simulation_of: Callable[..., Simulation],
    allow: Iterable[str],
) -> Result:
    config = load_config(config, allow=allow)
    if out is None:
        return _Run(simulation_of(config), notify).train()
    directory = require_free(Path(out))
    if config.per_client:
        require_parquet()
    simulation = simulation_of(config)
    with locked(directory):
        info, partition = provenance_of(simulation), simulation.federation.partition
        arrays = simulation.federation.split_arrays()
        files = RunDirectory.create(directory, simulation.config, info, partition, arrays)
        return _Run(simulation, notify, files).train()


def _resume(
    directory: Path,
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None,
    notify: Listeners,
    simulation_of: Callable[..., Simulation],
    allow: Iterable[str],
) -> Result:
    if not os.path.isfile(directory / "config.toml"):
        raise ValueError(
            f"{directory} is not a run's directory, it lacks config.toml: name the directory of a run"
        )
    with locked(directory):
        files = RunDirectory(directory)
        reader = files.reader()
        before, info = reader.config(), reader.info
        after = changed(before, config, allow=allow)
        longer = after.num_server_rounds > before.num_server_rounds
        if info.get("status") == "diverged" or (info.get("status") == "finished" and not longer):
            result = load_result(directory)
            notify(RunFinished(result, before=True))
            return result
        # Modules that the user's keys or configuration name are allowed.
        typed = config.to_mapping() if isinstance(config, RunConfig) else config
        keys = typed if isinstance(typed, Mapping) else {}
        with permitted(Permission.of_file(directory / "config.toml", allow, keys)):
            after = RunConfig.from_mapping(after.to_mapping())
        simulation = simulation_of(after, partition=earlier_partition(reader, after))
        provenance = provenance_of(simulation)
        found = pick(files, simulation)
        require_no_second_release(simulation, files, found.server_round if found else 0)
        if found is None:
            federation = simulation.federation
            files.begin(simulation.config, provenance, federation.partition, federation.split_arrays())
            return _Run(simulation, notify, files).train()
        require_same_data(info.get("data"), simulation.federation.data_digest(), directory)
        for own in ("model", "task"):
            warn_of_other_code(own, info.get(f"{own}_source"), provenance[f"{own}_source"], directory)
        simulation.keep_engine(info.get("engine"))
        simulation.restore(found.server_round, found.tensors)
        part = {"after_round": found.server_round, "at": now()}
        part |= {key: provenance[key] for key in ("versions", "machine", "process")}
        # The digests go first: they are those of the files that the run then changes.
        promised = {"privacy": provenance["privacy"]} if "privacy" in provenance else {}
        files.update(status="running", digests={}, resumed=[*info.get("resumed", []), part], **promised)
        rows = files.cut(found.metadata["metrics_bytes"])
        files.write_config(simulation.config)
        return _Run(simulation, notify, files, rows, seconds_before=found.metadata["seconds"]).train()


@final
@dataclass
class _Run:
    """Runs the rounds of a simulation and writes them to the run's directory."""

    simulation: Simulation
    notify: Listeners
    files: RunDirectory | None = None
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    seconds_before: float = 0.0
    begin: float = field(default_factory=time.perf_counter)
    writer: CheckpointWriter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.files is not None:
            # Nodes keep the states of their last two rounds, so the server's checkpoint must not be older.
            is_simulated = self.simulation.grid.client_states is not None
            limit = self.simulation.config.state_memory if is_simulated else 0
            self.writer = CheckpointWriter(self.files.checkpoints, limit)

    def train(self) -> Result:
        status: Status = "failed"
        generated: Mapping[str, bytes] = {}
        try:
            self.notify(self.simulation.started())
            self._rounds()
            if self.simulation.diverged:
                status = "diverged"
            else:
                generated = self._generated()
                status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            parameters = self.simulation.parameters()
            # After a failure, such as a full disk, a further error must not hide the first one.
            with suppress(OSError, ValueError) if status == "failed" else nullcontext():
                self._end(parameters, status, generated)
        config, partition = self.simulation.config, self.simulation.federation.partition
        directory = None if self.files is None else self.files.path
        result = Result(
            config,
            self.rows,
            parameters,
            partition,
            status,
            directory,
            self.tables,
            majority_share=self.simulation.federation.majority_share(),
            reference=self.simulation.reference,
            measures=self.simulation.federation.task.measures,
        )
        if generated:
            self.notify(Generated(self.simulation.server_round, generated))
        self.notify(RunFinished(result))
        return result

    def _generated(self) -> Mapping[str, bytes]:
        """Return what the final model makes, if there is a directory or a listener for it."""
        return self.simulation.generated() if self.files is not None or self.notify.listeners else {}

    def _rounds(self) -> None:
        last = self.simulation.config.num_server_rounds
        every = self.simulation.config.checkpoint_every
        # Without a directory there is no checkpoint to write, so signals are not postponed.
        postpones = self.files is not None and is_own()
        signals = (
            postponed(lambda signum: self.notify(Stopping(signum))) if postpones else nullcontext(Stop())
        )
        with signals as stop, self.writer or nullcontext():
            for row in self.simulation.rows():
                self.rows.append(row)
                if self.simulation.config.per_client and "evaluation_seconds" in row:
                    table = self.simulation.client_table()
                    self.tables.append(table) if self.files is None else self.files.write_clients(table)
                done, diverged = self.simulation.server_round, self.simulation.diverged
                ended = done == last or diverged or self.simulation.stopping.is_due
                signum = stop.signum  # read once: a later signal stops the run after the next round
                if self.files is not None and self.writer is not None:
                    self.files.append(row)
                    due = ended or signum or (every and done % every == 0)
                    # No checkpoint before the first round, and none of a model that is not finite.
                    if due and done > 0 and not diverged:
                        self._write_checkpoint(self.files, self.writer)
                self.notify(RoundFinished(row, last))
                if signum and not ended:
                    if self.writer is not None:
                        self.writer.wait()
                    raise Interrupted(signum)

    def _write_checkpoint(self, files: RunDirectory, writer: CheckpointWriter) -> None:
        writer.wait()  # before the snapshot, so that there is one copy of the state at a time
        metadata = {
            "config": self.simulation.config.to_mapping(),
            "layout": self.simulation.federation.task.layout.fingerprint,
            "base": self.simulation.base.get("digest"),
            **files.metrics_so_far(),
            "seconds": self._seconds(),
        }
        writer.write(Checkpoint(self.simulation.server_round, self.simulation.snapshot(), metadata))

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.begin

    def _end(
        self, parameters: Mapping[str, NDArray[Any]], status: Status, generated: Mapping[str, bytes]
    ) -> None:
        if self.files is not None:
            names = state_names(self.simulation.federation.task.module)
            self.files.write_model(parameters, names, self.simulation.base)
            self.files.write_file("vocabulary.json", vocabulary_file(self.simulation.federation))
            self.files.write_file("tokenizer.json", tokenizer_file(self.simulation.federation))
            for name, content in generated.items():
                self.files.write_file(name, content)
            digests = self.files.reader().digests()
            stopping, done = self.simulation.stopping, self.simulation.server_round
            more: dict[str, object] = {}
            if status == "finished" and stopping.is_due and done < self.simulation.config.num_server_rounds:
                more["stopped_early"] = {"round": done, "best_round": stopping.best_round}
            if self.simulation.privacy is not None:
                more["privacy"] = self.simulation.privacy.record(done)
            self.files.update(status=status, seconds=self._seconds(), finished=now(), digests=digests, **more)
            if status in ("finished", "diverged"):
                checkpoint.keep_last(self.files.checkpoints)
