"""A run's directory, and the `Result` that is read from it.

A run's directory contains

- ``config.toml``: the resolved configuration, which is enough to repeat the run;
- ``run.json``: versions, machine, timing and ``status``, and when the run has ended, digests of the other files;
- ``metrics.jsonl``: one JSON object per round, written when the round ends;
- ``checkpoint/``: the state from which `fedpisa.run` resumes or adds rounds, see `fedpisa.storage.checkpoint`;
- ``partition.npz``: the arrays ``0`` .. ``N-1``, client ``i``'s sample indices into the training set, and ``labels``,
  the samples of each client and class, or ``deciles``, those in each decile of a regression's target; with
  ``validation-fraction``, also ``validation``, the indices of the validation samples into the training set;
- ``model.safetensors``: the global parameters under the module's own names; of a model that is read from a folder, only
  those that are trained, and the folder and its digest in the metadata;
- ``vocabulary.json`` and ``samples.txt``, for text: its tokens, and texts that the final language model writes;
  ``tokenizer.json`` in place of the tokens if a tokenizer made them;
- ``samples.png``: images that a final generator makes;
- ``clients.parquet``, if ``per-client = true``: a file for each evaluated round, a row for each client.
"""

from __future__ import annotations

import html
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.components import LOG, escaped, total
from fedpisa.runs.places import require_free
from fedpisa.runs.run_files import BASE, CLIENTS, TIED, Row, RunReader, Status
from fedpisa.storage.files import (
    digest_of,
    named,
    open_file,
    refuse_link,
    replace_file,
    sync,
)
from fedpisa.tasks.measures import CLASSIFICATION, LOSS, Measure, from_records, headline, measure_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from fedpisa.config.run import RunConfig
    from fedpisa.datasets.base import Indices
    from fedpisa.runs.per_client import Table

METRICS = (
    "round",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "bytes_up",
    "bytes_down",
    "local_steps",
    "seconds",
)
"""Columns of ``metrics.jsonl`` in every run; bytes, steps and seconds are those of one round."""


@final
@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run, written round by round.

    The files stay valid even after a crash: each is replaced atomically, and ``metrics.jsonl`` only grows by lines.

    Parameters
    ----------
    path
        The directory.

    Examples
    --------
    >>> import tempfile
    >>> from fedpisa.config.run import RunConfig
    >>> with tempfile.TemporaryDirectory() as temporary:
    ...     run = RunDirectory.create(
    ...         Path(temporary) / "run",
    ...         config=RunConfig(),
    ...         info={"seed": 0},
    ...         partition=[np.array([0, 2]), np.array([1])],
    ...     )
    ...     run.append({"round": 1, "train_loss": float("inf")})
    ...     print(run.metrics.read_text(), end="")
    {"round": 1, "train_loss": null}
    """

    path: Path

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: RunConfig,
        info: Mapping[str, object],
        partition: Sequence[Indices],
        arrays: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    ) -> RunDirectory:
        """Make the directory with its ``config.toml``, ``run.json`` and ``partition.npz``.

        All contents are encoded before the directory is made, so that invalid input leaves no files.

        Parameters
        ----------
        path
            The directory; missing parents are made.
        config
            The resolved configuration.
        info
            Entries of ``run.json`` besides ``status``: versions, seed, machine, timing.
        partition
            Sample indices of each client.
        arrays
            Samples of each client and label, by `LABELS` or `DECILES`, and the validation samples, by `VALIDATION`.

        Raises
        ------
        ValueError
            If the directory exists and is not empty.
        """
        run = cls(require_free(path))
        run.begin(config, info, partition, arrays)
        return run

    def begin(
        self,
        config: RunConfig,
        info: Mapping[str, object],
        partition: Sequence[Indices],
        arrays: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    ) -> None:
        """Write the files of a run before its first round; see `create`.

        ``config.toml`` is written first and ``run.json`` last, so that a run that is interrupted in between can be
        resumed.
        """
        toml = config.to_toml().encode()
        run_json = _json_bytes({"status": "running", **info})
        content = io.BytesIO()
        parts: dict[str, Any] = {str(i): np.asarray(part, dtype=np.int64) for i, part in enumerate(partition)}
        np.savez(content, **parts, **dict[str, Any](arrays))

        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "run.json").unlink(
            missing_ok=True
        )  # its digests are those of the files that are replaced
        replace_file(self.path / "config.toml", toml)
        replace_file(self.path / "partition.npz", content.getvalue())
        replace_file(self.metrics, b"")
        replace_file(self.path / "run.json", run_json)

    @property
    def metrics(self) -> Path:
        """The file ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder ``checkpoint``."""
        return self.path / "checkpoint"

    def append(self, row: Row) -> None:
        """Add one round to ``metrics.jsonl`` and flush it; NaN and infinity are written as ``null``."""
        line = json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False)
        try:
            with refuse_link(self.metrics).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise named(error, self.metrics) from error

    def metrics_so_far(self) -> dict[str, int | str]:
        """Flush ``metrics.jsonl`` to the disk and return its length in bytes and its digest, for a checkpoint."""
        sync(self.metrics)
        content = self.metrics.read_bytes()
        return {"metrics_bytes": len(content), "metrics_digest": digest_of(content)}

    def cut(self, length: int) -> list[Row]:
        """Truncate ``metrics.jsonl`` to ``length`` bytes and return its rows."""
        rows = self.reader().rows(length)
        with open(open_file(self.metrics, os.O_WRONLY), "wb") as file:
            file.truncate(length)
        return rows

    def reader(self) -> RunReader:
        """Return what reads the files."""
        return RunReader(self.path)

    def write_config(self, config: RunConfig) -> None:
        """Replace ``config.toml``."""
        replace_file(self.path / "config.toml", config.to_toml().encode())

    def write_clients(self, table: Table) -> None:
        """Write or replace one round in ``clients.parquet``."""
        from fedpisa.runs import per_client

        folder = refuse_link(self.path / CLIENTS)
        folder.mkdir(exist_ok=True)
        number = int(table["round"][0])
        replace_file(folder / f"round-{number:06d}.parquet", per_client.to_parquet(table))

    def update(self, **info: object) -> None:
        """Set entries of ``run.json``, such as ``status``, and keep the others."""
        replace_file(self.path / "run.json", _json_bytes({**self.reader().info, **info}))

    def write_file(self, name: str, content: bytes | None) -> None:
        """Write or replace a file, unless there is no content."""
        if content is not None:
            replace_file(self.path / name, content)

    def write_model(
        self,
        parameters: Mapping[str, NDArray[Any]],
        names: Mapping[str, str] | None = None,
        base: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the global model to ``model.safetensors``; the same arrays give the same bytes.

        Parameters
        ----------
        parameters
            The arrays by the names of parameters and buffers.
        names
            For each entry of the module's ``state_dict``, the name of its array: tied entries share one. By
            default each array is an entry. Entries without an array are left out.
        base
            Folder and digest of the pretrained model, if there is one.
        """
        from safetensors.numpy import save

        names = names or {name: name for name in parameters}
        names = {key: name for key, name in names.items() if name in parameters}
        # safetensors takes the memory as it lies: give it C order.
        arrays = {key: np.asarray(parameters[name], order="C") for key, name in sorted(names.items())}
        for key, array in arrays.items():
            if array.dtype == np.complex128:
                LOG.warning(
                    "model.safetensors has %s as complex64, because the format has no complex128", key
                )
                arrays[key] = array.astype(np.complex64)
        tied = {key: name for key, name in sorted(names.items()) if key != name}
        metadata = {name: json.dumps(value) for name, value in ((TIED, tied), (BASE, dict(base))) if value}
        replace_file(self.path / "model.safetensors", save(arrays, metadata or None))


@final
@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The result of a run.

    Parameters
    ----------
    config
        The resolved configuration.
    rows
        One mapping per round, from column to value; round 0 is the initial model.
    parameters
        The global parameters under the module's own names; empty while a run on disk has written none.
    partition
        Sample indices of each client.
    status
        ``finished``, or the reason why the run has not finished.
    directory
        The run's directory; ``None`` if the run is not on disk.
    client_tables
        Tables of `clients` if the run is not on disk.
    majority_share
        Share of the most frequent class in the test set; ``None`` for a regression and for runs of earlier versions.
    reference
        The kind of reference, see `fedpisa.strategies.base.Reference`; empty for a federated algorithm.
    measures
        The task's measures; the first is the headline.
    """

    config: RunConfig
    rows: Sequence[Row]
    parameters: Mapping[str, NDArray[Any]]
    partition: Sequence[Indices]
    status: Status = "finished"
    directory: Path | None = None
    client_tables: Sequence[Table] = ()
    majority_share: float | None = None
    reference: str = ""
    measures: Sequence[Measure] = CLASSIFICATION

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per round; bytes, steps and seconds are those of the round, not sums."""
        return history(self.rows)

    @cached_property
    def clients(self) -> pd.DataFrame:
        """The model's metrics on each client's training samples, one row per evaluated round and client.

        ``train_loss`` is the loss during the client's training; NaN if it did not take part in the round.

        Raises
        ------
        ValueError
            If ``per-client`` was false.
        """
        from fedpisa.runs import per_client

        if not self.config.per_client:
            raise ValueError("per-client = false, so clients were not evaluated: run with per-client = true")
        if self.directory is None:
            return per_client.to_frame(self.client_tables)
        return per_client.read_tables(RunReader(self.directory))

    def last(self, column: str) -> float | None:
        """Return the last finite value of a column; ``None`` if there is none."""
        values = self._values(column)
        return values[-1][1] if values else None

    @cached_property
    def headline(self) -> Measure:
        """The first measure of the task that the run has on the test set; the loss if it has none."""
        columns = {name for row in self.rows for name, value in row.items() if value is not None}
        return headline(self.measures, columns)

    def measure(self, column: str) -> Measure:
        """Return the name of a column for readers, and which direction is better."""
        return measure_of(column, self.measures)

    @property
    def target(self) -> tuple[str, float] | None:
        """The column and the value that the run's configuration wants to be reached, if there is one."""
        return self.config.target_of(self.measures[0].of("test").column)

    def best(self, column: str | None = None) -> float | None:
        """Return the best value of a column, by default of the `headline`; ``None`` if there is none.

        Less is better, except for measures of which more is. The best value on the test set is optimistic, because the
        test set itself selects the round; see `selected`.
        """
        found = self._best(column or self.headline.column)
        return None if found is None else found[1]

    def best_round(self, column: str = "validation_loss") -> int | None:
        """Return the first round in which a column has its `best` value; ``None`` if it has none."""
        found = self._best(column)
        return None if found is None else found[0]

    def selected(self, column: str | None = None, by: str = "validation_loss") -> float | None:
        """Return a column's value in the best round of another column; ``None`` if one of them has no value.

        The column is the `headline` by default.
        """
        return dict(self._values(column or self.headline.column)).get(
            -1 if (best := self.best_round(by)) is None else best
        )

    @property
    def stopped_early(self) -> bool:
        """Whether ``early-stopping`` ended the run before its last round."""
        ended = self.status == "finished" and self.config.early_stopping > 0
        return ended and self.last_round < self.config.num_server_rounds

    @property
    def last_round(self) -> int:
        """Number of the last round; 0 if there is none."""
        return max((int(row["round"] or 0) for row in self.rows), default=0)

    def total(self, column: str) -> float:
        """Return the sum of a column over the rounds, such as ``bytes_up`` or ``seconds``."""
        return total(value for _, value in self._values(column))

    def rounds_to(self, target: float, column: str | None = None) -> int | None:
        """Return the first round in which a column, by default the `headline`, is at least as good as ``target``.

        ``None`` if it never is.
        """
        measure = self.headline if column is None else self.measure(column)
        return next((n for n, value in self._values(measure.column) if measure.reaches(value, target)), None)

    def rounds_to_target(self) -> int | None:
        """Return the first round that reaches the configuration's `target`; ``None`` if there is no such round."""
        return None if self.target is None else self.rounds_to(self.target[1], self.target[0])

    def plot(self, x: str = "round", y: str | None = None, ax: Axes | None = None, **line: Any) -> Axes:
        """Draw one column against rounds, bytes, local steps or seconds.

        Parameters
        ----------
        x
            ``round``, or the running sum of ``bytes``, ``local-steps`` or ``seconds``.
        y
            A column of `history`; by default the `headline`.
        ax
            Axes to draw on; by default those of a new pyplot figure.
        line
            Options of `matplotlib.axes.Axes.plot`, such as ``label`` or ``color``.
        """
        from fedpisa import plots

        y = y or self.headline.column
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots(layout="constrained")[1]
        look = {"label": self.config.algorithm, **(plots.REFERENCE if self.reference else {}), **line}
        plots.draw_curve(ax, self.history, x=x, y=y, **look)
        plots.label_axes(ax, x=x, y=y, measure=self.measure(y.replace("-", "_")))
        return ax

    def _best(self, column: str) -> tuple[int, float] | None:
        measure = self.measure(column)
        return min(self._values(column), key=lambda pair: measure.rank(pair[1]), default=None)

    def _values(self, column: str) -> list[tuple[int, float]]:
        """Return ``(round, value)`` for each finite value of a column."""
        pairs = ((int(row["round"] or 0), row.get(column)) for row in self.rows)
        return [
            (number, float(value)) for number, value in pairs if value is not None and math.isfinite(value)
        ]

    def _summary(self) -> dict[str, str]:
        """Return the main facts of the run as text."""
        summary = {
            "algorithm": self.config.algorithm,
            "dataset": self.config.dataset,
            "clients": str(self.config.num_clients),
            "rounds": str(self.last_round),
            "status": self.status,
        }
        shown = [measure.of("test").column for measure in self.measures]
        for column in [*shown, "validation_loss", "train_loss"]:
            if (value := self.last(column)) is not None:
                summary[self.measure(column).name] = self.measure(column).text(value)
        if self.majority_share is not None and "test accuracy" in summary:
            summary["majority class"] = format(self.majority_share, ".2%")
        if self.directory is not None:
            summary["directory"] = str(self.directory)
        return summary

    def __repr__(self) -> str:
        return escaped(f"Result({', '.join(f'{key}: {value}' for key, value in self._summary().items())})")

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for key, value in self._summary().items()
        )
        return f"<table>{cells}</table>"


def common_headline(results: Iterable[Result]) -> Measure:
    """Return the measure that ranks results: the first of their headlines that all have, otherwise the loss.

    Runs of different tasks may have only the loss in common.
    """
    evaluated = [run for run in results if run.last(run.headline.column) is not None]
    headlines = [run.headline for run in evaluated]
    shared = (m for m in headlines if all(run.last(m.column) is not None for run in evaluated))
    return next(shared, LOSS.of("test"))


def curve_labels(results: Sequence[Result]) -> list[str]:
    """Return a short label for each run: its algorithm, or its directory if algorithms repeat."""
    algorithms = [result.config.algorithm for result in results]
    names = [result.directory.name if result.directory else "" for result in results]
    paths = [str(result.directory) for result in results]
    return next((found for found in (algorithms, names) if len(set(found)) == len(results)), paths)


def history(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rounds as a data frame: the columns in `METRICS`, then the others.

    Examples
    --------
    >>> frame = history([{"round": 0, "test_accuracy": 0.1}, {"round": 1, "primal_residual": 2}])
    >>> list(frame.columns), len(frame)
    (['round', 'test_accuracy', 'primal_residual'], 2)
    """
    import pandas as pd

    table = [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]
    seen = dict.fromkeys(key for row in table for key in row)
    columns = [name for name in METRICS if name in seen] + [name for name in seen if name not in METRICS]
    return pd.DataFrame(table, columns=columns or list(METRICS))


def load_result(directory: str | Path) -> Result:
    """Read a run's directory, also of a running or an interrupted run.

    Nothing that the configuration names is imported, and no symbolic link in the directory is followed. The result's
    configuration is a ``stored`` one, see `RunConfig`.

    Parameters
    ----------
    directory
        The run's directory, as given to ``fedpisa run --out``.

    Raises
    ------
    ValueError
        If ``directory`` is not a run's directory, or one of its files cannot be read.
    """
    path = Path(directory)
    if not os.path.isdir(path):
        raise ValueError(f"{path} is not a directory: name the directory of a run")
    missing = [name for name in ("config.toml", "run.json", "metrics.jsonl") if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"{path} is not a run's directory, it lacks {', '.join(missing)}: name the directory of a run"
        )
    try:
        reader = RunReader(path)
        return Result(
            config=reader.config(),
            rows=reader.rows(),
            parameters=reader.model(),
            partition=reader.partition(),
            status=reader.info["status"],
            directory=path,
            majority_share=reader.info.get("majority_share"),
            reference=reader.info.get("reference", ""),
            measures=from_records(reader.info.get("measures")),
        )
    except ValueError as error:
        raise ValueError(
            f"the run in {path} cannot be read ({error}): name another run, or repeat it"
        ) from error


def _plain(value: object) -> object:
    """Return a value that JSON can represent; NaN and infinity become ``None``."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _json_bytes(info: Mapping[str, object]) -> bytes:
    return (json.dumps(_plain(info), indent=2, allow_nan=False) + "\n").encode()
