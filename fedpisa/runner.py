"""One run, from its configuration to its result."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedpisa.apps.handlers import make_client_app
from fedpisa.clients.local import BUFFERS
from fedpisa.config import RunConfig, load_config
from fedpisa.diagnostics import FullObjective
from fedpisa.federation import Federation
from fedpisa.flower.compat import to_tensors
from fedpisa.results import Result, Row, RunDirectory, Status, require_free
from fedpisa.simulation.loop import LoopGrid
from fedpisa.simulation.rounds import Round, rounds
from fedpisa.simulation.vmap import UnstackableError, VmapGrid


@final
@dataclass(frozen=True)
class RunStarted:
    """Everything is checked and built; the first round follows."""

    config: RunConfig
    num_parameters: int
    num_train: int
    num_test: int
    engine: str
    device: str


@final
@dataclass(frozen=True)
class RoundFinished:
    """A round's row of ``metrics.jsonl``; round 0 is the initial model."""

    row: Row
    num_server_rounds: int


@final
@dataclass(frozen=True)
class RunFinished:
    """The run's result, whatever its status."""

    result: Result


Event = RunStarted | RoundFinished | RunFinished


def run(
    config: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Train one algorithm on one federated data set.

    Parameters
    ----------
    config
        A configuration, flat keys, or the path of a TOML file; SISA on the embedded digits by default.
    out
        Directory of the result, which must not exist or be empty; by default nothing is written.
    on_event
        Told what happens: `RunStarted`, `RoundFinished` for every row, `RunFinished`.

    Returns
    -------
    Result
        Its ``status`` is ``finished``, or ``diverged`` if the loss or the parameters were no longer finite;
        the rounds until then are kept.

    Raises
    ------
    ValueError
        If the configuration, the data or the directory is unusable; nothing is written then.
    KeyboardInterrupt
        After the rounds so far and the model have been written, with status ``interrupted``.

    Examples
    --------
    >>> result = run({"num-server-rounds": 2, "model": "logistic"})
    >>> result.status, len(result.history)
    ('finished', 3)
    """
    config = load_config(config)
    directory = None if out is None else require_free(Path(out))
    simulation = Simulation(config)
    tell = on_event if on_event is not None else lambda event: None
    begin = time.perf_counter()
    files = None
    if directory is not None:
        files = RunDirectory.create(
            directory,
            config=simulation.config,
            facts=_facts(simulation),
            partition=simulation.federation.partition,
        )
    tell(simulation.started())
    rows: list[Row] = []
    status: Status = "failed"
    try:
        for row in simulation.rows():
            rows.append(row)
            if files is not None:
                files.append(row)
            tell(RoundFinished(row, config.num_server_rounds))
        status = "diverged" if simulation.diverged else "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        parameters = simulation.parameters()
        if files is not None:
            files.write_model(parameters)
            files.update(status=status, seconds=time.perf_counter() - begin, finished=_now())
    result = Result(simulation.config, rows, parameters, simulation.federation.partition, status, directory)
    tell(RunFinished(result))
    return result


@final
class Simulation:
    """A federation on an in-process Grid, and its rounds.

    Parameters
    ----------
    config
        The run's configuration.

    Raises
    ------
    ValueError
        If the configuration or the data is unusable.
    """

    def __init__(self, config: RunConfig) -> None:
        self.federation = Federation(config)
        self.config = self.federation.config
        self.grid = make_grid(self.federation)
        self.strategy = self.federation.strategy()
        self.model: ArrayRecord = self.strategy.start_from(self.federation.initial_model())
        self.diverged = False

    @property
    def engine(self) -> str:
        """``vmap`` or ``loop``."""
        return "vmap" if isinstance(self.grid, VmapGrid) else "loop"

    def started(self) -> RunStarted:
        """Return what is about to run."""
        return RunStarted(
            config=self.config,
            num_parameters=self.federation.task.layout.size,
            num_train=len(self.federation.data.y),
            num_test=len(self.federation.test.y),
            engine=self.engine,
            device=str(self.federation.device),
        )

    def rows(self) -> Iterator[Row]:
        """Yield the row of each round, the initial model's first; stop at divergence."""
        yield {"round": 0, **self._evaluate()}
        for finished in rounds(self.strategy, self.grid, self.model, self.config.num_server_rounds):
            self.model = finished.arrays
            yield self._row(finished)
            if self.diverged:
                return

    def parameters(self) -> dict[str, NDArray[Any]]:
        """Return the global model, buffers included, under the module's own names."""
        params_P, buffers_Q = self._vectors()
        task = self.federation.task
        frozen = {name: tensor for name, tensor in task.module.named_parameters() if not tensor.requires_grad}
        tensors = frozen | task.layout.unflatten(params_P) | task.buffer_layout.unflatten(buffers_Q)
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def _vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.federation.test.x
        tensors = to_tensors(self.model, x.dtype, x.device)
        return tensors["params"], tensors.get(BUFFERS, x.new_zeros(0))

    def _evaluate(self) -> dict[str, float]:
        begin = time.perf_counter()
        test = self.federation.test
        metrics = self.federation.task.evaluate(*self._vectors(), test.x, test.y)
        row = {f"test_{name}": value for name, value in metrics.items()}
        row["evaluation_seconds"] = time.perf_counter() - begin
        return row

    def _row(self, finished: Round) -> Row:
        last = finished.server_round == self.config.num_server_rounds
        evaluated = last or finished.server_round % self.config.eval_every == 0
        metrics = {} if finished.train_metrics is None else dict(finished.train_metrics)
        row: dict[str, Any] = {"round": finished.server_round}
        row |= {name.replace("-", "_"): value for name, value in metrics.items()}
        row["local_steps"] = int(row.get("local_steps", 0))
        row["bytes_up"], row["bytes_down"] = finished.bytes_up, finished.bytes_down
        row["seconds"] = finished.seconds
        params_P, buffers_Q = self._vectors()
        finite = bool(torch.isfinite(params_P).all()) and bool(np.isfinite(row.get("train_loss", 0.0)))
        self.diverged = not finite
        if evaluated and finite:
            row |= self._evaluate()
            row |= self._state_columns(buffers_Q)
        return row

    def _state_columns(self, buffers_Q: torch.Tensor) -> dict[str, float]:
        """Return the diagnostics that need every client's state, or all of its samples."""
        server, data = self.strategy.server, self.federation.data
        assert server is not None
        algorithm = self.federation.algorithm
        weights_N = self.strategy.weights_of_all(torch.from_numpy(data.sizes_N).to(data.x.device))
        columns = algorithm.stationarity(server, self.grid, weights_N)
        if self.config.exact_diagnostics:
            objective = FullObjective(self.federation.task, data, buffers_Q)
            columns |= algorithm.exact_diagnostics(server, self.grid, objective, weights_N)
        return columns


def make_grid(federation: Federation) -> LoopGrid | VmapGrid:
    """Return the engine's Grid; ``auto`` stacks the clients unless a layer cannot be stacked.

    Raises
    ------
    ValueError
        If ``engine = "vmap"`` is asked for and a layer cannot be stacked.
    """
    config, data = federation.config, federation.data
    if config.engine != "loop":
        try:
            return VmapGrid(federation.task, federation.algorithm.local_update, data, config.seed)
        except UnstackableError:
            if config.engine == "vmap":
                raise
    app = make_client_app(lambda context: federation.client(int(context.node_config["partition-id"])))
    return LoopGrid(app, data.num_clients)


def _facts(simulation: Simulation) -> dict[str, object]:
    packages = ("fedpisa", "flwr", "torch", "torchvision", "numpy", "scikit-learn")
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(ModuleNotFoundError):
            versions[package] = version(package)
    machine = {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(simulation.federation.device),
    }
    if simulation.federation.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(simulation.federation.device)
    started = {
        "engine": simulation.engine,
        "num_parameters": simulation.federation.task.layout.size,
        "layout": simulation.federation.task.layout.fingerprint,
        "started": _now(),
    }
    return {"seed": simulation.config.seed, "versions": versions, "machine": machine, **started}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
