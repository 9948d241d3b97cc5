"""Helpers of the tests of algorithms: a table of all algorithms, and small federations.

The table lists what `fedpisa.components` finds, with variants made from each algorithm's keys. A new
algorithm is thus in the table, with every choice that its keys offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from fedpisa import families
from fedpisa.clients.client import BUFFERS, Client
from fedpisa.clients.turns import Game
from fedpisa.datasets.client_data import ClientData
from fedpisa.flower.client_app import EARLIER_ROUND, STATE, STATE_OF, make_client_app
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.messages import SERVER_ROUND
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.simulation.loop import LoopGrid
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.stacked.grid import VmapGrid
from fedpisa.strategies._turns import Turns
from fedpisa.strategies.base import Algorithm
from fedpisa.strategies.primaldual import PrimalDual
from fedpisa.tasks.base import Task
from fedpisa.tasks.modules import in_dtype
from fedpisa.tasks.supervised import supervised

# Values for the small problems; each algorithm takes those of these keys that it has.
BASE: Mapping[str, object] = {"batch-size": 4, "learning-rate": 0.05, "sigma": 1.0, "rho": 2.0}
# Further values, tried one at a time. Choices of a `Literal` are added automatically.
FURTHER: Mapping[str, Sequence[object]] = {
    "amsgrad": [True],
    "batch-size": ["full"],
    "batches-per-round": [3, "all"],
    "beta": [0.9],
    "contrastive-mu": [0.0, 10.0],
    "gamma": [0.9],
    "lambda": [0.1],
    "local-epochs": [2],
    "local-steps": [3],
    "momentum": [0.9],
    "mu": [0.1],
    "optimizer": ["adam"],
    "relaxation": [1.5],
    "rules": [{"bias$": {"name": "adam", "beta": 0.9}, "^0|^weight": "spectral"}],
    "server-step": [0.5],
    "skip-probability": [0.5],
    "weight-decay": [0.1],
}
# The algorithms that train one model by federation; the others are references.
FEDERATED = [name for name, found in families.available("algorithm").items() if not found.factory.reference]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SIZES = (7, 1, 50, 2, 5, 12)


@dataclass(frozen=True)
class Case:
    """An algorithm with some of its keys set."""

    name: str
    values: Mapping[str, object]

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.values.items())])

    def build(self, **more: object) -> Algorithm:
        """Return the algorithm; it takes those of the ``more`` keys, in snake_case, that it has."""
        component = families.find("algorithm", self.name)
        own = families.keys_of(component, self.values)
        wanted = {**BASE, **self.values, **{key.replace("_", "-"): value for key, value in more.items()}}
        return families.build(component, {key: value for key, value in wanted.items() if key in own})


@cache
def cases() -> list[Case]:
    found = []
    for name, component in families.available("algorithm").items():
        found.append(Case(name, {}))
        for key in families.keys_of(component).values():
            choices = get_args(key.annotation) if get_origin(key.annotation) is Literal else ()
            if key.name == "preconditioner":
                choices = tuple(families.available("preconditioner"))
            found += [
                Case(name, {key.name: value})
                for value in (*choices, *FURTHER.get(key.name, ()))
                if value != key.default
            ]
        # Combinations of keys that interact.
        keys = families.keys_of(component)
        if "preconditioner" in keys and keys["preconditioner"].default == "identity":
            found += [
                Case(name, {"preconditioner": rule, "local-steps": 2, "batches-per-round": "all"})
                for rule in families.available("preconditioner")
            ]
        if {"local-steps", "batches-per-round"} <= keys.keys():
            found.append(Case(name, {"local-steps": 2, "batches-per-round": "all"}))
        if {"local-steps", "momentum", "weight-decay"} <= keys.keys():
            found.append(Case(name, {"local-steps": 5, "momentum": 0.9, "weight-decay": 0.1}))
        if {"absent", "gamma", "lambda"} <= keys.keys():
            choices = get_args(keys["absent"].annotation)
            found += [Case(name, {"absent": a, "gamma": 0.9, "lambda": 0.1}) for a in choices]
            if "preconditioner" in keys and keys["preconditioner"].default == "identity":
                rules = families.available("preconditioner")
                found += [Case(name, {"absent": "fresh", "preconditioner": rule}) for rule in rules]
                automatic = {"sigma": "auto", "rho": "auto"}
                found += [Case(name, {key: "auto"}) for key in automatic]
                found += [Case(name, {"sigma": "balanced", "absent": a}) for a in choices]
                found += [
                    Case(name, {**automatic, "absent": a, "lambda": 0.1, "local-steps": 2}) for a in choices
                ]
    return found


def has_duals(case: Case) -> bool:
    return isinstance(case.build(), PrimalDual)


def is_exact(case: Case) -> bool:
    """Return whether every client's step vanishes with its gradient."""
    rule = getattr(case.build().local_update, "rule", None)
    return rule is None or rule.exact


@dataclass
class Federation:
    """A model, data, an algorithm and an engine."""

    algorithm: Any
    module: nn.Module
    x: np.ndarray
    y: np.ndarray
    partition: Sequence[np.ndarray]
    engine: str
    dtype: torch.dtype = torch.float64
    num_classes: int | None = 3
    fraction: float = 1.0
    seed: int = 0
    task_of: Callable[[nn.Module], Task] | None = None
    turns: tuple[str, ...] | None = None
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        module = in_dtype(self.module, self.dtype)
        self.task = self.task_of(module) if self.task_of else supervised(module, self.num_classes)
        if self.task.players:
            game = Game.of(self.task, {})
            game = game if self.turns is None else replace(game, turns=self.turns)
            self.algorithm = Turns(self.algorithm, game, self.task.averages)
        self.data = ClientData.of(self.x, self.y, [np.asarray(p) for p in self.partition], self.dtype)
        update = self.algorithm.local_update
        if self.engine == "vmap":
            self.grid: Any = VmapGrid(self.task, update, self.data, self.seed)
        else:
            self.grid = LoopGrid(
                make_client_app(lambda context: self.client(int(context.node_config["partition-id"]))),
                self.data.num_clients,
            )
        self.strategy = AlgorithmStrategy(
            self.algorithm, self.task.layout, fraction_train=self.fraction, seed=self.seed
        )
        self.history: list[Any] = []

    def client(self, client_id: int) -> Client:
        return Client(self.task, self.algorithm.local_update, self.data.only(client_id), client_id, self.seed)

    @property
    def initial(self) -> Any:
        model = {"params": self.task.initial_params()}
        if self.task.buffer_layout.names:
            model[BUFFERS] = self.task.initial_buffers()
        return to_record(model)

    def run(self, num_rounds: int) -> Federation:
        self.history = list(rounds(self.strategy, self.grid, self.initial, num_rounds))
        return self

    def rounds(self, num_rounds: int) -> Iterator[Any]:
        return rounds(self.strategy, self.grid, self.initial, num_rounds)

    def model(self) -> dict[str, Tensor]:
        """Return ``params``, and ``buffers`` if there are any."""
        return to_tensors(self.history[-1].arrays, self.dtype)

    @property
    def params(self) -> Tensor:
        return self.model()["params"]

    def states(self) -> list[dict[str, Tensor]]:
        """Return a copy of every client's state; a client without a state has an empty one."""
        states = [
            self.grid.client_states.state(client_id) or {} for client_id in range(self.data.num_clients)
        ]
        return [{name: value.clone() for name, value in state.items()} for state in states]

    def set_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Set every client's state."""
        if self.engine == "loop":
            for client_id, state in enumerate(states):
                context = self.grid.context(client_id)
                context.state[STATE] = to_record(state)
                context.state[STATE_OF] = ConfigRecord({SERVER_ROUND: 0, EARLIER_ROUND: -1})
        else:
            from fedpisa.simulation.stacked.client_states import StackedStates

            initial = self.algorithm.local_update.init(torch.zeros_like(self.task.initial_params()))
            incremental = self.algorithm.local_update.incremental
            self.grid.states = StackedStates(initial, len(states), incremental)
            stacked = {name: torch.stack([state[name] for state in states]) for name in initial}
            self.grid.states.write(torch.arange(len(states)), stacked, server_round=0)


def split(sizes: Sequence[int]) -> list[np.ndarray]:
    """Return consecutive index ranges of these sizes."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def mlp(seed: int = 0, inputs: int = 4, outputs: int = 3) -> nn.Module:
    """Return a smooth network whose initial weights depend only on the seed."""
    return fill(nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)), seed)


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw a module's parameters at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def blobs(
    sizes: Sequence[int] = SIZES, shape: tuple[int, ...] = (4,), num_classes: int = 3
) -> dict[str, Any]:
    """Return samples of heterogeneous clients, each with its own centre and label distribution."""
    rng = np.random.default_rng(1)
    x = [rng.normal(rng.normal(size=shape), 1.0, (size, *shape)) for size in sizes]
    y = [rng.choice(num_classes, size, p=rng.dirichlet(np.ones(num_classes))) for size in sizes]
    return {
        "x": np.concatenate(x),
        "y": np.concatenate(y).astype(np.int64),
        "partition": split(sizes),
        "num_classes": num_classes,
    }


def make(algorithm: Any, engine: str, *, module: Callable[[], nn.Module] = mlp, **more: Any) -> Federation:
    """Return a federation on `blobs`; ``more`` replaces its arguments."""
    return Federation(algorithm, module(), **{**blobs(), "engine": engine, **more})


def relative(got: Tensor, wanted: Tensor) -> float:
    """Return ``||got - wanted|| / ||wanted||``."""
    scale = float(wanted.double().norm()) or 1.0
    return float((got.double() - wanted.double()).norm()) / scale


def row_of(outcome: Any, row: int) -> dict[str, Tensor]:
    """Return one client's part of a stacked outcome."""
    return {
        f"{part}/{name}": value[row]
        for part in ("upload", "state", "metrics")
        for name, value in getattr(outcome, part).items()
    }
