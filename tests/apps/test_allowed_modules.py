"""A node imports a run config's ``module:attribute`` only if the node's own config allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpisa.config.run import RunConfig

KEYS = {"model": "my_node_model:net", "num-clients": 2, "num-server-rounds": 1, "algorithm": "fedavg"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    (tmp_path / "my_node_model.py").write_text(
        "from torch import nn\n"
        "def net(shape, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return RunConfig.from_mapping(KEYS)


@pytest.mark.parametrize("allowed", ["", "other", "my_node_model_2", "my_node"])
def test_other_modules_are_refused(allowed: str, tmp_path: Path, nodes: Any, config: RunConfig) -> None:
    network = nodes.network(tmp_path / "nodes", config, **{"allow-modules": [allowed] * 2})
    with pytest.raises(
        ValueError, match="'my_node_model', which is not allowed here: if you trust it"
    ) as caught:
        nodes.start(network, config, tmp_path / "run")
    modules = ",".join(filter(None, (allowed, "my_node_model")))
    assert f"start the node with --node-config 'allow-modules=\"{modules}\"'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("allowed", ["my_node_model", "other, my_node_model", "my_node_model:net"])
def test_an_allowed_module_is_used(allowed: str, tmp_path: Path, nodes: Any, config: RunConfig) -> None:
    network = nodes.network(tmp_path / "nodes", config, **{"allow-modules": [allowed] * 2})
    assert nodes.start(network, config, tmp_path / "run").status == "finished"
