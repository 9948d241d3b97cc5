"""One run, from its configuration to its result, and on from where it was cut short."""

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
from fedpisa.runs.events import Event, RoundFinished, RunFinished, RunStarted, Stopping
from fedpisa.runs.per_client import Table, require_parquet
from fedpisa.runs.process import is_own
from fedpisa.runs.provenance import now, provenance_of
from fedpisa.runs.results import Result, Row, RunDirectory, Status, load_result, require_free
from fedpisa.runs.resume import changed, pick, require_same_data
from fedpisa.runs.signals import Interrupted, Stop, postponed
from fedpisa.runs.simulation import Simulation, make_grid
from fedpisa.runs.tracking import Listener, fan_out
from fedpisa.storage import checkpoint
from fedpisa.storage.checkpoint import Checkpoint
from fedpisa.storage.files import locked
from fedpisa.tasks.modules import state_names

__all__ = [
    "Event",
    "RoundFinished",
    "RunFinished",
    "RunStarted",
    "Simulation",
    "Stopping",
    "make_grid",
    "run",
]


def run(
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    on_event: Listener | Iterable[Listener] | None = None,
) -> Result:
    """Train one algorithm on one federated data set.

    Parameters
    ----------
    config
        A configuration, flat keys, or the path of a TOML file; SISA on the embedded digits by default.
    out
        Directory of the result, which must not exist or be empty; by default nothing is written.
    resume
        Directory of a run that was cut short, in place of ``out``: it goes on from its last checkpoint and ends in
        the same bytes as if nothing had happened. ``config`` is the run's own by default. More rounds may be
        asked for, also of a run that finished; any other key that changes what is computed must stay.
    on_event
        Told what happens: `RunStarted`, `RoundFinished` for every row, `Stopping`, `RunFinished`; one listener
        or several, such as those of `fedpisa.runs.tracking`.

    Returns
    -------
    Result
        Its ``status`` is ``finished``, or ``diverged`` if the loss or the parameters were no longer finite;
        the rounds until then are kept.

    Raises
    ------
    ValueError
        If the configuration, the data or the directory is unusable, or another process writes to it; nothing is
        written then.
    KeyboardInterrupt
        After Ctrl-C, at once; the directory has the rounds so far and the last checkpoint. Within
        `fedpisa.runs.process.own_process`, as in ``fedpisa run``, Ctrl-C and SIGTERM
        (`fedpisa.runs.signals.Interrupted`) let the round be finished first, and a checkpoint written; a second
        signal ends at once.

    Examples
    --------
    >>> result = run({"num-server-rounds": 2, "model": "logistic"})
    >>> result.status, len(result.history)
    ('finished', 3)
    """
    return train(config, out, resume=resume, on_event=on_event)


def train(
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    on_event: Listener | Iterable[Listener] | None = None,
    simulation_of: Callable[[RunConfig], Simulation] = Simulation,
) -> Result:
    """Do what `run` does, on the Grid that ``simulation_of`` gives the run."""
    tell = fan_out(on_event)
    if resume is not None:
        if out is not None:
            raise ValueError(
                f"out = {out} and resume = {resume} exclude each other: a run goes on where it is"
            )
        return _resume(Path(resume), config, tell, simulation_of)
    config = load_config(config)
    if out is None:
        return _Run(simulation_of(config), tell).train()
    directory = require_free(Path(out))
    if config.per_client:
        require_parquet()
    simulation = simulation_of(config)
    with locked(directory):
        files = RunDirectory.create(
            directory,
            config=simulation.config,
            info=provenance_of(simulation),
            partition=simulation.federation.partition,
        )
        return _Run(simulation, tell, files).train()


def _resume(
    directory: Path,
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None,
    tell: Listener,
    simulation_of: Callable[[RunConfig], Simulation],
) -> Result:
    if not (directory / "config.toml").is_file():
        raise ValueError(f"{directory} is not a run's directory, it lacks config.toml: name one that is")
    with locked(directory):
        files = RunDirectory(directory)
        before = load_config(directory / "config.toml")
        after = changed(before, config)
        info = files.info()
        longer = after.num_server_rounds > before.num_server_rounds
        if info.get("status") == "diverged" or (info.get("status") == "finished" and not longer):
            result = load_result(directory)
            tell(RunFinished(result, before=True))
            return result
        simulation = simulation_of(after)
        found = pick(files, simulation)
        if found is None:
            files.begin(
                config=simulation.config,
                info=provenance_of(simulation),
                partition=simulation.federation.partition,
            )
            return _Run(simulation, tell, files).train()
        require_same_data(info.get("data"), simulation.federation.data_digest(), directory)
        simulation.restore(found.server_round, found.tensors)
        rows = files.cut(found.metadata["metrics_bytes"])
        files.write_config(simulation.config)
        again = {
            key: value
            for key, value in provenance_of(simulation).items()
            if key in ("versions", "machine", "process")
        }
        resumed = [*info.get("resumed", []), {"after_round": found.server_round, "at": now(), **again}]
        files.update(status="running", resumed=resumed)
        return _Run(simulation, tell, files, rows, seconds_before=found.metadata["seconds"]).train()


@final
@dataclass
class _Run:
    """The rounds of a simulation, written down as they end."""

    simulation: Simulation
    tell: Listener
    files: RunDirectory | None = None
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    seconds_before: float = 0.0
    begin: float = field(default_factory=time.perf_counter)

    def train(self) -> Result:
        status: Status = "failed"
        try:
            self.tell(self.simulation.started())
            self._rounds()
            status = "diverged" if self.simulation.diverged else "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            parameters = self.simulation.parameters()
            # After a failure, such as a full disk, it is that failure that has to be seen.
            with suppress(OSError) if status == "failed" else nullcontext():
                self._end(parameters, status)
        directory = None if self.files is None else self.files.path
        result = Result(
            self.simulation.config,
            self.rows,
            parameters,
            self.simulation.federation.partition,
            status,
            directory,
            self.tables,
        )
        self.tell(RunFinished(result))
        return result

    def _rounds(self) -> None:
        last = self.simulation.config.num_server_rounds
        every = self.simulation.config.checkpoint_every
        # Without a directory there is nothing to save from Ctrl-C.
        postpones = self.files is not None and is_own()
        waiting = postponed(lambda n: self.tell(Stopping(n))) if postpones else nullcontext(Stop())
        with waiting as stop:
            for row in self.simulation.rows():
                self.rows.append(row)
                self._clients(row)
                done, diverged = self.simulation.server_round, self.simulation.diverged
                signum = stop.signum  # read once: a signal that comes from now on belongs to the next round
                if self.files is not None:
                    self.files.append(row)
                    due = done == last or signum or (every and done % every == 0)
                    # Before the first round there is nothing to keep, and a model that is not finite is no start.
                    if due and done > 0 and not diverged:
                        self._keep(self.files)
                self.tell(RoundFinished(row, last))
                if signum and done < last and not diverged:
                    raise Interrupted(signum)

    def _clients(self, row: Row) -> None:
        """Measure the model client by client, in rounds in which it was evaluated."""
        if self.simulation.config.per_client and "evaluation_seconds" in row:
            table = self.simulation.client_table()
            self.tables.append(table) if self.files is None else self.files.write_clients(table)

    def _keep(self, files: RunDirectory) -> None:
        metadata = {
            "config": self.simulation.config.to_mapping(),
            "layout": self.simulation.federation.task.layout.fingerprint,
            "metrics_bytes": files.metrics_bytes(),
            "seconds": self._seconds(),
        }
        kept = Checkpoint(self.simulation.server_round, self.simulation.snapshot(), metadata)
        checkpoint.write(files.checkpoints, kept)

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.begin

    def _end(self, parameters: Mapping[str, NDArray[Any]], status: Status) -> None:
        if self.files is not None:
            self.files.write_model(parameters, state_names(self.simulation.federation.task.module))
            self.files.update(status=status, seconds=self._seconds(), finished=now())
            if status in ("finished", "diverged"):
                checkpoint.keep_last(self.files.checkpoints)
