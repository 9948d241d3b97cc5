"""Samples that the broadcast model makes: engines, interruptions, memory, and the moments of observations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedpisa
from fedpisa.config.run import load_config
from fedpisa.control.environments import KEPT_CLIENTS, Environment, Environments, Floats, Moved
from fedpisa.control.moments import Moments
from fedpisa.control.policies import Gaussian
from fedpisa.plots.curves import abscissa
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.federation import Federation
from fedpisa.tasks.playing import Play, episode_return, roll_out
from tests.control.walks import Walk
from tests.runs.interrupted import assert_same, checkpoints, cut_short

SEED_ROUND = 3
PRIVATE = {
    "differential-privacy": "central",
    "clipping-norm": 0.5,
    "noise-multiplier": 0.8,
    "weighting": "uniform",
}
NO_MOMENTS = Moments.none((1,)), Moments.none((1,))


def keys(kind: str = "continuous", **more: object) -> dict[str, Any]:
    base: dict[str, object] = {
        "dataset": f"tests.control.walks:{kind}",
        "task": "ppo",
        "partitioner": "natural",
        "num-clients": 3,
        "algorithm": "sisa",
        "hidden-widths": [8],
        "model": "actor-critic",
        "batch-size": 5,
        "rollout-every": 3,
        "num-server-rounds": 8,
        "eval-every": 4,
        "eval-episodes": 1,
    }
    return base | {name.replace("_", "-"): value for name, value in more.items()}


def parameters(**more: object) -> np.ndarray:
    result = fedpisa.run(keys(**more))
    return np.concatenate([value.ravel() for value in result.parameters.values()])


# -------------------------------------------------------------------------------------------------- one rollout


class Counting(Environment):
    """Observations count the steps since the reset; a termination after 2 steps, or a cut."""

    def __init__(self, terminates: bool) -> None:
        self.terminates, self.seeds = terminates, list[int]()

    def reset(self, seed: int) -> Floats:
        self.seeds.append(seed)
        self.count = 0
        return np.zeros(1)

    def step(self, action: Floats) -> Moved:
        self.count += 1
        ends = self.count == 2
        return Moved(
            np.array([float(self.count)]), 1.0, ends and self.terminates, ends and not self.terminates
        )


def ten_times(x: Floats) -> torch.Tensor:
    """Return the mean 0, the deviation 1 and the value ``10 x`` of observations."""
    seen = torch.from_numpy(x)
    return torch.cat([0 * seen, 0 * seen, 10 * seen], -1)


@pytest.mark.parametrize("terminates", [True, False])
def test_values_at_the_ends_of_episodes_and_of_the_rollout(terminates: bool) -> None:
    play = Play(observation_norm="none", normalize_advantage=False, discount=0.5, gae_lambda=0.0)
    environment = Counting(terminates)
    made = roll_out(
        play, Gaussian(1), ten_times, [environment], 3, np.random.default_rng(0), NO_MOMENTS, None
    )
    assert made.x.ravel().tolist() == [0.0, 1.0, 0.0]
    last = 0.0 if terminates else 0.5 * 20
    # r + gamma V(s') - V(s), where the third step goes on into the next rollout
    assert made.y[:, 2].tolist() == [1 + 0.5 * 10 - 0, 1 + last - 10, 1 + 0.5 * 10 - 0]
    assert made.y[:, 3].tolist() == [1 + 0.5 * 10, 1 + last, 1 + 0.5 * 10]
    torch.testing.assert_close(made.y[:, 1], -0.5 * made.y[:, 0] ** 2 - 0.5 * np.log(2 * np.pi))
    assert len(set(environment.seeds)) == 2  # each episode has a seed of its own
    assert made.mean_reward == 1.0


@pytest.mark.parametrize("length", [1, 2])
def test_rewards_are_divided_by_the_deviation_of_returns(length: int) -> None:
    """Returns of episodes of one step are all 1, and have no deviation."""

    class Short(Counting):
        def step(self, action: Floats) -> Moved:
            moved = super().step(action)
            return moved._replace(terminated=self.count == length, truncated=False)

    play = Play(
        observation_norm="none", normalize_advantage=False, reward_norm=True, discount=0.5, gae_lambda=1.0
    )
    made = roll_out(
        play,
        Gaussian(1),
        lambda x: 0 * ten_times(x),
        [Short(True)],
        4,
        np.random.default_rng(0),
        NO_MOMENTS,
        None,
    )
    # Returns so far are 1 and 1 + 1/2.
    wanted = [1.0] * 4 if length == 1 else [1.5 / 0.25, 1 / 0.25] * 2
    assert made.y[:, -1].tolist() == pytest.approx(wanted)
    assert made.mean_reward == 1.0


def test_moments_are_those_of_all_observations() -> None:
    play, rng = Play(reward_norm=True, discount=0.5), np.random.default_rng(0)
    environments, known = [Counting(True), Counting(False)], NO_MOMENTS
    seen = []
    for steps in (3, 4):
        made = roll_out(play, Gaussian(1), ten_times, environments, steps, rng, known, None)
        known = made.observations, made.returns
        seen += [step % 2 for step in range(steps) for _ in environments]
    assert known[0].count == len(seen) == 14
    assert known[0].mean == pytest.approx(np.mean(seen))
    assert known[0].variance == pytest.approx(np.var(seen))
    discounted = [1 + 0.5 * value for value in seen]  # of the rewards 1, since the reset
    assert known[1].mean == pytest.approx(np.mean(discounted))


def test_an_episode_of_an_evaluation() -> None:
    play = Play(observation_norm="none", eval_steps=1)
    known = NO_MOMENTS[0], None
    assert episode_return(play, Gaussian(1), ten_times, Counting(True), 0, known) == 1.0
    long = Play(observation_norm="none")
    assert episode_return(long, Gaussian(1), ten_times, Counting(False), 0, known) == 2.0


# ------------------------------------------------------------------------------------------------------ engines


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize(
    "options",
    [
        {"observation_norm": "personal", "reward_norm": True},
        {"observation_norm": "shared", "restart_duals": True},
        {
            "algorithm": "fedavg",
            "local_epochs": 2,
            "task": "a2c",
            "fraction_train": 0.7,
            "learning_rate": 1e-3,
        },
        {"algorithm": "scaffold", "observation_norm": "none", "local_steps": 2, "max_grad_norm": 0.5},
    ],
)
def test_engines_agree(kind: str, options: dict[str, Any]) -> None:
    loop, vmap = (
        parameters(kind=kind, engine=engine, dtype="float64", **options) for engine in ("loop", "vmap")
    )
    np.testing.assert_allclose(vmap, loop, rtol=1e-11, atol=1e-12)
    loop, vmap = (parameters(kind=kind, engine=engine, **options) for engine in ("loop", "vmap"))
    np.testing.assert_allclose(vmap, loop, rtol=1e-4, atol=1e-6)


def test_actions_are_the_same_on_both_engines() -> None:
    samples = []
    for engine in ("loop", "vmap"):
        simulation = Simulation(load_config(keys(engine=engine, num_server_rounds=1)))
        list(simulation.rows())
        states = simulation.grid.client_states
        assert states is not None
        state = states.state(1)
        assert state is not None
        samples.append(torch.cat([state["task/x"], state["task/y"]], -1))
    assert torch.equal(*samples)
    assert float(samples[0].abs().min()) > 0


@pytest.mark.parametrize("path", ["micro", "blocks"])
def test_other_paths_of_the_stacked_engine(path: str) -> None:
    more: dict[str, object] = {"micro": {"micro_batch_size": 2}, "blocks": {"cohort_block": 2}}[path]
    found = parameters(engine="vmap", dtype="float64", **more)
    np.testing.assert_allclose(found, parameters(engine="loop", dtype="float64"), rtol=1e-11, atol=1e-12)


# ------------------------------------------------------------------------------------- repetition and resumption


def test_a_repeated_request_gets_the_same_reply() -> None:
    federation = Federation(load_config(keys()))
    from fedpisa.clients.memory import initial_state

    client, params_P = federation.client(1), federation.task.initial_params()
    state = initial_state(client.task, client.update, params_P)
    first = client.run_round(1, {"params": params_P}, state)
    client.run_round(2, {"params": params_P + 0.1}, first.state)  # the environments are somewhere else now
    again = client.run_round(1, {"params": params_P}, state)
    for one, other in ((first.upload, again.upload), (first.state, again.state)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(name.startswith("task/") for name in first.upload)  # samples are never sent


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("norm", ["personal", "shared"])
@pytest.mark.parametrize("server_round", [2, 3])
def test_a_killed_run_ends_in_the_same_bytes(
    tmp_path: Path, engine: str, norm: str, server_round: int
) -> None:
    """A run ends within a period and between two, and goes on from the checkpoint of that round."""
    config = keys(engine=engine, observation_norm=norm, checkpoint_every=1, fraction_train=0.7)
    fedpisa.run(config, out=tmp_path / "whole")
    part = cut_short(config, tmp_path / "part", server_round)
    fedpisa.run(resume=part, allow=["tests.control.walks"])
    assert_same(tmp_path / "whole", part)


def test_a_process_killed_within_a_rollout_leaves_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = keys("deadly", checkpoint_every=1, eval_every=8)
    monkeypatch.chdir(tmp_path)
    fedpisa.run(config, out=tmp_path / "whole")
    (tmp_path / "deadly").write_text("110")  # steps: in the second period
    code = f"import fedpisa; fedpisa.run({config!r}, out='part')"
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "deadly").exists()
    assert checkpoints(tmp_path / "part")[0] == 3
    fedpisa.run(resume=tmp_path / "part", allow=["tests.control.walks"])
    assert_same(tmp_path / "whole", tmp_path / "part")


def test_samples_last_for_a_period_and_absent_clients_make_theirs_later() -> None:
    history = fedpisa.run(keys(fraction_train=0.4, num_server_rounds=12)).history  # one client a round
    steps = history["env_steps"].dropna()
    assert set(steps) == {0.0, 20.0}
    assert (steps > 0).sum() > 4  # more often than in the first rounds of the four periods
    full = fedpisa.run(keys()).history
    assert full["env_steps"].dropna().tolist() == [60, 0, 0, 60, 0, 0, 60, 0]
    assert abscissa(full, "env-steps").tolist() == [0, 60, 60, 60, 120, 120, 120, 180, 180]


def test_duals_begin_anew_with_new_samples_if_asked_to() -> None:
    kept, anew = (parameters(restart_duals=restart, num_server_rounds=6) for restart in (False, True))
    assert not np.allclose(kept, anew)
    first = [parameters(restart_duals=restart, num_server_rounds=3) for restart in (False, True)]
    np.testing.assert_array_equal(*first)  # the first samples change nothing


# ------------------------------------------------------------------------------------ moments and measurements


def test_shared_moments_are_those_of_all_clients_observations() -> None:
    check_shared_moments("continuous", "float64", 1e-10)


def test_shared_moments_of_large_observations_keep_their_digits() -> None:
    """In float32 the squares of the observations have a last digit of 8, and their variance is below 1."""
    check_shared_moments("far", "float32", 0.01)


def check_shared_moments(kind: str, dtype: str, tolerance: float) -> None:
    config = load_config(keys(kind, observation_norm="shared", num_server_rounds=4, dtype=dtype))
    simulation = Simulation(config)
    list(simulation.rows())
    states = simulation.grid.client_states
    assert states is not None
    own = [state["task/observations"] for client in range(3) if (state := states.state(client)) is not None]
    union = Moments.none((2,))
    for part in own:
        count, mean, variance = part.T.double().numpy()
        union = union.merged(Moments(float(count[0]), mean, variance))
    assert union.count == 3 * 2 * 20
    held = {name: value.astype(np.float64) for name, value in simulation.parameters().items()}
    np.testing.assert_allclose(
        held["observation_mean"], union.mean, rtol=1e-12 if dtype == "float64" else 1e-6
    )
    apart = held["observation_mean"] - held["observation_centre"]
    np.testing.assert_allclose(held["observation_square"] - apart**2, union.variance, rtol=tolerance)


def test_personal_moments_never_leave_the_clients() -> None:
    result = fedpisa.run(keys(observation_norm="personal"))
    assert not [name for name in result.parameters if "observation" in name]
    federation = Federation(load_config(keys()))
    task = federation.task
    with pytest.raises(ValueError, match="the clients alone have the moments"):
        task.evaluate(task.initial_params(), task.initial_buffers(), federation.test.x, federation.test.y)


def test_measures_have_a_direction() -> None:
    result = fedpisa.run(keys(per_client=True, observation_norm="none"))
    assert [(one.column, one.higher_is_better, one.form) for one in result.measures] == [
        ("return", True, "number"),
        ("return_worst", True, "number"),
    ]
    last = result.history.iloc[-1]
    assert last["test_return_worst"] <= last["test_return"] == -last["test_loss"]
    assert result.headline.column == "test_return"
    clients = result.clients
    own = clients[clients["round"] == clients["round"].max()]["return"]
    assert own.mean() == pytest.approx(last["test_return"])
    assert own.min() == pytest.approx(last["test_return_worst"])


def test_policies_of_their_own_are_a_reference() -> None:
    history = fedpisa.run(keys(algorithm="local", local_epochs=1)).history
    assert np.isfinite(history["test_return"].dropna()).all()
    assert (history["test_return_deviation"].dropna().iloc[1:] > 0).all()


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_the_policy_that_acted_has_the_ratio_one(kind: str, autocast: str) -> None:
    """PPO compares the probabilities of one network at two points, not those of two precisions."""
    task = Federation(load_config(keys(kind, hidden_widths=[64, 64], autocast=autocast))).task
    params_P, buffers_Q = task.initial_params(), task.initial_buffers()
    params_P = params_P + 0.3 * torch.randn(params_P.shape, generator=torch.Generator().manual_seed(0))
    made = task.rollouts.collected(0, 1, params_P, buffers_Q, task.rollouts.no_samples())
    outputs, _ = task.outputs(task.layout.unflatten(params_P), buffers_Q, made["x"], None)
    log_prob_B = task.policy.log_prob(outputs[:, :-1], made["y"][:, :-3])
    assert float((log_prob_B - made["y"][:, -3]).abs().max()) <= 1e-5
    with torch.no_grad(), task.holding(params_P, buffers_Q):
        is_rounded = not torch.allclose(task.eval_outputs(made["x"]), outputs, rtol=1e-5)
    assert is_rounded == (autocast == "bfloat16")


def test_replies_are_checked_as_others_are() -> None:
    history = fedpisa.run(keys(dropout=0.2, nan=0.1, num_server_rounds=6, observation_norm="shared")).history
    assert np.isfinite(history["train_loss"].dropna()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digits", "model": "logistic", "partitioner": "iid"}, "needs environments"),
        ({"task": "regression"}, "needs samples, and the dataset has environments"),
        ({"algorithm": "moon"}, "compares features"),
        ({"algorithm": "moon", "engine": "loop"}, "compares features"),
        ({"algorithm": "centralised"}, "needs all samples in one place"),
        ({"exact-diagnostics": True}, "exact-diagnostics = true needs all samples"),
        ({"algorithm": "scaffold", "restart-duals": True}, "cannot begin anew"),
        ({"partitioner": "iid"}, 'set partitioner = "natural"'),
        ({"validation-fraction": 0.2}, "set validation-fraction = 0"),
        ({"kind": "discrete", "action-noise": "grid"}, "needs one continuous action"),
        ({"observation-norm": "shared", **PRIVATE}, '; set observation-norm = "personal" or "none"$'),
        (
            {"observation-norm": "shared", "micro-batch-size": 2},
            'set micro-batch-size = 0, or set observation-norm = "personal" or "none"$',
        ),
        (
            {"observation-norm": "shared", "algorithm": "local"},
            'own: set observation-norm = "personal" or "none"$',
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    options = dict(options)
    config = keys(options.pop("kind", "continuous")) | options
    if "dataset" in options or options.get("task") == "regression":
        own = ("rollout-every", "eval-episodes", "hidden-widths")
        config = {name: value for name, value in config.items() if name not in own}
    with pytest.raises(ValueError, match=message):
        fedpisa.run(config)


def test_environments_of_many_clients_are_not_all_made_again() -> None:
    made: list[int] = []

    def make(client: int) -> Walk:
        made.append(client)
        return Walk(client, False)

    count = KEPT_CLIENTS + 6
    environments = Environments(make, count, (2,), 1, False, 1, 10)
    first = [environments.of(client)[0] for client in range(count)]
    again = [environments.of(client)[0] for client in range(count)]
    assert again[:KEPT_CLIENTS] == first[:KEPT_CLIENTS]
    assert made == [*range(count), *range(KEPT_CLIENTS, count)]
