"""Flower's strategies by name as the server's step, against their papers and the privacy formulas."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import nn

import fedpisa
from fedpisa import families
from fedpisa.config.run import RunConfig
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.messages import StackedReplies
from fedpisa.runs.runner import Simulation
from fedpisa.server.flower_strategy import FlowerStrategy
from fedpisa.simulation.federation import build_server_strategy
from fedpisa.simulation.parts import load_dataset, split_dataset
from fedpisa.simulation.rounds import rounds
from fedpisa.strategies.fedavg import FedAvg
from fedpisa.strategies.localsgd import LocalSGD
from fedpisa.tasks.layout import ParamLayout

SMALL: dict[str, object] = {
    "algorithm": "fedavg", "dataset": "quadratic", "partitioner": "natural", "num-clients": 7, "dimension": 4,
    "dtype": "float64", "batch-size": "full", "local-steps": 2, "num-server-rounds": 4, "engine": "vmap",
    "server-num-malicious-nodes": 1, "noise-multiplier": 0.1, "clipping-norm": 0.5,
}  # fmt: skip
NAMES = [name for name in families.available("server-strategy") if name != "none"]
PRIVATE = ["server-fixed-clipping", "server-adaptive-clipping"]


def config(**more: object) -> RunConfig:
    """Return a small run's configuration; keys of `SMALL` that the chosen parts lack are left out."""
    values = {**SMALL, **{key.rstrip("_").replace("_", "-"): value for key, value in more.items()}}
    for name in ("server-num-malicious-nodes", "noise-multiplier", "clipping-norm"):
        part = "server-strategy" if name.startswith("server") else "differential-privacy"
        if name not in families.keys_of(families.find(part, str(values.get(part, "none")))):
            del values[name]
    return RunConfig.from_mapping(values)


def models(run: RunConfig) -> np.ndarray:
    """Return the models before the first and after each round ``(T + 1, P)``."""
    simulation = Simulation(run)
    return np.array([next(iter(simulation.parameters().values())).ravel() for _ in simulation.rows()])


def relative(got: Any, wanted: Any) -> float:
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))


# ------------------------------------------------------------------------------------------- the papers


@pytest.mark.parametrize("algorithm", ["fedavg", "localsgd", "fedprox", "moon"])
def test_flowers_mean_is_ours(engine: str, algorithm: str) -> None:
    """Flower's mean equals ours, with the algorithm's weights: ``localsgd`` weighs clients equally."""
    values = {"algorithm": algorithm, "engine": engine, "fraction_train": 0.5}
    assert relative(models(config(**values, server_strategy="fed-avg")), models(config(**values))) < 1e-14


def means(w: np.ndarray) -> np.ndarray:
    """Return FedAvg's next model, computed from the clients' Hessians."""
    hessians, minima, alpha = clients()
    local = np.tile(w, (len(alpha), 1))
    for _ in range(2):
        local = local - 0.1 * np.einsum("nij,nj->ni", hessians, local - minima)
    mean: np.ndarray = alpha @ local
    return mean


@cache
def clients() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    run = config()
    data, parts = split_dataset(run, load_dataset(run))
    hessians = np.array([data.x_train[p].T @ data.x_train[p] / len(p) for p in parts])
    minima = np.array(
        [
            np.linalg.solve(h, data.x_train[p].T @ data.y_train[p] / len(p))
            for h, p in zip(hessians, parts, strict=True)
        ]
    )
    return hessians, minima, np.array([len(p) for p in parts]) / len(data.y_train)


@pytest.mark.parametrize("name", ["fed-adam", "fed-yogi", "fed-adagrad", "fed-avg-m"])
def test_server_optimizers_are_those_of_their_papers(name: str) -> None:
    """The updates are Algorithm 2 of Reddi et al. 2021, and Hsu et al. 2019 for ``fed-avg-m``.

    Flower starts with ``v_{-1} = 0`` and takes Kingma and Ba's step for Adam.
    """
    eta, b1, b2, tau = 0.05, 0.8, 0.9, 1e-2
    keys: dict[str, object] = {"server_eta": eta, "server_beta_1": b1, "server_beta_2": b2, "server_tau": tau}
    if name == "fed-adagrad":
        keys, b1 = {"server_eta": eta, "server_tau": tau}, 0.0
    if name == "fed-avg-m":
        keys = {"server_learning_rate": 0.5, "server_momentum": b1}
    got = models(config(server_strategy=name, num_server_rounds=6, **keys))
    w = got[0]
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, 7):
        delta = means(w) - w
        if name == "fed-avg-m":
            m = b1 * m + delta
            w = w + 0.5 * m
        else:
            m = b1 * m + (1 - b1) * delta
            v = {
                "fed-adam": b2 * v + (1 - b2) * delta**2,
                "fed-yogi": v - (1 - b2) * delta**2 * np.sign(v - delta**2),
                "fed-adagrad": v + delta**2,
            }[name]
            # Flower counts rounds from 1 and corrects the bias with exponent t + 1.
            rate = eta * (np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1)) if name == "fed-adam" else 1)
            w = w + rate * m / (np.sqrt(v) + tau)
        assert relative(got[t], w) < 1e-12


class Server:
    """A server without clients, which takes replies made by hand."""

    def __init__(
        self, name: str = "none", algorithm: Any = None, privacy: str = "none", **keys: object
    ) -> None:
        self.layout = ParamLayout.of([("weight", torch.zeros(2, dtype=torch.float64))])
        self.algorithm = FedAvg() if algorithm is None else algorithm
        run = config(server_strategy=name, differential_privacy=privacy, **keys)
        make = build_server_strategy(run, self.algorithm)
        assert make is not None
        self.strategy = FlowerStrategy(self.algorithm, self.layout, make, seed=3)
        self.grid = Simulation(config()).grid
        self.model = self.strategy.start_from(to_record({"params": torch.zeros(2, dtype=torch.float64)}))

    def round(
        self, uploads: list[list[float]], server_round: int = 1, sizes: list[int] | None = None
    ) -> list[float]:
        requests = self.strategy.configure_train(server_round, self.model, ConfigRecord(), self.grid)
        count = len(uploads)
        replies = StackedReplies(
            requests,
            list(requests.node_ids)[:count],  # type: ignore[attr-defined]
            {"params": torch.tensor(uploads, dtype=torch.float64)},
            torch.tensor(sizes or [1] * count, dtype=torch.float64),
            {"train-loss": torch.ones(count), "local-steps": torch.ones(count)},
        )
        model, _ = self.strategy.aggregate_train(server_round, replies)
        assert model is not None
        self.model = model
        result: list[float] = model["params"].numpy().tolist()
        return result


UPLOADS = [[1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [2.0, 2.0], [2.5, 1.5], [1.5, 1.0], [1000.0, -1000.0]]


def test_one_far_away_does_not_count() -> None:
    """Median, trimmed mean and Krum equal hand computations on seven clients with one outlier."""
    assert Server("fed-median").round(UPLOADS) == [2.0, 1.0]
    trimmed = Server("fed-trimmed-avg", server_beta=0.2).round(UPLOADS)
    assert trimmed == pytest.approx([np.mean([1.5, 2, 2, 2.5, 3]), np.mean([0, 1, 1, 1, 1.5])])
    # Krum: the least sum of squared distances to the n - f - 2 = 4 nearest, [2, 1]: 1 + 1 + 0.25 + 0.5.
    scores = [sum(sorted(np.sum((np.array(a) - b) ** 2) for b in UPLOADS if a is not b)[:4]) for a in UPLOADS]
    assert np.argmin(scores) == 1
    assert Server("krum").round(UPLOADS) == [2.0, 1.0]
    near = sorted(range(7), key=lambda i: scores[i])[:3]
    got = Server("multi-krum", server_num_nodes_to_select=3).round(UPLOADS)
    assert got == pytest.approx(np.mean([UPLOADS[i] for i in near], axis=0))
    assert max(np.abs(Server("bulyan").round(UPLOADS))) < 3
    assert max(np.abs(Server("fed-avg").round(UPLOADS))) > 100


def test_q_fedavg_weighs_by_loss() -> None:
    """With q = 0 q-FedAvg takes the unweighted mean, and finds the loss under our metric's name."""
    assert Server("qfed-avg", server_q=0.0).round(UPLOADS[:2], sizes=[1, 9]) == pytest.approx([1.5, 0.5])


def test_weights_are_the_algorithms() -> None:
    assert Server("fed-avg").round([[4.0, 0], [8.0, 0]], sizes=[1, 3]) == [7.0, 0.0]
    assert Server("fed-avg", LocalSGD()).round([[4.0, 0], [8.0, 0]], sizes=[1, 3]) == [6.0, 0.0]


# ---------------------------------------------------------------------------------------------- privacy


def test_changes_are_clipped_to_the_norm() -> None:
    server = Server(privacy="server-fixed-clipping", noise_multiplier=0.0, clipping_norm=1.0)
    assert server.round([[3.0, 4.0], [0.3, 0.4]]) == pytest.approx([(0.6 + 0.3) / 2, (0.8 + 0.4) / 2])


def test_the_noise_has_the_formulas_variance() -> None:
    """The noise's deviation is ``noise-multiplier * clipping-norm / |S|``.

    600 rounds have 7 clients that move by 1e-9 only.
    """
    server = Server(privacy="server-fixed-clipping", noise_multiplier=2.0, clipping_norm=0.5)
    path = [[0.0, 0.0]]
    for server_round in range(1, 601):
        path.append(server.round([[x + 1e-9 for x in path[-1]]] * 7, server_round))
    steps = np.diff(np.array(path), axis=0)
    assert steps.std() == pytest.approx(2.0 * 0.5 / 7, rel=0.06)  # 1200 draws: 2 %
    assert abs(steps.mean()) < 4 * steps.std() / np.sqrt(steps.size)


def test_the_clipping_norm_follows_the_quantile() -> None:
    """The norm is multiplied by ``exp(-lr (b - q))``, as in Andrew et al. 2021.

    Flower's ``b`` is the share of clipped updates, which is 1 here.
    """
    keys: dict[str, object] = {"noise_multiplier": 0.0, "initial_clipping_norm": 1.0, "clip_norm_lr": 0.3}
    server = Server(privacy="server-adaptive-clipping", target_clipped_quantile=0.5, **keys)
    server.round([[3.0, 4.0]] * 4)
    assert server.strategy.strategy.clipping_norm == pytest.approx(np.exp(-0.3 * 0.5))  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------- every name


@pytest.mark.parametrize(
    ("strategy", "privacy"), [*((n, "none") for n in NAMES), *(("none", p) for p in PRIVATE)]
)
def test_engines_agree_runs_repeat_and_go_on(strategy: str, privacy: str) -> None:
    """Three rounds, a snapshot and three rounds of a new object equal six rounds bit for bit.

    This includes the noise.
    """
    run = config(
        algorithm="fedavg" if privacy == "none" else "localsgd", server_strategy=strategy,
        differential_privacy=privacy, num_server_rounds=6, schedule="constant",
        fraction_train=1.0 if strategy == "bulyan" else 0.7,
    )  # fmt: skip
    random.seed(1)
    whole = models(run)
    assert relative(models(run.replace({"engine": "loop"})), whole) < 1e-11
    assert max(relative(b, a) for a, b in pairwise(whole[1:])) > 1e-6

    simulation = Simulation(run)
    first = simulation.strategy
    assert isinstance(first, FlowerStrategy)
    *_, last = rounds(first, simulation.grid, simulation.model, 3)
    assert np.array_equal(last.arrays["params"].numpy(), whole[3])
    kept = first.snapshot()
    assert all(isinstance(value, torch.Tensor) for value in kept.values())
    again = Simulation(run).strategy
    assert isinstance(again, FlowerStrategy)
    model: ArrayRecord | None = again.restore(kept)
    for server_round in (4, 5, 6):
        assert model is not None
        requests = again.configure_train(server_round, model, ConfigRecord(), simulation.grid)
        model, _ = again.aggregate_train(server_round, simulation.grid.send_and_receive(requests))
    assert model is not None
    assert np.array_equal(model["params"].numpy(), whole[6])


@pytest.mark.parametrize("name", [*NAMES, *PRIVATE])
def test_each_name_runs_from_end_to_end(name: str) -> None:
    family = "differential-privacy" if name in PRIVATE else "server-strategy"
    needed = {"noise-multiplier": 0.1} if name in PRIVATE else {}
    needed |= {"clipping-norm": 1.0} if name == "server-fixed-clipping" else {}
    result = fedpisa.run({
        "algorithm": "localsgd" if name in PRIVATE else "fedavg", family: name, "num-server-rounds": 2,
        "model": "logistic", "learning-rate": 0.3, **needed,
    })  # fmt: skip
    assert result.status == "finished"
    assert result.history["test_loss"].notna().all()
    assert np.all(result.history["local_steps"][1:] > 10)


def test_batch_norms_buffers_stay_with_the_mean(lab: Any, engine: str) -> None:
    def module() -> nn.Module:
        return lab.fill(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))

    algorithm = lab.Case("fedavg", {"momentum": 0.5}).build()
    ours = lab.make(algorithm, engine, module=module).run(3)
    theirs = lab.make(algorithm, engine, module=module)
    for name in ("fed-avg", "fed-adam"):
        make = build_server_strategy(config(server_strategy=name), algorithm)
        assert make is not None
        theirs.strategy = FlowerStrategy(algorithm, theirs.task.layout, make)
        *_, last = rounds(theirs.strategy, theirs.grid, theirs.initial, 3)
        got = to_tensors(last.arrays, torch.float64)
        assert got.keys() == {"params", "buffers"}
        if name == "fed-avg":
            for part, wanted in ours.model().items():
                assert lab.relative(got[part], wanted) < 1e-13
        assert bool((got["buffers"][4:8] > 0).all())  # running variances


# ------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"algorithm": "sisa"},
            "Sisa computes more than that: use algorithm = fedavg or fedprox or localsgd",
        ),
        ({"server-strategy": "fedadam"}, "unknown server-strategy 'fedadam'; did you mean 'fed-adam'"),
        (
            {"server-strategy": "qfed-avg", "warmup-rounds": 1, "num-server-rounds": 2},
            "the same learning rate in all",
        ),
        ({"server-beta-1": 0.5}, "'server-beta-1' is not used by server-strategy 'krum'"),
        (
            {"server-strategy": "fed-adam", "server-etta": 0.5},
            "unknown key 'server-etta'; did you mean 'server-eta'",
        ),
        (
            {"server-strategy": "bulyan", "server-num-malicious-nodes": 9},
            "made no model of 10 replies in round 1",
        ),
        (
            {"server-strategy": "fed-trimmed-avg", "server-beta": 0.7},
            r"`beta` must be in the range \[0, 0.5\)",
        ),
        (
            {"differential-privacy": "server-fixed-clipping", "clipping-norm": 1},
            "needs the key 'noise-multiplier'",
        ),
        (
            {"differential-privacy": "server-fixed-clipping", "clipping-norm": 1, "noise-multiplier": -1},
            "noise multiplier should be a non-negative",
        ),
    ],
)
def test_what_cannot_be_is_said(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fedpisa.run({"algorithm": "fedavg", "server-strategy": "krum", "num-server-rounds": 1, **values})


def test_a_strategy_that_keeps_something_else_is_not_saved() -> None:
    server = Server("fed-avg")
    server.strategy.strategy.secret = {1, 2}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"keeps a set \(secret\)"):
        server.strategy.snapshot()


def test_the_global_generators_stay_as_they_were() -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    wanted = random.random(), np.random.random()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    models(config(algorithm="localsgd", differential_privacy="server-fixed-clipping"))
    assert (random.random(), np.random.random()) == wanted  # noqa: NPY002


def test_a_strategy_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy ``module:Class`` takes its arguments from keys and computes the server's step."""
    (tmp_path / "own_server.py").write_text(
        "from flwr.app import Array, ArrayRecord\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Halfway(FedAvg):\n"
        '    """Go a part of the way to the mean."""\n'
        "    def __init__(self, *, part: float = 0.5, **more):\n"
        "        super().__init__(**more)\n"
        "        self.part = part\n"
        "    def configure_train(self, server_round, arrays, config, grid):\n"
        "        self.before = arrays['params'].numpy()\n"
        "        return super().configure_train(server_round, arrays, config, grid)\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        mean, metrics = super().aggregate_train(server_round, replies)\n"
        "        step = self.part * (mean['params'].numpy() - self.before)\n"
        "        return ArrayRecord({'params': Array(self.before + step)}), metrics\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    half = models(config(server_strategy="own_server:Halfway", num_server_rounds=1))
    whole = models(config(server_strategy="fed-avg", num_server_rounds=1))
    third = models(config(server_strategy="own_server:Halfway", server_part=1 / 3, num_server_rounds=1))
    assert relative(half[1] - half[0], (whole[1] - whole[0]) / 2) <= 1e-12
    assert relative(third[1] - third[0], (whole[1] - whole[0]) / 3) <= 1e-12


@pytest.mark.parametrize("name", ["fed-adam", "fed-avg-m"])
def test_a_run_goes_on_with_what_the_strategy_remembered(tmp_path: Path, name: str) -> None:
    def stop(event: object) -> None:
        if getattr(event, "row", {}).get("round") == 2:
            raise KeyboardInterrupt

    run = config(server_strategy=name, checkpoint_every=1)
    whole = fedpisa.run(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedpisa.run(run, tmp_path / "cut", on_event=stop)
    resumed = fedpisa.run(resume=tmp_path / "cut")
    assert resumed.status == whole.status == "finished"
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("whole", "cut")]
    assert files[0] == files[1]
