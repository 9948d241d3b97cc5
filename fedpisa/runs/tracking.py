"""Following runs in TensorBoard or MLflow, fed by the same events as the console.

What follows a run does not change it. So there is no key for it: ``fedpisa run --track tensorboard``, and in
Python ``on_event=[TensorBoard("runs/a")]``; neither is written into ``config.toml`` nor repeated with the run.
"""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.events import Event
    from fedpisa.runs.results import Row

Listener = Callable[["Event"], None]


class TrackerName(StrEnum):
    """The trackers that the command line knows."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


def fan_out(listeners: Listener | Iterable[Listener] | None) -> Listener:
    """Return one listener that passes each event on to all of them, in order.

    Examples
    --------
    >>> tell = fan_out([print, lambda event: print("again", event)])
    >>> tell("event")
    event
    again event
    """
    if listeners is None:
        return lambda event: None
    if callable(listeners):
        return listeners
    each = tuple(listeners)

    def tell(event: Event) -> None:
        for listener in each:
            listener(event)

    return tell


def make_tracker(name: TrackerName, directory: str | Path) -> Tracker:
    """Return the tracker of a name for the run in ``directory``.

    Raises
    ------
    ValueError
        If what it writes with is not installed.
    """
    if name is TrackerName.TENSORBOARD:
        return TensorBoard(Path(directory) / "tensorboard")
    return MLflow(directory)


class Tracker(ABC):
    """A listener that writes what happens to one run somewhere; give it to ``fedpisa.run`` as ``on_event``.

    As a context manager it also closes what it writes to when the run is interrupted or fails.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("interrupted" if kind is not None and issubclass(kind, KeyboardInterrupt) else "failed")

    def __call__(self, event: Event) -> None:
        """Write one event."""
        from fedpisa.runs.events import RoundFinished, RunFinished, RunStarted

        if isinstance(event, RunStarted):
            self.start(event.config)
        elif isinstance(event, RoundFinished):
            self.log(int(event.row["round"] or 0), finite_metrics(event.row))
        elif isinstance(event, RunFinished):
            self.finish(event.result.status)

    @abstractmethod
    def start(self, config: RunConfig) -> None:
        """Begin with a run."""

    @abstractmethod
    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Write one round's values."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """End with the run; nothing happens if it has ended already, or never began."""


def finite_metrics(row: Row) -> dict[str, float]:
    """Return the finite numbers of a round, without its own number.

    Examples
    --------
    >>> finite_metrics({"round": 3, "test_loss": 0.5, "train_loss": None, "bytes_up": 7})
    {'test_loss': 0.5, 'bytes_up': 7.0}
    """
    numbers = {name: float(value) for name, value in row.items() if name != "round" and value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


@final
class TensorBoard(Tracker):
    """Writes every column as a scalar against the round, and the configuration as text.

    A run that is resumed writes a further file into the same folder; what it repeats is shown once.

    Parameters
    ----------
    folder
        Where the event files go: the run's directory and ``tensorboard``, by the command line.

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
        """Remember the configuration: the file is opened by the first round, which says where it begins."""
        self._config = config

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Write the values and flush them."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=number)
            if self._config is not None:
                self._writer.add_text("config", f"```toml\n{self._config.to_toml()}```", number)
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@final
class MLflow(Tracker):
    """Writes the resolved configuration as parameters and every column as a metric, the round as its step.

    It goes where MLflow is told to write, by ``MLFLOW_TRACKING_URI`` or ``mlflow.set_tracking_uri``, and else
    into a database of the run's own, ``mlruns/mlflow.db`` in its directory. The experiment is called
    ``fedpisa``, or what ``MLFLOW_EXPERIMENT_NAME`` says. ``mlflow.json`` in the run's directory says which run
    it is, so that one that is resumed goes on in the same. If the store fails, the run ends with status
    ``failed``, its rounds kept.

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
        """Make a run in the store, or go on with this directory's."""
        note = self._directory / "mlflow.json"
        known = json.loads(note.read_bytes()) if note.is_file() else {"tracking_uri": self._store()}
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
                "that is there, or unset it"
            ) from error
        self._client, self._run_id = client, known["run_id"]
        self._directory.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(known, indent=2) + "\n")

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Write the values."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, number) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, status: str) -> None:
        """Say how the run ended."""
        if self._client is not None:
            ends = {"finished": "FINISHED", "interrupted": "KILLED"}
            self._client.set_terminated(self._run_id, ends.get(status, "FAILED"))
            self._client = None

    def _store(self) -> str:
        """Return where MLflow is told to write, or else a database in the run's directory."""
        if self._mlflow.is_tracking_uri_set():
            return str(self._mlflow.get_tracking_uri())
        folder = self._directory / "mlruns"
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}"

    def _new_run(self, client: Any, config: RunConfig) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedpisa"
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        run_id = client.create_run(experiment, run_name=self._directory.name).info.run_id
        client.log_batch(
            run_id, params=[Param(key, str(value)) for key, value in config.to_mapping().items()]
        )
        return str(run_id)


def _missing(name: str, extra: str) -> ValueError:
    return ValueError(f"{name} needs the extra {extra}, run pip install 'fedpisa[{extra}]'")
