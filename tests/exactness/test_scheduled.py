"""Hyper-parameters with a schedule: factors in closed form, rounds by hand, and exactness."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import cos, pi
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

import fedpisa
from fedpisa import families
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule, scaled
from fedpisa.config.flower import NodeSettings, read_run_config, to_run_config
from fedpisa.config.overrides import parse_overrides
from fedpisa.config.run import RunConfig
from fedpisa.runs.simulation import Simulation, make_grid
from fedpisa.simulation.federation import build_algorithm, build_schedule, factors_of
from fedpisa.simulation.parts import load_dataset, split_dataset
from fedpisa.strategies.base import Cohort
from fedpisa.strategies.fedavg import FedAvg
from fedpisa.strategies.fedsgd import FedSGD
from fedpisa.strategies.optimizer import Optimizer
from fedpisa.strategies.pisa import Pisa
from fedpisa.strategies.schedules import schedule_of
from fedpisa.tasks.layout import ParamLayout
from tests.algorithms import FEDERATED

ENGINES = ("loop", "vmap")
EXACT = (
    "pisa", "sisa", "feddyn", "fedadmm", "fedpd", "feddr", "iceadmm", "iiadmm", "fedgia", "scaffold", "scaffnew"
)  # fmt: skip
# The clients' largest curvature is 3. These steps are stable even if sigma is not divided.
KEYS: dict[str, object] = {
    "dataset": "quadratic", "partitioner": "natural", "num-clients": 5, "dimension": 4, "condition": 3.0,
    "dtype": "float64", "batch-size": "full", "eval-every": 10_000,
}  # fmt: skip
OWN: dict[str, object] = {
    "learning-rate": 0.1, "sigma": 3.0, "rho": 3.0, "proximity": 3.0, "local-steps": 3, "probability": 0.4,
    "admm-share": 0.5,
}  # fmt: skip


def config(name: str, **more: object) -> RunConfig:
    """Return the algorithm's configuration on five quadratics, with the keys of `OWN` that it has."""
    more = {key.rstrip("_").replace("_", "-"): value for key, value in more.items()}
    own = families.keys_of(families.find("algorithm", name), more)
    return RunConfig.from_mapping(
        {"algorithm": name, **KEYS, **{k: v for k, v in OWN.items() if k in own}, **more}
    )


def models(run: RunConfig) -> np.ndarray:
    """Return the models before the first and after each round ``(T + 1, P)``."""
    simulation = Simulation(run)
    return np.array([next(iter(simulation.parameters().values())).ravel() for _ in simulation.rows()])


def clients(run: RunConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the clients' Hessians, minimisers and weights, and the optimum, from the samples."""
    data, parts = split_dataset(run, load_dataset(run))
    hessians = np.array([data.x_train[p].T @ data.x_train[p] / len(p) for p in parts])
    targets = np.array([data.x_train[p].T @ data.y_train[p] / len(p) for p in parts])
    alpha = np.array([len(p) for p in parts]) / len(data.y_train)
    optimum = np.linalg.solve(np.tensordot(alpha, hessians, 1), alpha @ targets)
    minima = np.array([np.linalg.solve(h, t) for h, t in zip(hessians, targets, strict=True)])
    return hessians, minima, alpha, optimum


def relative(got: Any, wanted: Any) -> float:
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))


# ----------------------------------------------------------------------------------------- closed forms


def torchs(scheduler: Callable[[torch.optim.Optimizer], Any], num_rounds: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rule, rates = scheduler(optimizer), []
    for _ in range(num_rounds):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rule.step()
    return rates


def test_steps_milestones_and_cosines_are_torchs() -> None:
    lr = torch.optim.lr_scheduler
    got = RunConfig.from_mapping(
        {"schedule": "step", "schedule-every": 3, "schedule-factor": 0.5, "num-server-rounds": 10}
    )
    assert factors_of(got) == pytest.approx(torchs(lambda o: lr.StepLR(o, 3, gamma=0.5), 10))
    got = RunConfig.from_mapping(
        {
            "schedule": "milestones",
            "schedule-milestones": [3, 4, 8],
            "schedule-factor": 0.5,
            "num-server-rounds": 10,
        }
    )
    assert factors_of(got) == pytest.approx(torchs(lambda o: lr.MultiStepLR(o, [3, 4, 8], gamma=0.5), 10))
    got = RunConfig.from_mapping({"schedule": "cosine", "schedule-end": 0.1, "num-server-rounds": 7})
    assert factors_of(got) == pytest.approx(torchs(lambda o: lr.CosineAnnealingLR(o, 7, eta_min=0.1), 7))


def test_milestones_and_lines_are_their_closed_forms() -> None:
    """Milestones and lines count rounds from the end of the warm-up.

    A list of factors gives one factor to each milestone.
    """
    values: dict[str, object] = {"num-server-rounds": 8, "warmup-rounds": 2}
    got = factors_of(RunConfig.from_mapping({**values, "schedule": "linear"}))
    assert got == pytest.approx((1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6))
    many = {**values, "schedule": "milestones", "schedule-milestones": [1, 4]}
    got = factors_of(RunConfig.from_mapping({**many, "schedule-factor": [0.5, 0.2]}))
    assert got == pytest.approx((1 / 3, 2 / 3, 1, 0.5, 0.5, 0.5, 0.1, 0.1))
    # The default factor is 0.1, as for `step`. A factor above 1 makes the step longer.
    assert factors_of(RunConfig.from_mapping(many))[-1] == pytest.approx(0.01)
    assert factors_of(RunConfig.from_mapping({**many, "schedule-factor": 3}))[-1] == pytest.approx(9.0)
    assert RunConfig.from_mapping(many) == RunConfig.from_mapping({**many, "schedule-factor": 0.1})


def test_milestones_on_the_command_line_and_in_flowers_run_config() -> None:
    text = "schedule=milestones schedule-milestones=[3, 4] schedule-factor=[0.5, 0.1] num-server-rounds=6"
    run = RunConfig.from_mapping(parse_overrides(text))
    assert factors_of(run) == pytest.approx((1, 1, 1, 0.5, 0.05, 0.05))
    _, keys = read_run_config(to_run_config(NodeSettings(), run))
    assert RunConfig.from_mapping(keys) == run


def test_the_warm_up_is_linear_and_the_schedule_begins_after_it() -> None:
    values = {"schedule": "cosine", "num-server-rounds": 9, "warmup-rounds": 3}
    wanted = [1 / 4, 2 / 4, 3 / 4, *((1 + cos(pi * t / 6)) / 2 for t in range(6))]
    assert factors_of(RunConfig.from_mapping(values)) == pytest.approx(wanted, rel=1e-15)
    assert factors_of(RunConfig.from_mapping({"num-server-rounds": 3, "warmup-rounds": 2})) == (
        1 / 3,
        2 / 3,
        1,
    )
    assert factors_of(RunConfig.from_mapping({"num-server-rounds": 3})) == (1, 1, 1)


# ---------------------------------------------------------------------------------------- rounds by hand


@pytest.mark.parametrize("engine", ENGINES)
def test_fedavg_is_sgd_whose_learning_rate_changes(engine: str) -> None:
    run = config("fedavg", engine=engine, schedule="cosine", warmup_rounds=2, num_server_rounds=8)
    got = models(run)
    hessians, minima, alpha, _ = clients(run)
    w = got[0]
    for r in range(1, 9):
        rate = 0.1 * (r / 3 if r <= 2 else (1 + cos(pi * (r - 3) / 6)) / 2)
        local = np.tile(w, (5, 1))
        for _ in range(3):
            local = local - rate * np.einsum("nij,nj->ni", hessians, local - minima)
        w = alpha @ local
        assert relative(got[r], w) < 1e-13


@pytest.mark.parametrize("keys", [None, "sigma", "rho"])
@pytest.mark.parametrize("engine", ENGINES)
def test_pisa_is_algorithm_1_with_sigma_and_rho_divided(engine: str, keys: str | None) -> None:
    """``sigma_l`` is the value that ``gamma`` gives, divided by the schedule's factor."""
    more = {} if keys is None else {"schedule_keys": keys}
    run = config(
        "pisa", engine=engine, schedule="step", schedule_every=3, schedule_factor=0.5, warmup_rounds=1,
        num_server_rounds=9, gamma=0.9, gamma_every=2, lambda_=0.2, mu=0.1, **more,
    )  # fmt: skip
    got = models(run)
    hessians, minima, alpha, _ = clients(run)
    dual = np.zeros_like(minima)
    own, w = 3.0, got[0]
    # The initial sigma has the factor of round 1, but not its gamma.
    first = own / (0.5 if keys != "rho" else 1.0)
    algorithm = build_algorithm(run)
    start = build_schedule(run, algorithm).scaled(algorithm, 0)
    begun = start.init(torch.ones(4), ParamLayout((), (), ()))["params"]
    assert begun.tolist() == pytest.approx([first / (first + 0.2)] * 4)
    for r in range(1, 10):
        if (r - 1) % 2 == 0:
            own /= 0.9
        factor = 0.5 if r == 1 else 0.5 ** ((r - 2) // 3)
        sigma = own / factor if keys != "rho" else own
        rho = 3.0 / factor if keys != "sigma" else 3.0
        local = np.tile(w, (5, 1))
        for _ in range(3):
            gradient = np.einsum("nij,nj->ni", hessians, local - minima) + 0.1 * local
            local = local - (gradient + dual + sigma * (local - w)) / (sigma + rho)
        dual = dual + sigma * (local - w)
        w = alpha @ (sigma * local + dual) / (sigma + 0.2)
        assert relative(got[r], w) < 1e-12


def torch_step(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, gradient: torch.Tensor
) -> None:
    parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("adam", {"lr": 0.1}),
        ("adamw", {}),
        ("adagrad", {"lr": 0.1, "lr_decay": 0.1}),
        ("asgd", {"lr": 0.1}),
        ("adabound", {"lr": 0.1, "final_lr": 0.05}),
    ],
)
def test_fedsgds_optimizer_is_torchs_under_torchs_scheduler(name: str, options: dict[str, Any]) -> None:
    if name not in families.available("optimizer"):
        pytest.skip("pytorch_optimizer is not installed")
    factors, size = (1.0, 0.5, 0.25, 2.0, 0.1), 4
    layout = ParamLayout.of([("weight", torch.zeros(2, 2, dtype=torch.float64))])
    optimizer = Optimizer(name, options)
    algorithm = FedSGD(optimizer=optimizer)
    scheduled = schedule_of(algorithm, factors)
    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    theirs = optimizer.create([parameter])
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda t: factors[min(t, 4)])
    server = algorithm.init(torch.ones(size, dtype=torch.float64), layout)
    generator = torch.Generator().manual_seed(0)
    for server_round in range(1, 6):
        gradient = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        cohort = Cohort(torch.arange(1), torch.ones(1), server_round, 1, layout)
        of_round = scheduled.scaled(algorithm, server_round)
        server = of_round.step(server, {"gradient": gradient.reshape(1, size)}, cohort)
        torch_step(theirs, parameter, gradient)
        schedule.step()
        torch.testing.assert_close(server["params"], parameter.detach().flatten(), rtol=1e-13, atol=1e-14)


# --------------------------------------------------------------------------------------------- exactness


def reaches(schedule: StepSizeSchedule, run: RunConfig) -> float:
    """Return the final distance from the optimum, relative to the distance from zero."""
    simulation = Simulation(run)
    federation = simulation.federation
    federation.schedule = schedule
    simulation.grid, simulation.strategy = make_grid(federation), federation.strategy()
    simulation.model = simulation.strategy.start_from(federation.initial_model())
    for _ in simulation.rows():
        pass
    return relative(next(iter(simulation.parameters().values())).ravel(), clients(run)[3])


@pytest.mark.parametrize(
    ("name", "keys", "more"),
    [
        *((name, None, {}) for name in EXACT),
        *((name, None, {"absent": "fresh"}) for name in ("pisa", "sisa")),
        ("feddyn", ("learning-rate", "sigma"), {}),
        ("fedpd", ("learning-rate", "sigma"), {}),
        ("scaffold", ("learning-rate", "server-learning-rate"), {}),
    ],
)
def test_exact_algorithms_stay_exact(name: str, keys: tuple[str, ...] | None, more: dict[str, str]) -> None:
    """Exact algorithms reach the optimum with three of five clients a round and changing step sizes.

    The kept duals come from rounds with other values. In the last rounds the steps stay halved.
    """
    run = config(name, fraction_train=0.6, num_server_rounds=220, **more)
    schedule = schedule_of(build_algorithm(run), (*(1.0, 0.8, 0.9) * 40, 0.5), keys)
    assert reaches(schedule, run) < 1e-8


@pytest.mark.parametrize("name", FEDERATED)
def test_both_engines_agree(name: str) -> None:
    values = {"schedule": "cosine", "warmup_rounds": 2, "num_server_rounds": 6, "fraction_train": 0.6}
    loop, vmap = (models(config(name, engine=engine, **values)) for engine in ENGINES)
    assert relative(vmap, loop) < 1e-12
    assert relative(models(config(name, num_server_rounds=6, fraction_train=0.6)), loop) > 1e-6


# ------------------------------------------------------------------------------------------------ limits


def test_factors_of_one_change_nothing() -> None:
    schedule = schedule_of(Pisa(), (1.0, 1.0), ("no-key",))
    assert schedule == UNSCHEDULED == build_schedule(RunConfig(algorithm="pisa"), Pisa())
    algorithm = Pisa()
    assert schedule.scaled(algorithm, 1) is algorithm


def test_values_are_scaled_wherever_they_are() -> None:
    algorithm = scaled(Pisa(PisaUpdate(sigma=1.0, rho=2.0)), ("sigma", "rho"), 0.5)
    assert algorithm == Pisa(PisaUpdate(sigma=2.0, rho=4.0))
    assert scaled(FedSGD(), ("learning-rate",), 0.5).optimizer.rate == 0.5


def test_rounds_beyond_the_factors_have_the_nearest() -> None:
    schedule = StepSizeSchedule((0.5, 0.25), ("sigma",))
    got = [schedule.scaled(PisaUpdate(sigma=1.0), server_round).sigma for server_round in range(5)]
    assert got == [2.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *(
            (name, ("learning-rate",))
            for name in ("fedavg", "fedprox", "fedsgd", "scaffold", "scaffnew", "fedadmm")
        ),
        *((name, ("sigma", "rho")) for name in ("pisa", "sisa", "nsisa")),
        *((name, ("sigma", "proximity")) for name in ("iceadmm", "iiadmm", "fedgia")),
    ],
)
def test_what_a_schedule_acts_on_by_default(name: str, keys: tuple[str, ...]) -> None:
    more = {"server_step": 1.0} if name == "fedadmm" else {}
    assert schedule_of(build_algorithm(config(name, **more)), (1.0, 0.5)).keys == keys


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule-keys": "sigm"}, "schedule-keys names 'sigm'.*did you mean 'sigma'.*sigma, rho"),
        (
            {"algorithm": "feddr", "schedule-keys": "sigma"},
            "'sigma', which must not change.*needs the same sigma in all rounds",
        ),
        ({"algorithm": "fedadmm", "schedule-keys": "server-step"}, "'server-step', which has no value"),
        (
            {"algorithm": "fedsgd", "schedule-keys": "optimizer-options.dampening"},
            r"schedule-keys names 'optimizer-options.dampening', .*\(what can: learning-rate\)$",
        ),
        ({"algorithm": "fedsgd", "optimizer": "rprop"}, "'rprop' adapts its step sizes itself"),
        ({"warmup-rounds": 10, "num-server-rounds": 10}, "warmup-rounds = 10 leaves no round"),
        ({"schedule": "constant", "schedule-end": 0.1}, "'schedule-end' is not used by schedule 'constant'"),
        ({"schedule": "step"}, "needs the key 'schedule-every'"),
        ({"schedule": "milestones"}, "needs the key 'schedule-milestones'"),
        *(
            (
                {"schedule": "milestones", "schedule-milestones": wrong},
                f"schedule-milestones.* = .*: {rule}",
            )
            for wrong, rule in (
                ([], "give rounds in ascending order, such as"),
                ([90, 90], "give rounds in ascending order, such as"),
                ([120, 90], "give rounds in ascending order, such as"),
                ([0, 90], "must be greater than or equal to 1"),
                ([0.5], "must be a valid integer"),
                (90, "must be a valid array"),
            )
        ),
        *(
            (
                {"schedule": "milestones", "schedule-milestones": [9, 12], "schedule-factor": wrong},
                f"'?schedule-factor'?.* {rule}",
            )
            for wrong, rule in (
                ([0.1], r"= \[0.1\] for schedule-milestones = \[9, 12\]: give one number, or one for each"),
                ([0.1, 0], "must be .*greater than 0"),
                (-1, "must be greater than 0"),
            )
        ),
        (
            {"schedule": "step", "schedule-every": 2, "schedule-factor": [0.1]},
            "'schedule-factor'.*a valid number",
        ),
        ({"schedule": "linear", "schedule-end": 0.1}, "'schedule-end' is not used by schedule 'linear'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"schedule-ends": 0.1}, "unknown key 'schedule-ends'; did you mean 'schedule-end'"),
        ({"schedule": "own_schedule:falls"}, "the schedule gives 0 in round 2"),
    ],
)
def test_what_cannot_be_is_said(
    values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ModuleType("own_schedule")
    own.falls = lambda rounds_done: 1 - rounds_done  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_schedule", own)
    with pytest.raises(ValueError, match=message) as caught:
        Simulation(RunConfig.from_mapping({"schedule": "cosine", **values}))
    assert "\n" not in str(caught.value)


def hyperbola(rounds_done: int, *, half_life: int = 2) -> float:
    """Return ``1 / (1 + t / half-life)``."""
    return 1 / (1 + rounds_done / half_life)


def test_a_schedule_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's schedule has its own key and need not take the number of rounds."""
    own = ModuleType("own_schedule")
    own.hyperbola = hyperbola  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_schedule", own)
    run = config("pisa", schedule="own_schedule:hyperbola", half_life=4, num_server_rounds=5)
    got = fedpisa.run(run).history["sigma"][1:]
    assert got.tolist() == pytest.approx([3.0 * (1 + t / 4) for t in range(5)])


def test_the_broadcast_is_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that broadcasts a hyper-parameter sends the round's value."""

    def broadcast(self: FedAvg, server: Any) -> dict[str, torch.Tensor]:
        return {"params": server["params"], "rate": torch.tensor(self.local_update.learning_rate)}

    monkeypatch.setattr(FedAvg, "broadcast", broadcast)
    simulation = Simulation(config("fedavg", schedule="step", schedule_every=1, num_server_rounds=2))
    sent = []
    for server_round in (1, 2):
        requests = simulation.strategy.configure_train(
            server_round, simulation.model, ConfigRecord(), simulation.grid
        )
        sent.append(float(next(iter(requests)).content["arrays"]["rate"].numpy()))
    assert sent == pytest.approx([0.1, 0.01])
