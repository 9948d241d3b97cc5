"""Models whose kernels have no batching rule: the stacked engine runs their clients one by one, as the loop does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpisa
from fedpisa.simulation.stacked import cohort, gradient_check
from fedpisa.simulation.stacked.fused_kernels import without_fused_kernels
from fedpisa.simulation.stacked.gradient_check import generators
from fedpisa.simulation.stacked.grid import choose_path

pytestmark = pytest.mark.filterwarnings("error")
HERE = "tests.simulation.stacked.test_autograd_path"


class Recurrent(nn.Module):
    """A recurrent layer over four steps of one feature each, and a dense layer on its last output."""

    def __init__(self, layer: nn.Module, num_outputs: int = 3, draws: bool = False) -> None:
        super().__init__()
        self.layer, self.draws = layer, draws
        self.norm, self.last = nn.BatchNorm1d(5), nn.Linear(5, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x.flatten(1).unsqueeze(-1))[0][:, -1]
        scale = 1 + 0.1 * float(np.random.rand()) if self.draws and self.training else 1.0  # noqa: NPY002
        result: Tensor = self.last(scale * self.norm(outputs))
        return result


class Attention(nn.Module):
    """A body of transformers over four steps, between dense layers."""

    def __init__(self, body: nn.Module, num_outputs: int = 3) -> None:
        super().__init__()
        self.body, self.first, self.last = body, nn.Linear(1, 4), nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(self.first(x.flatten(1).unsqueeze(-1))).mean(1))
        return result


class Picture(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 1, 2, 2).expand(-1, 3, -1, -1)


class Hidden(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(inputs_embeds=x, use_cache=False).last_hidden_state
        return result


def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(1, 5, batch_first=True))


def gru() -> nn.Module:
    return Recurrent(nn.GRU(1, 5, batch_first=True))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return Attention(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def vision_transformer() -> nn.Module:
    try:
        from torchvision.models import VisionTransformer
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    # `fill` draws the weights of the last layer too, which begins at 0.
    sizes: dict[str, Any] = {"num_heads": 2, "hidden_dim": 4, "mlp_dim": 8, "num_classes": 3}
    return nn.Sequential(Picture(), VisionTransformer(2, 1, 1, **sizes))


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 4, "vocab_size": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**sizes, **dropout, attn_implementation="sdpa")
    return Attention(Hidden(transformers.GPT2Model(config)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    function.__name__: function for function in (lstm, gru, encoder, vision_transformer, gpt2)
}


def build(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Return the model of a configuration."""
    return Recurrent(nn.LSTM(1, 5, batch_first=True), num_outputs)


def assert_equal(lab: Any, one: Any, other: Any) -> None:
    """Assert that two federations have the same models, states and metrics, to float64's rounding."""
    assert lab.relative(one.params, other.params) <= 1e-12
    for mine, others in zip(one.states(), other.states(), strict=True):
        assert mine.keys() == others.keys()
        assert all(lab.relative(mine[name], others[name]) <= 1e-12 for name in mine)
    for mine, others in zip(one.history[1:], other.history[1:], strict=True):
        assert mine.train_metrics == pytest.approx(others.train_metrics, rel=1e-12, nan_ok=True)


def federation(lab: Any, name: str, engine: str, module: Callable[[], nn.Module], **more: Any) -> Any:
    """Return a federation whose updates average buffers."""
    made = lab.make(
        lab.Case(name, {}).build(), engine, module=lambda: lab.fill(module()), fraction=0.7, **more
    )
    made.strategy.buffer_layout = made.task.buffer_layout
    return made


@pytest.mark.parametrize("algorithm", ["sisa", "fedavg", "scaffold"])
@pytest.mark.parametrize("model", MODELS)
def test_it_equals_the_loop(lab: Any, model: str, algorithm: str) -> None:
    stacked, loop = (federation(lab, algorithm, engine, MODELS[model]) for engine in ("vmap", "loop"))
    before = generators()
    assert stacked.grid.info["path"] == "autograd"
    assert "cannot run for stacked clients" in stacked.grid.info["path_reason"]
    assert_equal(lab, stacked.run(5), loop.run(5))
    assert generators() == before


@pytest.mark.parametrize("model", ["lstm", "encoder"])
def test_float32_takes_the_same_path(lab: Any, model: str) -> None:
    """In float32, an LSTM is one kernel of oneDNN, which gives both engines the same bits."""
    stacked, loop = (
        federation(lab, "sisa", engine, MODELS[model], dtype=torch.float32) for engine in ("vmap", "loop")
    )
    assert stacked.grid.path == "autograd"
    assert torch.equal(stacked.run(5).params, loop.run(5).params)


# --------------------------------------------------------------------------------------------- threads


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Set the number of PyTorch's threads, each step being large enough for them."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cohort, "WORTH_A_THREAD", 0)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("model", ["lstm", "encoder"])
def test_results_are_the_same_bits_on_any_number_of_threads(
    lab: Any, model: str, threads: Callable[[int], None]
) -> None:
    runs = []
    for number in (1, 2, 3):
        threads(number)
        made = federation(lab, "scaffold", "vmap", MODELS[model])
        assert len(made.grid.copies) == number - 1
        before = generators()
        runs.append(made.run(5))
        assert generators() == before  # although each client seeds them
    for other in runs[1:]:
        assert other.model().keys() == runs[0].model().keys()
        assert all(torch.equal(value, runs[0].model()[name]) for name, value in other.model().items())
        for mine, others in zip(runs[0].states(), other.states(), strict=True):
            assert all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("source", ["dropout", "numpy"])
def test_what_draws_stays_on_one_thread_and_draws_what_the_loop_draws(
    lab: Any, source: str, threads: Callable[[int], None]
) -> None:
    def module() -> nn.Module:
        dropout = 0.5 if source == "dropout" else 0.0
        return Recurrent(nn.LSTM(1, 5, 2, batch_first=True, dropout=dropout), draws=source == "numpy")

    threads(3)
    stacked, loop = (federation(lab, "fedavg", engine, module) for engine in ("vmap", "loop"))
    assert stacked.grid.path == "autograd"
    assert stacked.grid.copies == []
    assert_equal(lab, stacked.run(3), loop.run(3))
    random.seed(0)  # other draws before a run change nothing
    assert torch.equal(federation(lab, "fedavg", "vmap", module).run(3).params, stacked.params)


# --------------------------------------------------------------------------------------------- a configuration


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_a_run_says_which_path_it_took_and_why(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {
        **{"model": f"{HERE}:build", "num-server-rounds": 3, "num-clients": 3, "schedule": "cosine"},
        **{"algorithm": "fedprox", "dropout": 0.2, "cohort-block": 2, "dtype": "float64"},
    }
    result = fedpisa.run({**config, "engine": engine}, out=tmp_path / "run")
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert (info["engine"], info["path"]) == ("vmap", "autograd")
    assert info["path_reason"].startswith("layer (LSTM) cannot run for stacked clients (")
    assert not caplog.records
    by_loop = fedpisa.run({**config, "engine": "loop"})
    for name, value in by_loop.parameters.items():
        np.testing.assert_allclose(result.parameters[name], value, rtol=1e-12, atol=1e-15)


def test_a_run_that_began_on_the_loop_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version refused these models, and its checkpoints hold the loop's states."""
    config = {"model": f"{HERE}:build", "num-server-rounds": 2, "num-clients": 3, "checkpoint-every": 1}
    with monkeypatch.context() as earlier:
        earlier.setattr(gradient_check, "lacks_batching_rule", lambda error, layer: False)
        fedpisa.run(config, out=tmp_path / "run")
    resumed = fedpisa.run({"num-server-rounds": 4}, resume=tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["engine"] == "loop"
    by_loop = fedpisa.run({**config, "num-server-rounds": 4, "engine": "loop"})
    for name, value in by_loop.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[name], value)


# --------------------------------------------------------------------------------------------- on a GPU


class OwnState(nn.Module):
    """A recurrent layer whose initial state is made of its input, and thus stacked."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        state = x.new_zeros(1, 5) + 0 * x[None, :, 0, :1]
        result: tuple[Tensor, Any] = self.layer(
            x, (state, state) if isinstance(self.layer, nn.LSTM) else state
        )
        return result


@pytest.mark.parametrize(
    "module",
    [encoder, vision_transformer, gpt2, lambda: Recurrent(OwnState(nn.LSTM(1, 5, batch_first=True)))],
    ids=["encoder", "vision_transformer", "gpt2", "lstm"],
)
def test_without_the_fused_kernels_clients_are_stacked(lab: Any, module: Callable[[], nn.Module]) -> None:
    """What a GPU switches off makes these models stackable, and the check finds plain autograd's gradients."""
    for dtype in (torch.float32, torch.float64):
        made = lab.make(lab.Case("fedavg", {}).build(), "loop", module=module, dtype=dtype)
        with without_fused_kernels(made.task.module, torch.device("cuda")):
            assert choose_path(made.task, made.data)[0] == "stacked"
