"""Models whose samples, mini-batches or calls depend on each other are trained as on the loop, or refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.plain_fedavg import difference, plain, settings, simulated

WIDTH = 8
KINDS: dict[str, type[Net]] = {}


class Net(nn.Module):
    """Two layers; a kind changes the features between them in training."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs)
        self.start()

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def start(self) -> None:
        """Set attributes."""

    def change(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.first(x.flatten(1)))
        return self.last(self.change(h) if self.training else h)


class ByAnAttributeOfDropout(Net):
    """The comparison without noise sets ``p`` to 0."""

    def start(self) -> None:
        self.p = 0.5

    def change(self, h: Tensor) -> Tensor:
        return h - self.p * h.mean(0)


class ByDropProb(Net):
    def start(self) -> None:
        self.drop_prob = 0.3

    def change(self, h: Tensor) -> Tensor:
        return h - h.mean(0) if self.drop_prob else h


class OfManySamples(Net):
    def change(self, h: Tensor) -> Tensor:
        return h - h.mean(0) if len(h) > 7 else h


class ByTheNumberOfSamples(Net):
    def change(self, h: Tensor) -> Tensor:
        return h * (0.5 if len(h) > 7 else 1.0)


class SumsUp(Net):
    """Padding after the samples changes nothing, but another mini-batch before them does."""

    def change(self, h: Tensor) -> Tensor:
        return h.cumsum(0)


class FirstSample(Net):
    def change(self, h: Tensor) -> Tensor:
        return torch.cat([2 * h[:1], h[1:]])


class Position(Net):
    def change(self, h: Tensor) -> Tensor:
        return h * (1 + torch.arange(len(h), dtype=h.dtype)[:, None] / 10)


class ClippedGradient(Net):
    """A gradient that is no sum over mini-batches."""

    def change(self, h: Tensor) -> Tensor:
        weight = self.last.weight * 1
        if weight.requires_grad:
            weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
        return h + (h @ weight.T).mean(1, keepdim=True)


class CountsInAList(Net):
    def start(self) -> None:
        self.seen: list[int] = []

    def change(self, h: Tensor) -> Tensor:
        self.seen.append(len(h))
        return h * (1 + len(self.seen) / 10)


class CountsInATuple(Net):
    def start(self) -> None:
        self.seen: tuple[int, ...] = ()

    def change(self, h: Tensor) -> Tensor:
        self.seen = (*self.seen, 1)
        return h * (1 + len(self.seen) / 10)


class CountsInADict(Net):
    def start(self) -> None:
        self.seen = {"calls": 0}

    def change(self, h: Tensor) -> Tensor:
        self.seen["calls"] += 1
        return h * (1 + self.seen["calls"] / 10)


class CountsInAnArray(Net):
    def start(self) -> None:
        self.seen = np.zeros(2000)

    def change(self, h: Tensor) -> Tensor:
        self.seen[1000] += 1
        return h * (1 + float(self.seen[1000]) / 10)


class BufferAfterAStep(Net):
    """Registers a buffer where there was none; another client begins without it."""

    def start(self) -> None:
        self.calls, self.scale = 0, nn.Identity()

    def change(self, h: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            self.scale.register_buffer("late", h.new_tensor(0.5))
        return h * getattr(self.scale, "late", 1.0)


class LayerAfterAStep(Net):
    """Puts another layer in the place of one."""

    def start(self) -> None:
        self.calls, self.last_but_one = 0, nn.Identity()

    def change(self, h: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            self.last_but_one = nn.ReLU()
        result: Tensor = self.last_but_one(h)
        return result


def model(num_outputs: int, kind: str) -> nn.Module:
    return KINDS[kind](num_outputs)


MODEL = "tests.contracts.test_mixing:model"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_a_run_is_plain_fedavg(kind: str, engine: str) -> None:
    keys = settings(MODEL, (6,), sizes="2 3 24", kind=kind)
    assert difference(simulated(keys, engine), plain(keys))[0] < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_agree_on_several_mini_batches(kind: str) -> None:
    keys = settings(MODEL, (6,), sizes="2 9 14", kind=kind, algorithm="sisa")
    keys |= {"batch-size": 4, "batches-per-round": 3}
    del keys["local-steps"], keys["learning-rate"]
    loop, auto = (simulated(keys, engine) for engine in ("loop", "auto"))
    assert difference(auto, loop)[0] < 1e-12


class GrowingBuffer(nn.Linear):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(6, num_outputs)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = torch.cat([self.seen.to(x.dtype), x.detach().sum(1)])
        return super().forward(x)


class LateBuffer(GrowingBuffer):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = x.detach().mean(0)
        return nn.Linear.forward(self, x)


class StartedByData(nn.Linear):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(6, num_outputs)
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.started:
            self.bias.data = -x.detach().mean().expand_as(self.bias).clone()
            self.started.fill_(True)
        return super().forward(x)


class OtherParameter(nn.Linear):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.bias = nn.Parameter(self.bias.detach() / 2)
        return super().forward(x)


class LateParameter(nn.Linear):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not hasattr(self, "scale"):
            self.scale = nn.Parameter(x.new_ones(()))
        return super().forward(x)


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("GrowingBuffer", r"changes buffer 'seen' from shape \(0,\) to \(2,\)"),
        ("LateBuffer", "registers buffer 'seen': register it in __init__"),
        ("LateParameter", "adds parameter 'scale': make it in __init__"),
        ("StartedByData", "writes into its parameters"),
        ("OtherParameter", "writes into its parameters"),
    ],
)
def test_tensors_that_a_call_replaces_are_refused(name: str, cause: str, engine: str) -> None:
    with pytest.raises(ValueError, match=cause):
        simulated(settings(f"tests.contracts.test_mixing:{name}", (6,)), engine)
