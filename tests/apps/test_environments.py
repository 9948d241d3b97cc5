"""Nodes whose clients act in environments: their part of a data set's, and some of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.cli.deploy import _node_configs
from fedpisa.config.run import RunConfig
from fedpisa.control.environments import Environment, Environments, Floats, Moved
from fedpisa.runs.results import Result
from tests.control.walks import Walk

WALKS = "tests.control.walks"
KEYS: dict[str, Any] = {
    "dataset": f"{WALKS}:continuous",
    "task": "ppo",
    "partitioner": "natural",
    "num-clients": 3,
    "model": "actor-critic",
    "hidden-widths": [8],
    "algorithm": "sisa",
    "batch-size": 5,
    "rollout-every": 2,
    "observation-norm": "shared",
    "num-server-rounds": 5,
    "eval-episodes": 1,
    "dtype": "float64",
}


def walks(client: int, *, discrete: bool = False, size: int = 2) -> Environments:
    """Return a node's environments, with other numbers of environments and steps than the run's."""
    return Environments(lambda _: Walk(client, discrete), 1, (size,), 3 if discrete else 1, discrete, 5, 3)


def first() -> Environments:
    return walks(0)


def second(*, num_clients: int, seed: int) -> Environments:
    assert num_clients == 1
    return walks(1)


def third() -> Environments:
    return walks(2)


def discrete() -> Environments:
    return walks(2, discrete=True)


def wide() -> Environments:
    return walks(2, size=3)


def failing() -> Environments:
    raise KeyError("a secret")


class Broken(Environment):
    """An environment that breaks at its first step."""

    def reset(self, seed: int) -> Floats:
        return np.zeros(2)

    def step(self, action: Floats) -> Moved:
        raise RuntimeError("a secret")


def broken() -> Environments:
    return Environments(lambda client: Broken(), 1, (2,), 1, False)


def samples() -> Any:
    return [(np.zeros(2), 0.0)] * 2


def config(**more: object) -> RunConfig:
    return RunConfig.from_mapping(KEYS | {name.replace("_", "-"): value for name, value in more.items()})


def assert_equal(found: Result, wanted: Result, columns: tuple[str, ...]) -> None:
    assert found.status == "finished"
    for name, value in wanted.parameters.items():
        np.testing.assert_allclose(found.parameters[name], value, rtol=1e-12, atol=1e-14)
    for column in columns:
        np.testing.assert_allclose(found.history[column], wanted.history[column], rtol=1e-12)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"task": "a2c", "dataset": f"{WALKS}:discrete", "algorithm": "scaffold", "learning_rate": 0.01},
        {"dataset": "bandit", "num_envs": 4, "rollout_steps": 5},
        {"dataset": "gymnasium", "env": "CartPole-v1", "num_envs": 1, "rollout_steps": 20},
    ],
    ids=["walk", "discrete", "bandit", "gymnasium"],
)
def test_nodes_act_as_the_clients_of_a_simulation(nodes: Any, tmp_path: Path, keys: dict[str, Any]) -> None:
    """Nodes lose messages and restart, and see the same steps; the nodes' order is not the clients'."""
    if "env" in keys:
        pytest.importorskip("gymnasium", reason="the extra control is not installed")
    wanted = fedpisa.run(config(**keys).to_mapping())
    network = nodes.network(tmp_path / "nodes", config(**keys), [2, 0, 1], **{"allow-modules": [WALKS] * 3})
    network.trouble = nodes.once("reply", (2, 1), (3, 0))
    result = nodes.start(network, config(**keys), tmp_path / "run")
    assert_equal(result, wanted, ("test_return", "test_return_worst", "env_steps", "train_reward"))
    assert result.history["env_steps"].max() == 60


@pytest.mark.parametrize("numbered", [True, False])
def test_nodes_act_in_environments_of_their_own(nodes: Any, tmp_path: Path, numbered: bool) -> None:
    """Their functions make what the clients of a simulation have, and the run says how many steps they take."""
    data = [f"env:{__name__}:{name}" for name in ("first", "second", "third")]
    more: dict[str, list[Any]] = {"allow-modules": [f"{WALKS}, {__name__}"] * 3}
    if not numbered:
        more |= {"partition-id": [None] * 3, "num-partitions": [None] * 3}
    network = nodes.network(tmp_path / "nodes", config(), data=data, **more)
    network.trouble = nodes.once("reply", (2, 1), (3, 0))
    result = nodes.start(network, config(), tmp_path / "run", own_data=True)
    assert_equal(result, fedpisa.run(config().to_mapping()), ("test_return", "env_steps", "train_reward"))
    assert result.history["env_steps"].max() == 60  # 3 clients, 2 environments, 10 steps


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("discrete", "actions of the kind discrete, the server continuous: use the same observations"),
        ("wide", r"observations of shape \(3,\), the server \(2,\): use the same observations, actions"),
    ],
)
def test_other_environments_than_the_server_expects(
    nodes: Any, tmp_path: Path, name: str, cause: str
) -> None:
    network = own(nodes, tmp_path, f"env:{__name__}:{name}")
    with pytest.raises(ValueError, match=cause) as caught:
        nodes.start(network, config(), None, own_data=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "allowed", "cause"),
    [
        ("third", False, "which is not allowed here: if you trust it, start the node with --node-config"),
        ("failing", True, "a secret"),
        ("samples", True, "gave a list: return of_gymnasium"),
        ("nothing", True, "nothing"),
    ],
)
def test_what_cannot_be_used_is_said_on_the_node_alone(
    nodes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, allowed: bool, cause: str
) -> None:
    network = own(nodes, tmp_path, f"env:{__name__}:{name}", allowed=allowed)
    with pytest.raises(ValueError, match="own environments cannot be used: its log says why") as caught:
        nodes.start(network, config(), None, own_data=True)
    assert cause in caplog.text
    assert cause not in str(caught.value)


def test_an_environment_that_breaks_in_a_round_says_so_on_the_node_alone(
    nodes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = own(nodes, tmp_path, f"env:{__name__}:broken")
    with caplog.at_level("WARNING"):
        result = nodes.start(network, config(num_server_rounds=1), tmp_path / "run", own_data=True)
    assert result.history["dropped_replies"].iloc[-1] == 1
    assert caplog.text.count("a secret") == 1


def test_samples_in_place_of_environments_and_the_reverse(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs environments, and the node config names samples"):
        nodes.start(own(nodes, tmp_path, "table.csv"), config(), None, own_data=True)
    keys = {"dataset": "synthetic", "model": "logistic", "num-clients": 3, "num-server-rounds": 1}
    plain = RunConfig.from_mapping(keys)
    with pytest.raises(ValueError, match="needs samples, and the node config names environments"):
        nodes.start(own(nodes, tmp_path, f"env:{__name__}:first", plain), plain, None, own_data=True)


def test_the_server_cannot_know_personal_moments(nodes: Any, tmp_path: Path) -> None:
    personal = config(observation_norm="personal")
    network = nodes.network(tmp_path / "nodes", personal, **{"allow-modules": [WALKS] * 3})
    with pytest.raises(ValueError, match='set observation-norm = "shared" or "none"'):
        nodes.start(network, personal, None)


def test_a_trial_names_environments_as_they_are_and_tables_by_their_place(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,label\n1,2\n")
    configs = _node_configs(3, [Path("env:mine:robot"), table], ["mine"])
    assert [one["data"] for one in configs] == ["env:mine:robot", str(table)]
    with pytest.raises(ValueError, match="does not exist"):
        _node_configs(3, [tmp_path / "other.csv"], None)


def own(nodes: Any, folder: Path, data: str, run: RunConfig | None = None, *, allowed: bool = True) -> Any:
    """Return nodes of which the last has the given data."""
    names = [f"env:{__name__}:first", f"env:{__name__}:second", data]
    modules = [f"{WALKS},{__name__}", f"{WALKS},{__name__}", f"{WALKS},{__name__}" if allowed else WALKS]
    return nodes.network(folder / "nodes", run or config(), data=names, **{"allow-modules": modules})
