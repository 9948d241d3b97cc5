"""An error names a layer that cannot be stacked before the run starts; divergence ends a run cleanly."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpisa
from fedpisa.rng import torch_seeded
from fedpisa.runs import simulation
from fedpisa.simulation.stacked.grid import UnstackableError, VmapGrid

pytestmark = pytest.mark.filterwarnings("error")


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class ToNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.ones_like(x.detach().numpy()))


class Count(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(torch.nonzero(x))


class KeepsStatistics(nn.Module):
    """InstanceNorm's running statistics would include the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(4, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unsqueeze(-1).expand(-1, -1, 3) + torch.arange(3.0)).mean(-1)


class WholeModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(x)
        return out if out.sum() > 0 else -out


def nested(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"odd": layer})["odd"], nn.Linear(4, 3))


UNSTACKABLE = {
    "1 (Branch)": lambda: nested(Branch()),
    "1 (ToNumpy)": lambda: nested(ToNumpy()),
    "1 (Count)": lambda: nested(Count()),
    "the model (WholeModel)": WholeModel,
    "1.norm (InstanceNorm1d)": lambda: nested(KeepsStatistics()),
}


@pytest.mark.parametrize("layer", UNSTACKABLE)
def test_the_layer_is_named_with_the_fix(lab: Any, layer: str) -> None:
    algorithm = lab.Case("sisa", {}).build()
    for _ in range(2):  # torch issues some warnings only once
        # Of a branch, the weights decide whether it shows first as an error or as mixed samples.
        with torch_seeded(0, "initial-weights"), pytest.raises(UnstackableError) as caught:
            lab.make(algorithm, "vmap", module=UNSTACKABLE[layer], dtype=torch.float32)
    text = str(caught.value)
    assert text.startswith(f"{layer} cannot run for stacked clients (")
    assert 'use engine = "loop", or replace the layer' in text
    assert "\n" not in text


def test_the_check_leaves_the_module_as_it_was(lab: Any) -> None:
    module = lab.fill(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)))
    before = torch.get_rng_state()
    federation = lab.make(lab.Case("sisa", {}).build(), "vmap", module=lambda: module)
    assert torch.equal(torch.get_rng_state(), before)
    assert int(federation.task.module[1].num_batches_tracked) == 0
    assert not federation.task.module[0]._forward_hooks
    with pytest.raises(UnstackableError):
        lab.make(lab.Case("sisa", {}).build(), "vmap", module=lambda: nested(Branch()))


@pytest.mark.parametrize("layer", UNSTACKABLE)
def test_the_loop_runs_it(lab: Any, layer: str) -> None:
    federation = lab.make(lab.Case("sisa", {}).build(), "loop", module=UNSTACKABLE[layer]).run(2)
    assert bool(torch.isfinite(federation.params).all())


# ----------------------------------------------------------------------------- through a configuration


@pytest.fixture
def own_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Write a user's model that cannot be stacked; return its name."""
    (tmp_path / "branching_model.py").write_text(
        "from torch import nn\n"
        "class Branch(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "def build(shape, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs), Branch())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "branching_model:build"


def test_auto_falls_back_to_the_loop_and_says_why(
    own_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = simulation._say_once.__wrapped__
    monkeypatch.setattr(simulation, "_say_once", cache(say))
    config = {"num-server-rounds": 2, "num-clients": 3, "model": own_model}
    result = fedpisa.run(config, out=tmp_path / "run")
    fedpisa.run(config)
    assert result.status == "finished"
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert (info["engine"], info["path"]) == ("loop", "loop")
    assert info["path_reason"].startswith("2 (Branch) cannot run for stacked clients (")
    (record,) = caplog.records  # although there were two runs
    assert record.getMessage() == f'engine = "auto" takes "loop": {info["path_reason"]}'
    by_loop = fedpisa.run({**config, "engine": "loop"})
    for name, value in by_loop.parameters.items():
        np.testing.assert_array_equal(result.parameters[name], value)


def test_vmap_asked_for_is_refused_before_anything_is_written(own_model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 \(Branch\) cannot run for stacked clients"):
        fedpisa.run({"model": own_model, "engine": "vmap"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_stacks_what_can_be_stacked(tmp_path: Path) -> None:
    fedpisa.run({"num-server-rounds": 1, "model": "mlp"}, out=tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["engine"] == "vmap"


@pytest.mark.parametrize(
    "keys",
    [
        {"algorithm": "fedavg", "learning-rate": 1e20, "model": "mlp"},
        {"algorithm": "sisa", "sigma": 1e-30, "rho": 0.0, "model": "mlp"},
        {"algorithm": "fedsgd", "learning-rate": 1e30, "model": "mlp"},
    ],
    ids=lambda keys: keys["algorithm"],
)
def test_divergence_ends_the_run(keys: dict[str, object], engine: str, tmp_path: Path) -> None:
    config = {**keys, "engine": engine, "num-server-rounds": 30, "num-clients": 4, "widths": [16]}
    result = fedpisa.run(config, out=tmp_path / "run")
    assert result.status == "diverged"
    assert 2 <= len(result.history) < 31
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["status"] == "diverged"
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(len(lines)))
    assert len(lines) == len(result.history)
    assert (tmp_path / "run/model.safetensors").exists()


def test_an_optimizer_that_cannot_train_the_model_is_refused_at_once(tmp_path: Path) -> None:
    """Muon trains only matrices, so an error refuses a model with a bias before anything is written."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    with pytest.raises(ValueError, match="muon"):
        fedpisa.run({"algorithm": "fedsgd", "optimizer": "muon", "model": "mlp"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_warnings_about_stacking(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Stacking logs nothing, and raises no warning: this module turns warnings into errors."""
    with caplog.at_level(logging.WARNING):
        for module in (
            lab.mlp,
            lambda: nn.Sequential(
                nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Dropout(0.1)
            ),
            lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 3)),
        ):
            assert isinstance(
                lab.make(lab.Case("sisa", {}).build(), "vmap", module=module).run(2).grid, VmapGrid
            )
    assert not caplog.records
