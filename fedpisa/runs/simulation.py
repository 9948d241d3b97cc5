"""A simulation: a federation, its Grid and strategy, and the rows of its rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, final

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedpisa.clients.client import BUFFERS
from fedpisa.clients.rollouts import OF_PLAYING_CLIENTS
from fedpisa.components import LOG
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Indices
from fedpisa.datasets.client_data import ClientData
from fedpisa.flower.client_app import make_client_app
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.engine_grid import EngineGrid
from fedpisa.models.hugging_face import CausalLM
from fedpisa.runs.early_stopping import EarlyStopping
from fedpisa.runs.events import RunStarted
from fedpisa.runs.generated import generated_files
from fedpisa.runs.per_client import Table, evaluate_clients, table_of
from fedpisa.runs.run_files import Row
from fedpisa.server.reply_filter import MAX_UPLOAD_NORM, ReplyFilter
from fedpisa.simulation.faults import FaultyGrid
from fedpisa.simulation.federation import Federation, build_faults
from fedpisa.simulation.grid import InProcessGrid
from fedpisa.simulation.loop import LoopGrid
from fedpisa.simulation.privacy import sentence
from fedpisa.simulation.ray_grid import RayGrid
from fedpisa.simulation.rounds import Round, rounds
from fedpisa.simulation.stacked.gradient_check import UnstackableError
from fedpisa.simulation.stacked.grid import VmapGrid
from fedpisa.strategies._turns import Turns
from fedpisa.tasks.base import Task
from fedpisa.tasks.full_objective import FullObjective


@final
class Simulation:
    """Runs the rounds of a federation on a Grid.

    Parameters
    ----------
    config
        The run's configuration.
    grid
        Function that makes the Grid; by default the Grid of the configuration's engine.
    clients_have_data, partition
        Whether the clients bring their own samples, and the split of the data; see `Federation`.

    Raises
    ------
    ValueError
        If the configuration or the data is unusable.
    """

    def __init__(
        self,
        config: RunConfig,
        grid: Callable[[Federation], EngineGrid] | None = None,
        *,
        clients_have_data: bool = False,
        partition: Sequence[Indices] | None = None,
    ) -> None:
        self.federation = Federation(config, clients_have_data=clients_have_data, partition=partition)
        self.config = self.federation.config
        self.grid = self._checked((grid or _simulated)(self.federation))
        self.privacy = self.federation.privacy(deployed=self.grid.client_states is None)
        self.strategy = self.federation.strategy(self._reply_filter(), self.privacy)
        self._number_clients()
        self.model: ArrayRecord = self.strategy.start_from(self.federation.initial_model())
        self.server_round = 0
        self.diverged = False
        self.stopping = EarlyStopping(self.config.early_stopping)

    @property
    def engine(self) -> str:
        """The engine: ``vmap``, ``loop``, ``ray``, or ``flower`` for real nodes."""
        return self.grid.engine

    def keep_engine(self, engine: object) -> None:
        """Go on with the engine on which the run began; an earlier version may have stacked fewer models."""
        if self.config.engine == "auto" and (self.engine, engine) == ("vmap", "loop"):
            self.grid = self._checked(_simulated(self.federation, "loop"))
            self._number_clients()

    def started(self) -> RunStarted:
        """Return the event that describes this simulation."""
        validation = self.federation.evaluated.get("validation")
        return RunStarted(
            config=self.config,
            num_parameters=self.federation.task.layout.size,
            num_train=self.federation.data.num_samples,
            num_test=self.federation.test.num_samples,
            num_validation=0 if validation is None else validation.num_samples,
            engine=self.engine,
            device=str(self.federation.device),
            resumed=self.server_round or None,
            privacy=""
            if self.privacy is None
            else sentence(self.privacy.record(self.config.num_server_rounds)),
            measures=self.federation.task.measures,
        )

    def rows(self) -> Iterator[Row]:
        """Yield the row of the initial model and of each round; stop at divergence, or early."""
        last, timeout = self.config.num_server_rounds, self.config.round_timeout
        try:
            if self.server_round == 0:
                row: Row = {"round": 0, **self._evaluate()}
                self.stopping.observe(row)
                yield row
                if self.diverged:
                    return
            # A run may resume from the checkpoint of the round after which it stops.
            last, first = self.server_round if self.stopping.is_due else last, self.server_round + 1
            for finished in rounds(self.strategy, self.grid, self.model, last, timeout, first_round=first):
                self.model, self.server_round = finished.arrays, finished.server_round
                row = self._row(finished)
                self.stopping.observe(row)
                yield row
                if self.diverged or self.stopping.is_due:
                    return
        finally:
            self.grid.close()

    def client_table(self) -> Table:
        """Return the model's metrics on each client's samples."""
        task, data = self._task(), self.federation.data
        reported = self.strategy.reported if self.server_round else None
        trained = None if reported is None else (reported[0], reported[1]["train-loss"])
        if self.reference == "local":
            metrics = self._metrics_of_models(data.only)
        else:
            metrics = evaluate_clients(task, data, *self._vectors())
        return table_of(self.server_round, data, metrics, trained)

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all state that a round changes, for `restore`.

        Random numbers depend on the seed and the round alone. Later rounds do not change the copy.
        """
        parts = {
            "model": {name: value.clone() for name, value in self._tensors().items()},
            "strategy": self.strategy.snapshot(),
            "clients": self.grid.snapshot(),
            "stopping": self.stopping.snapshot(),
        }
        return {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}

    def restore(self, server_round: int, kept: Mapping[str, Tensor]) -> None:
        """Go on after a round, from its `snapshot`."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "strategy": {}, "clients": {}, "stopping": {}}
        for path, value in kept.items():
            part, _, name = path.partition("/")
            is_buffers = path.rpartition("/")[2] == BUFFERS and part != "clients"
            parts[part][name] = self.federation.task.buffer_layout.adopt(value) if is_buffers else value
        self.strategy.restore(parts["strategy"])
        self._number_clients()  # a node may have come back under another number
        self.grid.restore(parts["clients"])
        self.stopping.restore(parts["stopping"])
        self.model = to_record({n: value.to(self.federation.device) for n, value in parts["model"].items()})
        self.server_round = server_round

    @property
    def reference(self) -> str:
        """The kind of reference, see `fedpisa.strategies.base.Reference`; empty for a federated algorithm."""
        return self.federation.algorithm.reference

    @property
    def base(self) -> dict[str, str]:
        """The folder of the pretrained model and its digest; empty for a model that is not read from a folder."""
        module = self.federation.task.module
        return module.base if isinstance(module, CausalLM) else {}

    def parameters(self) -> dict[str, NDArray[Any]]:
        """Return the global model, buffers included, under the module's own names.

        Frozen parameters are included too, but not those of a model that a folder holds.
        """
        params_P, buffers_Q = self._vectors()
        task = self.federation.task
        named = () if self.base else task.module.named_parameters()
        frozen = {name: tensor for name, tensor in named if not tensor.requires_grad}
        tensors = frozen | task.layout.unflatten(params_P) | task.buffer_layout.unflatten(buffers_Q)
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def generated(self) -> dict[str, bytes]:
        """Return the texts or images that the global model makes, as files by name; see `generated_files`."""
        return {} if self.reference == "local" else generated_files(self.federation, *self._vectors())

    def _checked(self, grid: EngineGrid) -> EngineGrid:
        """Return the Grid if its clients support the configuration."""
        config = self.config
        if grid.client_states is not None:
            return grid
        own_data = not self.federation.partition
        unsupported = {
            "exact-diagnostics = true needs every client's samples in this process": config.exact_diagnostics,
            "per-client = true needs every client's samples in this process": config.per_client and own_data,
            "pace, availability and faults need simulated clients": build_faults(config) is not None,
        }
        for cause, is_set in unsupported.items():
            if is_set:
                raise ValueError(f"{cause}: remove the keys if clients are real nodes")
        return grid

    def _reply_filter(self) -> ReplyFilter | None:
        """Return the checks of replies; replies of simulated clients need none, unless faults or a key ask for them."""
        config, bound = self.config, self.config.max_upload_norm
        is_real = self.grid.client_states is None
        if not (is_real or isinstance(self.grid, FaultyGrid) or bound is not None):
            return None
        # A bound that compares clients would undo privacy, which clips each of them.
        if bound is None and (is_real or config.corrupt > 0) and self.privacy is None:
            bound = MAX_UPLOAD_NORM
        sizes_N = self.federation.data.sizes_N if self.grid.sizes_N is None else self.grid.sizes_N
        further = OF_PLAYING_CLIENTS if self.federation.task.rollouts is not None else frozenset[str]()
        return ReplyFilter(bound, config.min_replies, [int(size) for size in sizes_N], further)

    def _number_clients(self) -> None:
        if self.grid.clients:
            self.strategy.number(self.grid.clients)

    def _tensors(self) -> dict[str, Tensor]:
        return to_tensors(self.model, self.federation.task.dtype, self.federation.device)

    def _vectors(self) -> tuple[Tensor, Tensor]:
        tensors, algorithm, server = self._tensors(), self.federation.algorithm, self.strategy.server
        if isinstance(algorithm, Turns) and algorithm.averages and server is not None:
            tensors["params"] = algorithm.averaged(server)
        return tensors["params"], tensors.get(BUFFERS, tensors["params"].new_zeros(0))

    def _task(self) -> Task:
        """Return the task, which may evaluate with what clients remember if they are in this process."""
        task, states = self.federation.task, self.grid.client_states
        return task if states is None else task.remembering(states.state)

    def _metrics_of_models(self, samples_of: Callable[[int], ClientData]) -> dict[str, NDArray[np.float64]]:
        """Return the metrics of each client's own model on some samples, each ``(N,)``."""
        params_P, buffers_Q = self._vectors()
        states = self.grid.client_states
        assert states is not None
        rows = []
        for client_id in range(self.federation.data.num_clients):
            state = states.state(client_id)
            own_P = params_P if state is None else params_P + state["drift"].to(params_P)
            rows.append(self._task().evaluate_set(own_P, buffers_Q, samples_of(client_id)))
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _metrics(self, data: ClientData) -> dict[str, float]:
        """Return the model's metrics on samples; of clients' own models the weighted means and deviations."""
        sizes_N = self.federation.data.sizes_N
        if self.reference != "local":
            return self._task().evaluate_set(*self._vectors(), data)
        values = self._metrics_of_models(lambda client_id: data)
        means = {name: float(np.average(values_N, weights=sizes_N)) for name, values_N in values.items()}
        squares = {name: np.average((values[name] - means[name]) ** 2, weights=sizes_N) for name in values}
        return {**means, **{f"{name}_deviation": float(square**0.5) for name, square in squares.items()}}

    def _evaluate(self) -> dict[str, float]:
        begin = time.perf_counter()
        row = {
            f"{part}_{name}": value
            for part, data in self.federation.evaluated.items()
            for name, value in self._metrics(data).items()
        }
        self.diverged = not all(np.isfinite(value) for name, value in row.items() if name.endswith("loss"))
        row["evaluation_seconds"] = time.perf_counter() - begin
        return row

    def _row(self, finished: Round) -> Row:
        last = finished.server_round == self.config.num_server_rounds
        evaluate = last or finished.server_round % self.config.eval_every == 0
        row: dict[str, Any] = {"round": finished.server_round}
        row |= {name.replace("-", "_"): value for name, value in (finished.train_metrics or {}).items()}
        row["local_steps"] = int(row.get("local_steps", 0))
        row["bytes_up"], row["bytes_down"] = finished.bytes_up, finished.bytes_down
        row["seconds"] = finished.seconds
        if isinstance(self.grid, FaultyGrid) and self.grid.simulated_seconds is not None:
            row["simulated_seconds"] = self.grid.simulated_seconds
        params_P, buffers_Q = self._vectors()
        finite = bool(torch.isfinite(params_P).all()) and bool(np.isfinite(row.get("train_loss", 0.0)))
        self.diverged = not finite
        if evaluate and finite:
            row |= self._evaluate() | self._state_columns(buffers_Q)
        return row

    def _state_columns(self, buffers_Q: Tensor) -> dict[str, float]:
        """Return the diagnostics that need the states or samples of all clients."""
        states, server, data = self.grid.client_states, self.strategy.server, self.federation.data
        assert server is not None
        if states is None:
            return {}
        algorithm = self.federation.algorithm
        weights_N = self.strategy.weights_of_all(torch.from_numpy(data.sizes_N).to(data.x.device))
        columns = algorithm.stationarity(server, states, weights_N)
        if self.config.exact_diagnostics:
            objective = FullObjective(self.federation.task, data, buffers_Q)
            columns |= algorithm.exact_diagnostics(server, states, objective, weights_N)
        return columns


def _simulated(federation: Federation, engine: str = "") -> InProcessGrid:
    """Return the Grid of an engine, by default the configuration's, with its faults."""
    grid, faults = make_grid(federation, engine), build_faults(federation.config)
    return grid if faults is None else FaultyGrid(grid, faults)


@cache
def _say_once(message: str) -> None:
    """Log a message, once in a process: a study repeats its runs."""
    LOG.warning("%s", message)


def make_grid(federation: Federation, engine: str = "") -> LoopGrid | VmapGrid | RayGrid:
    """Return an engine's Grid, by default the configuration's; ``auto`` is ``vmap`` where the model allows it.

    Raises
    ------
    ValueError
        If ``engine = "vmap"`` is asked for and a layer cannot be stacked, or ``engine = "ray"`` and there is no Ray.
    """
    config, data = federation.config, federation.data
    engine = engine or config.engine
    if engine == "ray":
        return RayGrid(config, data.num_clients)
    reason = ""
    if engine != "loop":
        try:
            return VmapGrid(
                federation.task,
                federation.algorithm.local_update,
                data,
                config.seed,
                config.cohort_block,
                config.state_memory,
                federation.schedule,
            )
        except UnstackableError as error:
            if engine == "vmap":
                raise
            reason = error.reason
            _say_once(f'engine = "auto" takes "loop": {reason}')
    app = make_client_app(lambda context: federation.client(int(context.node_config["partition-id"])))
    return LoopGrid(app, data.num_clients, reason=reason)
