"""Trackers that log runs to TensorBoard or MLflow; like the console, they listen to the run's events.

Tracking does not change a run, so it is no key of ``config.toml``: use ``fedpisa run --track tensorboard``, or
``on_event=[TensorBoard("runs/a")]`` in Python.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from fedpisa.runs.events import Event, Generated, RoundFinished, RunFinished, RunStarted
from fedpisa.storage.files import read_file, refuse_link, replace_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedpisa.config.run import RunConfig
    from fedpisa.runs.run_files import Row

Listener = Callable[[Event], None]


class TrackerName(StrEnum):
    """Names of the trackers on the command line."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


@final
@dataclass(frozen=True)
class Listeners:
    """One listener in the place of several, which it calls in order."""

    listeners: tuple[Listener, ...]

    def __call__(self, event: Event) -> None:
        """Tell all of them."""
        for listener in self.listeners:
            listener(event)


def fan_out(listeners: Listener | Iterable[Listener] | None) -> Listeners:
    """Return one listener that calls all listeners in order.

    Examples
    --------
    >>> notify = fan_out([print, lambda event: print("again", event)])
    >>> notify("event")
    event
    again event
    """
    return Listeners((listeners,) if callable(listeners) else tuple(listeners or ()))


def make_tracker(name: TrackerName, directory: str | Path) -> Tracker:
    """Return a new tracker for the run in ``directory``.

    Raises
    ------
    ValueError
        If the tracker's package is not installed.
    """
    if name is TrackerName.TENSORBOARD:
        return TensorBoard(refuse_link(Path(directory) / "tensorboard"))
    return MLflow(directory)


class Tracker(ABC):
    """A listener that logs the metrics and samples of one run; pass it to ``fedpisa.run`` as ``on_event``.

    As a context manager it also closes the log if the run is interrupted or fails.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.finish("interrupted" if kind is not None and issubclass(kind, KeyboardInterrupt) else "failed")

    def __call__(self, event: Event) -> None:
        """Log one event."""
        if isinstance(event, RunStarted):
            self.start(event.config)
        elif isinstance(event, RoundFinished):
            self.log(int(event.row["round"] or 0), finite_metrics(event.row))
        elif isinstance(event, Generated):
            self.show(event.number, event.files)
        elif isinstance(event, RunFinished):
            self.finish(event.result.status)

    @abstractmethod
    def start(self, config: RunConfig) -> None:
        """Start the log of a run."""

    @abstractmethod
    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Log the values of one round."""

    @abstractmethod
    def show(self, number: int, files: Mapping[str, bytes]) -> None:
        """Log what the model made after a round: texts and PNG files, by name."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """Close the log; this has no effect if the log is not open."""


def finite_metrics(row: Row) -> dict[str, float]:
    """Return the finite values of a round's row, without ``round``.

    Examples
    --------
    >>> finite_metrics({"round": 3, "test_loss": 0.5, "train_loss": None, "bytes_up": 7})
    {'test_loss': 0.5, 'bytes_up': 7.0}
    """
    numbers = {name: float(value) for name, value in row.items() if name != "round" and value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


@final
class TensorBoard(Tracker):
    """Logs every column as a scalar per round, the configuration as text, and samples as text and images.

    A resumed run adds a file to the same folder; TensorBoard shows repeated rounds once.

    Parameters
    ----------
    folder
        Folder of the event files; on the command line ``tensorboard`` in the run's directory.

    Raises
    ------
    ValueError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("TensorBoard", "tensorboard") from error
        self._make = SummaryWriter
        self._folder = Path(folder)
        self._writer: Any = None
        self._config: RunConfig | None = None

    def start(self, config: RunConfig) -> None:
        """Store the configuration; the first round opens the file, because its number is needed there."""
        self._config = config

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Log the values and flush the file."""
        writer = self._open(number)
        for name, value in values.items():
            writer.add_scalar(name, value, number)
        writer.flush()

    def show(self, number: int, files: Mapping[str, bytes]) -> None:
        """Log texts as they are, and images, under the names without their ends."""
        # After a resumption there may be no further round, and those so far stay.
        writer = self._open(number + 1)
        for name, content in files.items():
            tag, _, kind = name.rpartition(".")
            if kind == "png":
                writer.add_image(tag, _pixels(content), number, dataformats="HWC")
            else:  # indented, because TensorBoard reads Markdown
                writer.add_text(tag, textwrap.indent(content.decode(), "    ", lambda line: True), number)
        writer.flush()

    def finish(self, status: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, first: int) -> Any:
        """Return the writer; a new one hides what earlier files have of round ``first`` and later ones."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=first)
            if self._config is not None:
                self._writer.add_text("config", f"```toml\n{self._config.to_toml()}```", first)
        return self._writer


@final
class MLflow(Tracker):
    """Logs the resolved configuration as parameters and every column as a metric, with the round as step.

    The store is the one set by ``MLFLOW_TRACKING_URI`` or ``mlflow.set_tracking_uri``, and otherwise the database
    ``mlruns/mlflow.db`` in the run's directory. The experiment's name is ``MLFLOW_EXPERIMENT_NAME``, by default
    ``fedpisa``. ``mlflow.json`` in the run's directory holds the id of the MLflow run, so that a resumed run continues
    it. If the store fails, the run ends with status ``failed`` and keeps its rounds. Samples are artifacts, under their
    names in the run's directory; those of a run in the database lie beside it.

    Parameters
    ----------
    directory
        The run's directory.

    Raises
    ------
    ValueError
        If MLflow is not installed.
    """

    def __init__(self, directory: str | Path) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise _missing("MLflow", "mlflow") from error
        self._mlflow: Any = mlflow
        self._directory = Path(directory).absolute()
        self._client: Any = None
        self._run_id = ""

    def start(self, config: RunConfig) -> None:
        """Create an MLflow run, or continue the one in ``mlflow.json``."""
        note = self._directory / "mlflow.json"
        known = read_file(note, _note) if note.is_file() else {"tracking_uri": self._store()}
        client = self._mlflow.MlflowClient(tracking_uri=known["tracking_uri"])
        try:
            if "run_id" in known:
                client.update_run(known["run_id"], status="RUNNING")
            else:
                known["run_id"] = self._new_run(client, config)
        except self._mlflow.MlflowException as error:
            cause = " ".join(str(error).split())[:200]
            raise ValueError(
                f"MLflow cannot write to {known['tracking_uri']} ({cause}): set MLFLOW_TRACKING_URI to a store "
                "that exists, or unset it"
            ) from error
        self._client, self._run_id = client, known["run_id"]
        self._directory.mkdir(parents=True, exist_ok=True)
        replace_file(note, (json.dumps(known, indent=2) + "\n").encode())

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, number) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def show(self, number: int, files: Mapping[str, bytes]) -> None:
        """Log the files as artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                file = Path(folder) / name
                file.write_bytes(content)
                self._client.log_artifact(self._run_id, str(file))

    def finish(self, status: str) -> None:
        """Set the final status of the MLflow run."""
        if self._client is not None:
            ends = {"finished": "FINISHED", "interrupted": "KILLED"}
            self._client.set_terminated(self._run_id, ends.get(status, "FAILED"))
            self._client = None

    def _store(self) -> str:
        """Return the configured store, by default a database in the run's directory."""
        if self._mlflow.is_tracking_uri_set():
            return str(self._mlflow.get_tracking_uri())
        folder = refuse_link(self._directory / "mlruns")
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{refuse_link(folder / 'mlflow.db')}"

    def _new_run(self, client: Any, config: RunConfig) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedpisa"
        known = client.get_experiment_by_name(name)
        # By default the artifacts of a database lie in the current directory.
        place = (
            None
            if self._mlflow.is_tracking_uri_set()
            else (self._directory / "mlruns" / "artifacts").as_uri()
        )
        experiment = known.experiment_id if known else client.create_experiment(name, place)
        run_id = client.create_run(experiment, run_name=self._directory.name).info.run_id
        client.log_batch(
            run_id, params=[Param(key, str(value)) for key, value in config.to_mapping().items()]
        )
        return str(run_id)


def _pixels(content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a PNG file ``(height, width, channels)``."""
    from matplotlib.image import imread

    return np.round(255 * imread(io.BytesIO(content), format="png")).astype(np.uint8)


def _note(content: bytes) -> dict[str, str]:
    known = json.loads(content)
    return {name: str(known[name]) for name in ("tracking_uri", "run_id")}


def _missing(name: str, extra: str) -> ValueError:
    return ValueError(f"{name} needs the extra {extra}: run pip install 'fedpisa[{extra}]'")
