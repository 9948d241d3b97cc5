"""Every engine trains any module as plain PyTorch does, or a clear error refuses the module."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedpisa.clients.sgd import LocalSGDUpdate
from fedpisa.datasets.client_data import ClientData
from fedpisa.families import models
from fedpisa.flower.client_app import make_client_app
from fedpisa.simulation.loop import LoopGrid
from fedpisa.simulation.stacked.grid import UnstackableError, VmapGrid, choose_path
from fedpisa.strategies.fedavg import FedAvg
from fedpisa.tasks.base import Samples
from fedpisa.tasks.supervised import supervised
from tests.algorithms import Federation as Lab

FEATURES, CLASSES, RATE = 4, 3, 0.2
SIZES = (5, 3, 4)
Build = Callable[[], nn.Module]


class Scaled(nn.Linear):
    """A subclass of a known layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Centred(nn.Module):
    """Subtracts the mini-batch's mean, without BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Ema(nn.Module):
    """A buffer that is updated in place or rebound."""

    def __init__(self, width: int, rebinds: bool) -> None:
        super().__init__()
        self.rebinds = rebinds
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                if self.rebinds:
                    self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
                else:
                    self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return x - self.mean


class Counter(nn.Module):
    """Integer, boolean and complex buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("big", torch.tensor(2**53 + 1))
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("phase", torch.tensor(1 + 2j, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.big += 1
            self.seen |= True
            self.phase *= 1j
        return x * (self.big - 2**53).clamp(max=2).to(x.dtype)


class InPlace(nn.Module):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5).add_(0.1) if not x.requires_grad else x * 0.5 + 0.1


class Doubled(nn.Module):
    """Calls a layer twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(torch.tanh(self.layer(x)))
        return result


def patched(layer: nn.Linear) -> nn.Linear:
    layer.forward = types.MethodType(lambda self, x: 0.5 * F.linear(x, self.weight, self.bias), layer)  # type: ignore[method-assign]
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda layer, inputs, output: output * 0.7)
    return layer


def with_extra(layer: nn.Module) -> nn.Module:
    layer.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return layer


WIDTH = 5
PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "subclass": lambda: Scaled(WIDTH, WIDTH),
    "patched": lambda: patched(nn.Linear(WIDTH, WIDTH)),
    "hooked": lambda: hooked(nn.Tanh()),
    "hooked linear": lambda: hooked(nn.Linear(WIDTH, WIDTH)),
    "extra parameter": lambda: with_extra(nn.Tanh()),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "batch norm without statistics": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
    "batch norm subclass": lambda: Twice(WIDTH),
    "batch mean": Centred,
    "average in place": lambda: Ema(WIDTH, rebinds=False),
    "average bound anew": lambda: Ema(WIDTH, rebinds=True),
    "counters": lambda: Counter(WIDTH),
    "in place": InPlace,
    "called twice": lambda: Doubled(nn.Linear(WIDTH, WIDTH)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    "nested": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
}


@st.composite
def modules(draw: st.DrawFn) -> nn.Module:
    """Return a sequence of layers, of which some occur several times."""
    kinds = draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4))
    torch.manual_seed(draw(st.integers(0, 100)))
    layers = [PARTS[kind]() for kind in kinds]
    if draw(st.booleans()):
        layers.insert(draw(st.integers(0, len(layers))), draw(st.sampled_from(layers)))
    tied = [layer for layer in layers if type(layer) is nn.Linear]
    if len(tied) > 1 and draw(st.booleans()):
        tied[-1].weight = tied[0].weight
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), *layers, nn.Linear(WIDTH, CLASSES)).double()


def samples() -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(0)
    return [
        (torch.from_numpy(rng.normal(size=(n, FEATURES))), torch.from_numpy(rng.integers(CLASSES, size=n)))
        for n in SIZES
    ]


def plain_fedavg(module: nn.Module, rounds: int, steps: int) -> dict[str, Tensor]:
    """Run FedAvg with full batches in plain PyTorch, the reference for every engine."""
    model = copy.deepcopy(module)
    weights = [n / sum(SIZES) for n in SIZES]
    for _ in range(rounds):
        locals_ = []
        for x, y in samples():
            client = copy.deepcopy(model).train()
            optimizer = torch.optim.SGD([p for p in client.parameters() if p.requires_grad], lr=RATE)
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(client(x.clone()), y).backward()
                optimizer.step()
            locals_.append(dict([*client.named_parameters(), *client.named_buffers()]))
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                values = torch.stack([local[name] for local in locals_])
                if tensor.is_floating_point() or tensor.is_complex():
                    mean = sum(weight * value for weight, value in zip(weights, values, strict=True))
                    tensor.copy_(torch.as_tensor(mean))
                else:
                    tensor.copy_(values.any(0) if values.dtype is torch.bool else values.amax(0))
    return dict([*model.named_parameters(), *model.named_buffers()])


def trained(module: nn.Module, engine: str, rounds: int, steps: int) -> tuple[str, dict[str, Tensor]]:
    """Train with an engine; return its path (``loop`` if it does not stack) and the model."""
    parts = samples()
    begin = np.cumsum([0, *SIZES])
    lab = Lab(
        FedAvg(local_update=LocalSGDUpdate(learning_rate=RATE, batch_size="full", local_steps=steps)),
        module,
        np.concatenate([x.numpy() for x, _ in parts]),
        np.concatenate([y.numpy() for _, y in parts]),
        [np.arange(a, b) for a, b in itertools.pairwise(begin)],
        engine,
    )
    lab.strategy.buffer_layout = lab.task.buffer_layout
    model = lab.run(rounds).model()
    buffers_Q = model.get("buffers", torch.zeros(0, dtype=torch.float64))
    frozen = {name: p.detach() for name, p in lab.task.module.named_parameters() if not p.requires_grad}
    values = frozen | lab.task.layout.unflatten(model["params"]) | lab.task.buffer_layout.unflatten(buffers_Q)
    return lab.grid.info["path"], values


def assert_equal_to_plain(module: nn.Module) -> str:
    """Compare both engines with plain PyTorch; return the stacked engine's path, or ``refused``."""
    torch.manual_seed(0)  # spectral norm draws its first vectors
    wanted = plain_fedavg(module, rounds=2, steps=2)
    path = "refused"
    for engine in ("loop", "vmap"):
        try:
            taken, got = trained(copy.deepcopy(module), engine, rounds=2, steps=2)
        except UnstackableError:
            assert engine == "vmap"
            continue
        path = taken if engine == "vmap" else path
        for name, value in got.items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(
                    value, wanted[name].to(value.dtype), rtol=1e-8, atol=1e-9, msg=name
                )
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(modules())
def test_generated_modules_are_trained_as_in_plain_pytorch(module: nn.Module) -> None:
    try:
        plain_fedavg(module, rounds=1, steps=1)
    except RuntimeError:
        reject()  # PyTorch cannot train it, for example if an in-place ReLU follows a ReLU
    assert_equal_to_plain(module)


@pytest.mark.parametrize("kind", PARTS)
def test_each_part_is_trained_as_in_plain_pytorch(kind: str) -> None:
    torch.manual_seed(0)
    layer = PARTS[kind]()
    path = assert_equal_to_plain(
        nn.Sequential(nn.Linear(FEATURES, WIDTH), layer, nn.Linear(WIDTH, CLASSES)).double()
    )
    known = {"linear", "no bias", "relu", "tanh", "relu in place", "nested"}
    mixes = {"batch mean", "average in place", "average bound anew", "batch norm subclass"}
    no_batching_rule = {"weight norm", "spectral norm"}
    expected = {"written-out": known, "refused": mixes, "autograd": no_batching_rule}
    assert path == next((name for name, kinds in expected.items() if kind in kinds), "stacked")


@pytest.mark.parametrize("kind", ["relu", "linear"])
def test_a_layer_in_two_places_is_not_written_out(kind: str) -> None:
    layer = PARTS[kind]()
    module = nn.Sequential(
        nn.Linear(FEATURES, WIDTH), layer, nn.Linear(WIDTH, WIDTH), layer, nn.Linear(WIDTH, 3)
    )
    assert assert_equal_to_plain(module.double()) == "stacked"


def test_calls_leave_the_module_its_own_tensors() -> None:
    """A call leaves no borrowed tensor in a layer that has two names."""
    layer = nn.Linear(FEATURES, FEATURES)
    task = supervised(nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(FEATURES, CLASSES)).double(), CLASSES)
    before = task.initial_params().clone()
    x, y = samples()[0]
    task.losses(task.layout.unflatten(before + 1), task.initial_buffers(), Samples(x, y, torch.ones(len(x))))
    assert torch.equal(task.initial_params(), before)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("logistic", "written-out"),
        ("mlp", "written-out"),
        ("simple-cnn", "one-by-one"),
        ("leaf-cnn", "one-by-one"),
    ],
)
def test_the_built_in_models_take_the_quick_path(model: str, path: str) -> None:
    """The path depends on shapes, never on timing."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 1, 28, 28)), rng.integers(10, size=12)
    data = ClientData.of(x, y, [np.arange(5), np.arange(5, 12)], torch.float32)
    task = supervised(models.build(model, (1, 28, 28), 10, seed=0), 10)
    assert choose_path(task, data) == (path, "")


def test_a_loop_says_why() -> None:
    data = ClientData.of(*(part.numpy() for part in samples()[0]), [np.arange(5)], torch.float64)
    task = supervised(nn.Sequential(Centred(), nn.Linear(FEATURES, CLASSES)).double(), CLASSES)
    with pytest.raises(UnstackableError, match=r"depend on the other samples"):
        VmapGrid(task, LocalSGDUpdate(), data, seed=0)
    grid = LoopGrid(make_client_app(lambda context: None), 1, reason="because")  # type: ignore[arg-type, return-value]
    assert grid.info == {"path": "loop", "path_reason": "because"}
