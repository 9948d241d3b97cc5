"""Environments of Gymnasium: spaces, truncation, seeds, dynamics of MuJoCo, and runs on them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.config.run import load_config
from fedpisa.control.environments import Environments
from fedpisa.control.gymnasium_api import Dynamics, of_gymnasium
from fedpisa.families.data import load
from fedpisa.simulation.federation import Federation

gymnasium = pytest.importorskip("gymnasium")
PENDULUM = "InvertedDoublePendulum-v5"


def keys(env: str, **more: object) -> dict[str, Any]:
    base: dict[str, object] = {
        "dataset": "gymnasium",
        "env": env,
        "partitioner": "natural",
        "num-clients": 2,
        "num-envs": 2,
        "rollout-steps": 16,
        "rollout-every": 2,
        "algorithm": "sisa",
        "hidden-widths": [8],
        "model": "actor-critic",
        "task": "ppo",
        "num-server-rounds": 4,
        "eval-every": 4,
        "eval-episodes": 1,
    }
    return base | {name.replace("_", "-"): value for name, value in more.items()}


def environments(**more: Any) -> Environments:
    made = load("gymnasium", num_clients=4, seed=1, **more).environments
    assert made is not None
    return made


def model(made: Environments, client: int) -> Any:
    return made.make(client).env.unwrapped.model  # type: ignore[attr-defined]


def own(*, num_clients: int) -> Environments:
    """Return a user's environments: a pendulum that is heavier from client to client."""

    def make(client: int) -> Any:
        env = gymnasium.make("Pendulum-v1")
        env.unwrapped.m = 1.0 + client
        return env

    return of_gymnasium(make, num_clients, num_envs=1, rollout_steps=8)


@pytest.mark.parametrize(
    ("env", "shape", "actions", "discrete"),
    [
        ("CartPole-v1", (4,), 2, True),
        ("Pendulum-v1", (3,), 1, False),
        ("FrozenLake-v1", (16,), 4, True),
    ],
)
def test_spaces(env: str, shape: tuple[int, ...], actions: int, discrete: bool) -> None:
    made = environments(env=env)
    assert (made.observation_shape, made.num_actions, made.discrete) == (shape, actions, discrete)
    first = made.make(0)
    assert first.reset(3).shape == shape
    assert first.step(np.zeros(1)).observation.dtype == np.float64


def test_actions_are_scaled_to_the_bounds_and_cut_off() -> None:
    adapted: Any = environments(env="Pendulum-v1").make(0)  # torques from -2 to 2
    assert adapted._own(np.array([0.5])).tolist() == [1.0]
    assert adapted._own(np.array([7.0])).tolist() == [2.0]
    odd = gymnasium.make("CartPole-v1")
    odd.action_space = gymnasium.spaces.MultiBinary(3)
    with pytest.raises(ValueError, match="Discrete or Box"):
        of_gymnasium(lambda client: odd, 1)


def test_a_cut_is_no_end() -> None:
    environment = environments(env="Pendulum-v1").make(0)
    environment.reset(0)
    moves = [environment.step(np.zeros(1)) for _ in range(200)]
    assert [(move.terminated, move.truncated) for move in moves[-2:]] == [(False, False), (False, True)]


def test_a_seed_decides_an_episode_whatever_was_before() -> None:
    pytest.importorskip("mujoco")
    first, other = (environments(env=PENDULUM, gravity_spread=0.3).make(1) for _ in range(2))
    other.reset(9)
    for _ in range(5):
        other.step(np.ones(1))
    assert np.array_equal(first.reset(4), other.reset(4))
    for action in np.linspace(-1, 1, 9):
        one, two = (each.step(np.array([action])) for each in (first, other))
        assert np.array_equal(one.observation, two.observation)
        assert one[1:] == two[1:]


def test_dynamics_differ_as_the_keys_say() -> None:
    pytest.importorskip("mujoco")
    usual = model(environments(env="HalfCheetah-v5"), 0)
    made = environments(env="HalfCheetah-v5", gravity_spread=0.3, friction_spread=0.2, mass_spread=0.1)
    found = [model(made, client) for client in range(4)]
    factors = [Dynamics(0.3, 0.2, 0.1).factors(1, client) for client in range(4)]
    for one, (gravity, friction, mass) in zip(found, factors, strict=True):
        np.testing.assert_allclose(one.opt.gravity, usual.opt.gravity * gravity)
        np.testing.assert_allclose(one.geom_friction, usual.geom_friction * friction)
        np.testing.assert_allclose(one.body_mass, usual.body_mass * mass)
        np.testing.assert_allclose(one.body_inertia, usual.body_inertia * mass)
    spread = np.abs(np.array(factors) - 1)
    assert len(set(factors)) == 4
    assert (spread < [0.3, 0.2, 0.1]).all()
    assert (spread.max(0) > np.array([0.3, 0.2, 0.1]) / 4).all()


@pytest.mark.parametrize("env", ["CartPole-v1", PENDULUM])
def test_engines_agree(env: str) -> None:
    if env == PENDULUM:
        pytest.importorskip("mujoco")
    found = []
    for engine in ("loop", "vmap"):
        result = fedpisa.run(
            keys(env, engine=engine, dtype="float64", gravity_spread=0.2 * (env == PENDULUM))
        )
        found.append(np.concatenate([value.ravel() for value in result.parameters.values()]))
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-11)


def test_your_own_environments() -> None:
    config = {
        name: value for name, value in keys("").items() if name not in ("env", "num-envs", "rollout-steps")
    } | {"dataset": f"{__name__}:own"}
    result = fedpisa.run(config)
    assert np.isfinite(result.history["test_return"].dropna()).all()
    masses = [env.unwrapped.m for env in (e.env for e in (_first(config, 0), _first(config, 1)))]
    assert masses == [1.0, 2.0]


def _first(config: dict[str, Any], client: int) -> Any:
    made = Federation(load_config(config)).task.environments  # type: ignore[attr-defined]
    return made.of(client)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "NoSuchThing-v0"}, "Gymnasium cannot make it"),
        ({"env": "os:Thing-v0"}, "names a module"),
        ({"env": "CartPole-v1", "mass_spread": 0.1}, "change the model of MuJoCo"),
        ({}, "needs the key 'env'"),
    ],
)
def test_what_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("gymnasium", num_clients=2, **options)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"pip install 'fedpisa\[control\]'"):
        load("gymnasium", num_clients=2, env="CartPole-v1")
