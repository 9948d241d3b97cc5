"""Dropout by a step's key: the masks' distribution, torch's formulas, and equal runs on all engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.model_trial import require_trainable
from fedpisa.rng import mix, uniform
from fedpisa.tasks.dropout import key_dropouts, keyed_dropouts, masks_from
from fedpisa.tasks.supervised import supervised

KEY = torch.tensor(5)
LAYERS = {
    nn.Dropout: (400, 50),
    nn.Dropout1d: (400, 50, 3),
    nn.Dropout2d: (400, 50, 2, 2),
    nn.Dropout3d: (400, 50, 2, 1, 2),
    nn.AlphaDropout: (400, 50),
}


def drawn(layer: nn.Module, x: Tensor, key: Tensor = KEY) -> Tensor:
    with masks_from(key):
        result: Tensor = key_dropouts(layer)(x)
    return result


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_a_share_p_of_the_values_is_dropped(kind: type[nn.Module], p: float) -> None:
    """Whole channels in 1d to 3d, and torch's values for what stays and what goes."""
    x = torch.full(LAYERS[kind], 2.0, dtype=torch.float64)
    plain = kind(p)
    torch.manual_seed(0)
    wanted, got = plain(x).unique(), drawn(kind(p), x)
    assert_close(got.unique(), wanted)
    dropped = (got == wanted.min()).flatten(2).double() if x.dim() > 2 else (got == wanted.min()).double()
    assert bool(((dropped == 0) | (dropped == 1)).all())
    if x.dim() > 2:
        assert torch.equal(dropped.amin(2), dropped.amax(2))
    share = float(dropped.mean())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 20_000)


def test_the_mask_is_a_function_of_key_and_call() -> None:
    x, layer = torch.ones(8, 5), nn.Dropout(0.3)
    with masks_from(KEY):
        first, second = key_dropouts(layer)(x), layer(x)
    for number, got in enumerate((first, second)):
        kept = uniform(mix(mix(KEY, -1), number), 8, 5) < 0.7
        assert_close(got, kept / 0.7)
    assert torch.equal(drawn(layer, x[:3]), first[:3])  # padding comes after the samples


@pytest.mark.parametrize("kind", LAYERS)
def test_all_or_nothing(kind: type[nn.Module]) -> None:
    x = torch.randn(LAYERS[kind])
    assert torch.equal(drawn(kind(0.0), x), x)
    assert not drawn(kind(1.0), x).any()


def test_in_place() -> None:
    x = torch.ones(6, 4)
    got = drawn(nn.Dropout(0.5, inplace=True), x)
    assert got is x
    assert torch.equal(x, drawn(nn.Dropout(0.5), torch.ones(6, 4)))


@pytest.mark.parametrize("kind", LAYERS)
def test_evaluation_and_calls_without_a_key_are_torchs(kind: type[nn.Module]) -> None:
    x, layer = torch.randn(LAYERS[kind]), key_dropouts(kind(0.4))
    assert isinstance(layer, kind)
    torch.manual_seed(1)
    got = layer(x)
    torch.manual_seed(1)
    assert torch.equal(got, kind(0.4)(x))
    assert torch.equal(drawn(layer.eval(), x), x)


def test_only_plain_layers_are_keyed() -> None:
    class Own(nn.Dropout):
        pass

    hooked, patched = nn.Dropout(), nn.Dropout()
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = lambda x: x
    others = [Own(), hooked, patched, nn.FeatureAlphaDropout()]
    kinds = [type(layer) for layer in others]
    key_dropouts(nn.Sequential(*others))
    assert [type(layer) for layer in others] == kinds
    assert not keyed_dropouts(nn.Sequential(*others))
    assert not supervised(nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.0)), 2).draws_noise


class Checkpointed(nn.Module):
    """Calls its middle again in the backward pass, or not."""

    def __init__(self, repeats: bool, calls: int = 1) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)
        self.repeats, self.calls = repeats, calls

    def middle(self, h: Tensor) -> Tensor:
        for _ in range(self.calls):
            h = self.drop(h).tanh()
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(checkpoint(self.middle, h, use_reentrant=False) if self.repeats else self.middle(h))


def gradient(repeats: bool, calls: int = 1) -> Tensor:
    torch.manual_seed(0)
    task = supervised(Checkpointed(repeats, calls).double(), 3)
    x, y = torch.rand(1, 9, 4, dtype=torch.float64), torch.randint(3, (1, 9))
    batch = MiniBatches(x, y, torch.full((1, 9), 1 / 9, dtype=torch.float64), KEY)
    return AutogradGradient(task, torch.zeros(0))(task.initial_params(), batch)[1]


def test_a_checkpoint_repeats_the_mask() -> None:
    assert_close(gradient(repeats=True), gradient(repeats=False), rtol=1e-13, atol=1e-13)


def test_a_checkpoint_that_cannot_repeat_its_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint cannot repeat its mask"):
        gradient(repeats=True, calls=2)


# ------------------------------------------------------------------------------------------------ whole runs

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sisa": ("sisa", {"batches-per-round": 3, "batch-size": 3}),
    "fedavg": ("fedavg", {"local-steps": 3, "batch-size": 5}),
    "epochs": ("fedavg", {"local-epochs": 2, "batch-size": 4}),
    "fisher": ("pisa", {"preconditioner": "fisher", "batches-per-round": 2, "batch-size": 3}),
    "hutchinson": ("pisa", {"preconditioner": "hutchinson", "batches-per-round": 2, "batch-size": 3}),
    "moon": ("moon", {"local-steps": 2}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("norm", [False, True])
def test_engines_draw_the_same_masks(lab: Any, case: str, norm: bool) -> None:
    def module() -> nn.Module:
        middle = [nn.BatchNorm1d(6)] if norm else []
        image = nn.Unflatten(1, (2, 3)), nn.Dropout1d(0.3), nn.Flatten()
        layers = nn.Linear(4, 6), *middle, *image, nn.Tanh(), nn.Dropout(0.5), nn.AlphaDropout(0.2)
        filled: nn.Module = lab.fill(nn.Sequential(*layers, nn.Linear(6, 3)))
        return filled

    name, keys = CASES[case]
    loop, stacked = (
        lab.make(lab.Case(name, keys).build(), engine, module=module, fraction=0.7).run(5)
        for engine in ("loop", "vmap")
    )
    assert stacked.grid.path == "stacked"
    assert lab.relative(stacked.params, loop.params) <= 1e-12


class DrawsItself(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = nn.functional.dropout(x, 0.5, self.training)
        return dropped


@pytest.mark.parametrize(("layer", "times"), [(DrawsItself, 1), (nn.Dropout, 0)])
def test_the_log_says_once_that_a_model_draws_itself(
    layer: Callable[[], nn.Module], times: int, caplog: pytest.LogCaptureFixture
) -> None:
    task = supervised(nn.Sequential(nn.Linear(3, 3), layer(), nn.Linear(3, 2)), num_classes=2)
    with caplog.at_level("INFO", "fedpisa"):
        require_trainable(task, torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    assert [record.message[:26] for record in caplog.records] == ["the model draws from PyTor"] * times
