"""Nodes whose own samples have several features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.datasets import Dataset
from tests.simulation.several_inputs import text_samples

SIZES = (11, 20, 7)
MODULE = "tests.simulation.several_inputs"
KEYS: dict[str, Any] = {
    "model": f"{MODULE}:MeanOfTokens",
    "algorithm": "sisa",
    "dtype": "float64",
    "batch-size": 4,
}
KEYS |= {"num-clients": 3, "num-server-rounds": 3}


def samples(client: int) -> tuple[Any, Any]:
    """Return a node's own samples, in which each class occurs."""
    x, _ = text_samples(SIZES[client], 10 + client)
    return x, np.arange(SIZES[client]) % 3


def whole() -> Dataset:
    """Return all nodes' samples, and the server's test set."""
    each = [samples(client)[0] for client in range(3)]
    x = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    y = np.concatenate([samples(client)[1] for client in range(3)])
    test = text_samples(20, 1)
    return Dataset.of("own", (x, y), test, num_classes=3, groups=np.repeat(np.arange(3), SIZES))


def save(path: Path, x: dict[str, Any], y: Any, **more: Any) -> str:
    np.savez(path, **{f"x.{name}": values for name, values in x.items()}, y=y, **more)
    return str(path)


@pytest.fixture
def server(tmp_path: Path) -> RunConfig:
    x, y = text_samples(20, 1)
    tests = {f"x_test.{name}": values for name, values in x.items()}
    data = save(tmp_path / "server.npz", x, y, **tests, y_test=y)
    return RunConfig.from_mapping({**KEYS, "dataset": "file", "data-file": data, "partitioner": "iid"})


def test_nodes_train_on_their_own(nodes: Any, server: RunConfig, tmp_path: Path) -> None:
    """The order of a file's features is another on each node; the model is that of a simulation."""
    files = []
    for client in range(3):
        x, y = samples(client)
        names = list(np.roll(list(x), client))
        files.append(save(tmp_path / f"{client}.npz", {name: x[name] for name in names}, y))
    network = nodes.network(tmp_path / "nodes", server, data=files, **{"allow-modules": [MODULE] * 3})
    result = nodes.start(network, server, tmp_path / "run", own_data=True)
    wanted = fedpisa.run({**KEYS, "dataset": f"{__name__}:whole", "partitioner": "natural"})
    assert result.status == "finished"
    for name, value in wanted.parameters.items():
        np.testing.assert_allclose(result.parameters[name], value, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(result.history["test_loss"], wanted.history["test_loss"], rtol=1e-12)


def test_a_node_without_a_feature_says_so_in_its_log(
    nodes: Any, server: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    for client in range(3):
        x, y = samples(client)
        if client == 1:
            del x["attention_mask"]
        files.append(save(tmp_path / f"{client}.npz", x, y))
    network = nodes.network(tmp_path / "nodes", server, data=files, **{"allow-modules": [MODULE] * 3})
    with pytest.raises(ValueError, match="its log says why"):
        nodes.start(network, server, None, own_data=True)
    assert "has the features input_ids" in caplog.text
