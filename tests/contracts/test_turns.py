"""Turns: any algorithm once for each player, on all engines.

Tests of lost replies, screening, participation and interruptions run on a toy of two players; see `tests.players.Toy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpisa
from fedpisa import families
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.batches import Periodic
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.turns import Game, OwnRounds, TurnUpdate
from fedpisa.rng import mix, step_keys
from fedpisa.strategies._turns import Turns
from fedpisa.tasks.base import Samples
from fedpisa.tasks.gan import Adversarial, Gan
from tests.algorithms import Case, Federation, fill, make, relative
from tests.players import Alone, Net, game, images, line, points, small, tracked

PLAYERS = ("critic", "generator")
SOME = [
    Case("sisa", {}),
    Case("pisa", {"sigma": "auto", "rho": "auto", "absent": "fresh", "local-steps": 2}),
    Case("fedavg", {"local-epochs": 2, "momentum": 0.9}),
    Case("scaffold", {"local-steps": 3}),
    Case("fedsgd", {"optimizer": "adam", "batches-per-round": 3}),
    Case("centralised", {}),
]


def play(case: Case, engine: str, **more: Any) -> Federation:
    """Return a small game."""
    given = {"module": small, "task_of": game(), "num_classes": None, **images(), **more}
    return make(case.build(), engine, **given)


# ------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize(("means", "sign"), [((3.0, -1.0, 2.0), 1), ((-3.0, 1.0, -4.0), -1)])
def test_a_penalised_critic_reaches_its_optimum(means: tuple[float, ...], sign: int, engine: str) -> None:
    """``D(x) = a x`` on ``G = 0``: ``-a d + p (|a| - 1)^2`` is least at ``sign(d) (1 + |d| / (2 p))``."""
    penalty, data = 10.0, points(means)
    algorithm = Case("pisa", {"batch-size": "full", "sigma": 3.0, "rho": 30.0}).build()
    federation = make(
        algorithm,
        engine,
        module=lambda: line(0.5 * sign),
        task_of=game(penalty=penalty),
        turns=("critic",),
        **data,
    )
    d = data["x"].mean()
    wanted = sign * (1 + abs(d) / (2 * penalty))
    assert abs(float(federation.run(120).params[0]) - wanted) <= 1e-8
    assert np.sign(d) == sign


@pytest.mark.parametrize("case", [Case("pisa", {}), Case("sisa", {}), Case("fedavg", {}), Case("fedsgd", {})])
def test_a_clipped_critic_sits_on_the_bound(case: Case) -> None:
    """All reach ``c sign(d)`` exactly, but FedAvg: each of its clients goes to its own bound, and ``w`` is the mean."""
    rules, data = game(objective="wgan", weight_clip=0.01), points()
    federation = make(
        case.build(batch_size="full"),
        "vmap",
        module=lambda: line(0.0),
        task_of=rules,
        turns=("critic",),
        **data,
    )
    signs = [np.sign(data["x"][part].mean()) * len(part) for part in data["partition"]]
    mean = 0.01 * sum(signs) / len(data["x"])
    for finished in federation.rounds(4):
        found = float(finished.arrays["params"].numpy()[0])
        assert found == (pytest.approx(mean, rel=1e-12) if case.name == "fedavg" else 0.01)


def test_the_bound_holds_after_each_local_step() -> None:
    task = game(objective="wgan", weight_clip=0.01)(line(0.0))
    update = TurnUpdate(Case("fedavg", {}).build().local_update, Game.of(task, {}))
    down = {"params": task.initial_params()}
    work = update.start(down, {})
    batch = MiniBatches(torch.ones(1, 2, 1), torch.zeros(1, 2), torch.full((1, 2), 0.5))
    for _ in range(3):
        work = update.step(AutogradGradient(task, torch.zeros(0)), down, {}, work, batch)
        assert work["critic/drift"].tolist() == pytest.approx([0.01], rel=1e-6)


# ------------------------------------------------------------------------------------------ one player, two players


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize(
    "case", [*SOME, Case("nsisa", {}), Case("feddyn", {}), Case("sisa", {"gamma": 0.9})], ids=str
)
def test_the_turns_of_one_player_are_the_plain_task(case: Case, engine: str) -> None:
    plain, played, within = (
        make(case.build(), engine, module=lambda: fill(Net()), task_of=task).run(4)
        for task in (None, Alone, lambda module: Alone(module, within=True))
    )
    assert torch.equal(plain.params, within.params)
    assert torch.equal(plain.params, played.params)
    for one, other in zip(plain.states(), played.states(), strict=True):
        assert {f"net/{name}" for name in one} == other.keys()
        assert all(torch.equal(value, other[f"net/{name}"]) for name, value in one.items())
    assert plain.history[-1].bytes_up == played.history[-1].bytes_up


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_a_round_leaves_the_idle_player_alone(case: Case, engine: str) -> None:
    federation = play(case, engine, fraction=1.0)
    game_ = federation.algorithm.game
    layout = {player.name: player.layout.size for player in game_.players}
    before: tuple[Mapping[str, Tensor], list[Any]] | None = None
    for finished in federation.rounds(6):
        player = game_.moving(finished.server_round)[0].player
        idle = next(one for one in game_.players if one is not player)
        server = {name: value.clone() for name, value in federation.strategy.server.items()}
        states = federation.states()
        if before is not None:
            assert torch.equal(idle.of(server["params"]), idle.of(before[0]["params"]))
            pairs = [(before[0], server), *zip(before[1], states, strict=True)]
            own = [name for name in server if name.startswith(f"{idle.name}/")]
            assert own == [name for name in before[0] if name.startswith(f"{idle.name}/")]
            for one, other in pairs:
                for name in one:
                    if name.startswith(f"{idle.name}/"):
                        assert torch.equal(one[name], other[name])
            if finished.server_round > 3:  # not a calibration, which moves nobody
                assert not torch.equal(player.of(server["params"]), player.of(before[0]["params"]))
        if case.name in ("sisa", "fedavg"):
            assert finished.bytes_up == 8 * layout[player.name] * 4
        before = server, states


ODD = [
    Case("pisa", {"preconditioner": rule, "local-steps": 2, "batches-per-round": 2, "rho": 50.0})
    for rule in ("fisher", "hutchinson", "newton-schulz", "spectral")
]
RULES: list[dict[str, Any]] = [
    {},
    {"objective": "wgan", "weight_clip": 0.05, "critic_steps": 2, "same_noise": True},
    {"objective": "non-saturating"},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("case", [*SOME, *ODD], ids=str)
def test_engines_agree(case: Case, rules: dict[str, Any]) -> None:
    for dtype, num_rounds, most in ((torch.float64, 5, 1e-12), (torch.float32, 1, 1e-5)):
        found = [
            play(case, engine, task_of=game(**rules), dtype=dtype).run(num_rounds).params
            for engine in ("loop", "vmap")
        ]
        assert relative(*found) <= most


def test_engines_agree_on_running_statistics() -> None:
    """A player's running statistics move in its own rounds alone."""
    runs = [play(Case("fedavg", {}), engine, module=tracked).run(4) for engine in ("loop", "vmap")]
    assert all(
        relative(runs[0].model()[name], runs[1].model()[name]) <= 1e-12 for name in ("params", "buffers")
    )
    layout, history = runs[0].task.buffer_layout, runs[0].history
    before = runs[0].task.initial_buffers()
    for finished in history:
        after = torch.tensor(finished.arrays["buffers"].numpy())
        own = PLAYERS[(finished.server_round - 1) % 2]
        pairs = zip(layout.unflatten(before).items(), layout.unflatten(after).values(), strict=True)
        for (name, one), other in pairs:
            same = torch.allclose(one, other, rtol=1e-14, atol=0)  # the server's mean rounds
            assert same == (not name.startswith(own))
        before = after


def test_players_within_a_round_are_fedgan() -> None:
    """Each client's steps alternate, critic first, and the server averages both networks: written as a script."""
    rate, data = 0.05, images()
    rules = Adversarial(
        "non-saturating", critic_steps=2, turns_within=True
    )  # no pairs of real and generated samples
    federation = play(
        Case("fedavg", {"batch-size": "full", "local-steps": 3}), "vmap", task_of=lambda m: Gan(m, rules)
    )
    found = federation.run(1)
    start_P, sizes = found.task.initial_params(), [len(part) for part in data["partition"]]
    total_P = torch.zeros_like(start_P)
    for client, part in enumerate(data["partition"]):
        local_P, x = start_P.clone(), torch.from_numpy(data["x"][part])
        weight = torch.full((1, len(x)), 1 / len(x), dtype=torch.float64)
        for key in step_keys(0, np.array([client]), 1, 3)[0].tolist():
            for place, name in enumerate(("critic", "critic", "generator")):
                own = mix(mix(torch.tensor(key), place), 0)
                player = next(one for one in found.task.players if one.name == name)
                samples = Samples(x, x, weight[0] * len(x), own)
                whole_P = local_P.clone().requires_grad_()
                losses_B = found.task.losses(
                    found.task.layout.unflatten(whole_P), torch.zeros(0), samples, player=name
                ).losses_B
                (g_P,) = torch.autograd.grad(losses_B.mean(), whole_P)
                local_P = player.put(local_P, player.of(local_P) - rate * player.of(g_P))
        total_P += sizes[client] / sum(sizes) * local_P
    assert relative(found.params, total_P) <= 1e-12
    assert found.history[-1].bytes_up == 8 * len(sizes) * found.task.layout.size


@pytest.mark.parametrize("case", [*SOME[:5], Case("fednova", {"local-epochs": 2})], ids=str)
def test_engines_agree_within_a_round(case: Case) -> None:
    rules = game(turns_within=True, same_noise=True, objective="non-saturating")
    runs = [play(case, engine, task_of=rules).run(4) for engine in ("loop", "vmap")]
    assert relative(*(run.params for run in runs)) <= 1e-11
    states = [run.states()[0].keys() for run in runs]
    assert states[0] == states[1]


# ------------------------------------------------------------------------------------------ the players' clocks


def test_samples_are_those_of_the_players_own_rounds() -> None:
    """With two turns and two mini-batches, the server's rounds would show the critic one mini-batch alone."""
    sizes, ids = np.array([8]), np.array([0])
    update = TurnUpdate(Case("pisa", {"batch-size": 4}).build().local_update, Game.of(game()(small()), {}))
    seen = [
        update.at_round(t).batch_sampler().draw(sizes, ids, t, 0).index_SKCB.ravel().tolist()
        for t in (1, 2, 3, 4)
    ]
    assert seen[0] == seen[1]
    assert sorted(seen[0] + seen[2]) == list(range(8))
    plain = OwnRounds(Periodic(4), 2).draw(sizes, ids, 9, 0).index_SKCB
    assert np.array_equal(plain, Periodic(4).draw(sizes, ids, 2, 0).index_SKCB)


RUN: dict[str, object] = {
    "task": "gan",
    "model": "mlp-gan",
    "widths": [8],
    "latent": 3,
    "num-clients": 3,
    "num-server-rounds": 6,
    "eval-every": 6,
    "sigma": 1.0,
    "rho": 50.0,
}


def test_schedules_count_a_players_own_rounds() -> None:
    keys = {"critic-steps": 2, "schedule": "step", "schedule-every": 1, "schedule-factor": 0.5}
    history = fedpisa.run({**RUN, **keys}).history
    assert history["critic/sigma"].dropna().tolist() == [1.0, 2.0, 4.0, 8.0]
    assert history["generator/sigma"].dropna().tolist() == [1.0, 2.0]
    linear = fedpisa.run({**RUN, "schedule": "linear"}).history
    assert linear["critic/sigma"].dropna().tolist() == pytest.approx([1.0, 1.5, 3.0])
    gamma = fedpisa.run({**RUN, "gamma": 0.5}).history
    assert gamma["generator/sigma"].dropna().tolist() == [2.0, 4.0, 8.0]


def test_the_same_noise_is_that_of_the_round_before() -> None:
    task = game(same_noise=True, critic_steps=2)(small())
    assert [Game.of(task, {}).key_round(t) for t in range(1, 8)] == [1, 2, 2, 4, 5, 5, 7]
    plain = game(critic_steps=2)(small())
    assert [Game.of(plain, {}).key_round(t) for t in range(1, 5)] == [1, 2, 3, 4]
    first, second = (
        [
            r.arrays["params"].numpy().copy()
            for r in play(SOME[0], "loop", task_of=game(same_noise=same)).rounds(2)
        ]
        for same in (False, True)
    )
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])


def test_the_running_mean_is_evaluated() -> None:
    federation = play(SOME[0], "vmap", task_of=game(generator_average=0.75))
    turns: Turns = federation.algorithm
    generator_ = turns.game.players[1]
    mean = generator_.of(turns.init(federation.task.initial_params(), federation.task.layout)["params"])
    for finished in federation.rounds(6):
        if finished.server_round % 2 == 0:
            mean = 0.75 * mean + 0.25 * generator_.of(federation.strategy.server["params"])
    server = federation.strategy.server
    assert torch.equal(generator_.of(turns.averaged(server)), mean)
    assert torch.equal(turns.averaged(server)[: generator_.begin], server["params"][: generator_.begin])
    plain, averaged = (fedpisa.run({**RUN, "generator-average": d}) for d in (0.0, 0.9))
    assert plain.history["train_loss"].equals(averaged.history["train_loss"])
    assert not plain.history["test_loss"].equals(averaged.history["test_loss"])


# ------------------------------------------------------------------------------------------ runs


def test_a_run_sends_one_player_and_reports_it() -> None:
    result = fedpisa.run({**RUN, "algorithm": "sisa"})
    critic, generator_ = (
        sum(value.size for name, value in result.parameters.items() if name.startswith(player))
        for player in PLAYERS
    )
    assert result.history["bytes_up"].dropna().tolist() == [4 * 3 * critic, 4 * 3 * generator_] * 3
    assert set(result.history["bytes_down"].dropna()) == {4 * 3 * (critic + generator_)}
    assert result.history["critic/primal_residual"].notna().tolist() == [False, *[True, False] * 3]
    last = result.history.iloc[-1]
    assert np.isfinite([last["critic/stationarity"], last["generator/stationarity"]]).all()


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"algorithm": "scaffnew"}, "scaffnew cannot be played in turns: its coin"),
    ({"algorithm": "moon"}, "moon cannot be played in turns: it compares the features"),
    ({"algorithm": "local"}, "local cannot be played in turns"),
    ({"algorithm": "fedavg", "server-strategy": "fed-adam"}, "Flower's strategies know one model"),
    ({"algorithm": "fedavg", "exact-diagnostics": True}, "no common objective"),
    ({"algorithm": "fedavg", "validation-fraction": 0.2, "early-stopping": 2}, "loss is one player's"),
    ({"model": "mlp", "widths": [4]}, "needs a model with the networks critic and generator"),
    ({"objective": "wgan"}, "set weight-clip"),
    ({"algorithm": "fedgia", "turns-within": True}, "fedgia does not say where its local steps"),
    (
        {"algorithm": "fedsgd", "turns-within": True, "critic-steps": 2},
        "steps of the critic but the last",
    ),
    ({"schedule": "linear", "warmup-rounds": 3}, "leaves no round"),
]


@pytest.mark.parametrize(("keys", "reason"), REFUSED, ids=str)
def test_what_cannot_be_played_is_refused(keys: dict[str, object], reason: str) -> None:
    own = {key: value for key, value in RUN.items() if key not in ("sigma", "rho")}
    if "model" in keys:
        own.pop("latent")
    with pytest.raises(ValueError, match=reason) as error:
        fedpisa.run({**own, **keys})
    assert "\n" not in str(error.value)


def test_parameters_must_belong_to_a_player() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent, self.critic, self.generator = 1, nn.Linear(1, 1), nn.Linear(1, 1)
            self.temperature = nn.Parameter(torch.ones(()))

    with pytest.raises(ValueError, match="'temperature' belongs to none of the networks"):
        game()(Loose())
    assert "calibration" not in families.available("algorithm")
