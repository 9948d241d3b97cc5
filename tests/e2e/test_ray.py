"""Runs on Ray give the other engines' model, on an existing cluster and on one started for the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

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
