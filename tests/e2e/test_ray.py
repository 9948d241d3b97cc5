"""Runs on Ray give the other engines' model, on an existing cluster and on one started for the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import fedpisa
from fedpisa.runs.simulation import Simulation

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedpisa[ray]'")

SMALL: dict[str, object] = {
    "dataset": "synthetic",
    "model": "logistic",
    "num-clients": 5,
    "num-server-rounds": 5,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a cluster of two cores and return its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    "keys",
    [{"algorithm": "sisa"}, {"algorithm": "sisa", "absent": "fresh"}, {"algorithm": "scaffold"}],
    ids=str,
)
def test_one_configuration_gives_one_model(keys: dict[str, str], address: str) -> None:
    """Ray gives the other engines' model and states.

    Three of five clients take part in a round, two at a time, so an actor serves several clients in any
    order.
    """
    config = fedpisa.RunConfig.from_mapping({**SMALL, **keys, "fraction-train": 0.6})
    on_ray = Simulation(config.replace({"engine": "ray", "ray-address": address}))
    rows = list(on_ray.rows())
    assert not ray.is_initialized()
    for engine in ("loop", "vmap"):
        other = Simulation(config.replace({"engine": engine}))
        for found, wanted in zip(rows, other.rows(), strict=True):
            assert found.get("train_loss", 0) == pytest.approx(wanted.get("train_loss", 0), rel=1e-5)
        for name, value in other.parameters().items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(on_ray.parameters()[name], value, rtol=1e-6, atol=1e-6)
        mine, its = on_ray.grid.client_states, other.grid.client_states
        assert mine is not None
        assert its is not None
        for client in range(5):
            found, wanted = mine.state(client), its.state(client)
            assert found
            assert wanted
            assert found.keys() == wanted.keys()
            for name, state in wanted.items():
                np.testing.assert_allclose(found[name].numpy(), state.numpy(), rtol=1e-5, atol=1e-6)


PLAYED: dict[str, object] = {
    "partitioner": "natural",
    "num-clients": 3,
    "num-server-rounds": 4,
    "device": "cpu",
}
BANDIT: dict[str, object] = {
    "dataset": "bandit",
    "model": "actor-critic",
    "task": "ppo",
    "algorithm": "sisa",
    "num-envs": 2,
}
GAN: dict[str, object] = {"dataset": "digits", "partitioner": "iid", "task": "gan", "model": "mlp-gan"}


@pytest.mark.parametrize(
    "keys",
    [
        BANDIT | {"rollout-steps": 4, "rollout-every": 2, "hidden-widths": [4], "batch-size": 4},
        GAN | {"algorithm": "sisa", "widths": [8], "latent": 2, "batch-size": 8},
    ],
    ids=["ppo", "gan"],
)
def test_policies_and_players_are_those_of_the_loop(keys: dict[str, object], address: str) -> None:
    """Actors take the same actions and draw the same latent vectors, to the bit, and keep states by player."""
    config = fedpisa.RunConfig.from_mapping({**PLAYED, **keys})
    on_ray, loop = (
        Simulation(config.replace({"engine": "ray", "ray-address": address})),
        Simulation(config.replace({"engine": "loop"})),
    )
    for found, wanted in zip(on_ray.rows(), loop.rows(), strict=True):
        assert found.keys() == wanted.keys()
        assert all(found[key] == wanted[key] for key in wanted if not key.endswith("seconds"))
    for name, value in loop.parameters().items():
        np.testing.assert_array_equal(on_ray.parameters()[name], value)
    mine, its = on_ray.grid.client_states, loop.grid.client_states
    assert mine is not None
    assert its is not None
    for client in range(3):
        states = mine.state(client), its.state(client)
        assert states[0] is not None
        assert states[1] is not None
        assert {"task/x", "task/y"} <= states[1].keys() or {"critic/dual", "generator/dual"} <= states[
            1
        ].keys()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_run_goes_on_elsewhere(address: str, tmp_path: Path) -> None:
    """A run may resume on another cluster, with the bytes of an uninterrupted run."""
    config = {**SMALL, "algorithm": "scaffold"}
    fedpisa.run({**config, "engine": "ray", "num-server-rounds": 2}, out=tmp_path / "run")
    assert not ray.is_initialized()
    changes = {"num-server-rounds": 5, "ray-address": address, "num-cpus": 2}
    resumed = fedpisa.run(changes, resume=tmp_path / "run")
    whole = fedpisa.run({**config, "engine": "loop"})
    for name, value in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[name], value)
    with pytest.raises(ValueError, match="another configuration: engine was"):
        fedpisa.run({"engine": "loop", "num-server-rounds": 6}, resume=tmp_path / "run")


def test_clients_that_fit_nowhere(address: str) -> None:
    with pytest.raises(ValueError, match=r"num-cpus = 3, .*not one client fits"):
        fedpisa.run({**SMALL, "engine": "ray", "ray-address": address, "num-cpus": 3})
    assert not ray.is_initialized()
