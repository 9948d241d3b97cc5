"""MOON and losses on features: gradients, rounds, and special cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpisa
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.moon import MoonUpdate, cosine
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.tasks.features import FeatureLoss, with_features
from fedpisa.tasks.supervised import supervised

pytestmark = pytest.mark.filterwarnings("error")
GRADIENTS = {"loop": AutogradGradient, "vmap": StackedGradient}
INPUTS, HIDDEN, OUTPUTS = 4, 3, 3


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS))


def parts(w: np.ndarray) -> list[np.ndarray]:
    """Return the weights and biases of `two_layers`."""
    sizes = [INPUTS * HIDDEN, HIDDEN, HIDDEN * OUTPUTS]
    a, b, c, d = np.split(w, np.cumsum(sizes))
    return [a.reshape(HIDDEN, INPUTS), b, c.reshape(OUTPUTS, HIDDEN), d]


def local_loss(
    v: np.ndarray, w: np.ndarray, previous: np.ndarray, x: np.ndarray, y: np.ndarray, mu: float, tau: float
) -> Any:
    """Return the paper's local objective of `two_layers`; ``v`` may be complex."""

    def features(p: np.ndarray) -> np.ndarray:
        return x @ parts(p)[0].T + parts(p)[1]

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(1) / np.sqrt((a * a).sum(1)) / np.sqrt((b * b).sum(1))

    z = features(v)
    outputs = z @ parts(v)[2].T + parts(v)[3]
    cross_entropy = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(len(y)), y]
    near, far = (np.exp(similarity(z, features(p)) / tau) for p in (w, previous))
    return np.mean(cross_entropy - mu * np.log(near / (near + far)))


def stochastic_gradient(v: np.ndarray, *rest: Any) -> np.ndarray:
    """Return the gradient of `local_loss` in ``v`` by complex steps, which are exact to rounding."""
    steps = 1e-30j * np.eye(len(v))
    return np.array([local_loss(v + step, *rest).imag for step in steps]) / 1e-30


# ---------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (5.0, 0.1)])
def test_the_gradient_is_that_of_the_papers_objective(lab: Any, engine: str, mu: float, tau: float) -> None:
    """The gradient equals complex steps on the paper's objective at three different models.

    The reported loss excludes the contrastive loss.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, INPUTS)), rng.integers(0, OUTPUTS, 6)
    task = supervised(two_layers().double(), OUTPUTS)
    v, w, previous = (rng.normal(size=task.layout.size) for _ in range(3))
    update = MoonUpdate(contrastive_mu=mu, temperature=tau)
    down = {"params": torch.from_numpy(w)}
    state = {"previous": torch.from_numpy(previous), "seen": torch.tensor(1.0)}
    batch = MiniBatches(
        torch.from_numpy(x)[None], torch.from_numpy(y)[None], torch.full((1, 6), 1 / 6, dtype=torch.float64)
    )
    gradient = GRADIENTS[engine](task, torch.zeros(0))
    got = update.stochastic_gradient(gradient, down, state, torch.from_numpy(v), batch)
    wanted = stochastic_gradient(v, w, previous, x, y, mu, tau)
    assert lab.relative(got, torch.from_numpy(wanted)) <= 1e-13
    assert lab.relative(got, torch.from_numpy(stochastic_gradient(v, w, previous, x, y, 0.0, tau))) > 0.05
    assert gradient.loss is not None
    assert float(gradient.loss) == pytest.approx(local_loss(v, w, previous, x, y, 0.0, tau), rel=1e-13)


def test_rounds_are_a_handwritten_numpy_loop(lab: Any, engine: str) -> None:
    """Rounds equal a NumPy loop in which a client's previous model is that of its last round.

    Half of the clients take part in each round, with three local steps.
    """
    mu, tau, rate = 5.0, 0.5, 0.3
    keys = {
        "contrastive-mu": mu,
        "temperature": tau,
        "learning-rate": rate,
        "local-steps": 3,
        "batch-size": "full",
    }
    module = lambda: lab.fill(two_layers())  # noqa: E731
    federation = lab.make(lab.Case("moon", keys).build(), engine, module=module, fraction=0.5)
    model = federation.strategy.start_from(federation.initial)
    w = federation.task.initial_params().numpy()
    clients = [[part.numpy() for part in federation.data.client(i)] for i in range(len(lab.SIZES))]
    own: dict[int, np.ndarray] = {}
    again = 0
    for server_round in range(1, 7):
        requests = federation.strategy.configure_train(server_round, model, {}, federation.grid)
        there = [federation.grid.client_of(node) for node in requests.node_ids]
        model, _ = federation.strategy.aggregate_train(
            server_round, federation.grid.send_and_receive(requests)
        )
        again += sum(i in own for i in there)
        for i in there:
            v, previous = w, own.get(i, w)
            for _ in range(3):
                v = v - rate * stochastic_gradient(v, w, previous, *clients[i], mu, tau)
            own[i] = v
        sizes = np.array([len(clients[i][1]) for i in there])
        w = sizes @ np.array([own[i] for i in there]) / sizes.sum()
        assert lab.relative(torch.from_numpy(model["params"].numpy()), torch.from_numpy(w)) <= 1e-12
    assert again > 3
    for i, v in own.items():
        assert lab.relative(federation.grid.state(i)["previous"], torch.from_numpy(v)) <= 1e-12


@pytest.mark.parametrize("batchnorm", [False, True])
def test_several_mini_batches_and_padding(lab: Any, batchnorm: bool) -> None:
    """Both gradients agree on the mean over mini-batches of unequal sizes, one of them absent."""
    middle = [nn.BatchNorm1d(6)] if batchnorm else []
    module = lab.fill(nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)))
    task = supervised(module.double(), 3)
    generator = torch.Generator().manual_seed(0)
    v, w, previous = torch.randn(3, task.layout.size, generator=generator, dtype=torch.float64)
    x, y = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64), torch.arange(15).reshape(3, 5) % 3
    weight = torch.zeros(3, 5, dtype=torch.float64)
    weight[0, :5], weight[1, :2] = 1 / 10, 1 / 4
    x[1, 2:] = torch.nan
    extra = FeatureLoss((w, previous), MoonUpdate(temperature=0.1).contrast)
    got = {}
    for name, kind in GRADIENTS.items():
        gradient = kind(task, task.initial_buffers())
        got[name] = (*gradient(v, MiniBatches(x.nan_to_num(7.0), y, weight), extra), gradient.buffers_Q)
    for loop, stacked in zip(got["loop"], got["vmap"], strict=True):
        torch.testing.assert_close(stacked, loop, rtol=1e-12, atol=1e-14)
    plain = AutogradGradient(task, task.initial_buffers())
    loss, gradient_P = plain(v, MiniBatches(x.nan_to_num(7.0), y, weight))
    # The contrastive loss changes the gradient, but not the reported loss or the running statistics.
    assert torch.equal(loss, got["loop"][0])
    assert torch.equal(plain.buffers_Q, got["loop"][2])
    assert lab.relative(got["loop"][1], gradient_P) > 0.01


# --------------------------------------------------------------------------------------------- identities


def noisy(lab: Any) -> Callable[[], nn.Module]:
    return lambda: lab.fill(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)))


def test_without_the_contrastive_loss_it_is_fedavg(lab: Any, engine: str) -> None:
    """Without the contrastive loss MOON equals FedAvg bit for bit, also with dropout."""
    moon, fedavg = (
        lab.make(lab.Case(name, keys).build(), engine, module=noisy(lab), fraction=0.5).run(5).params
        for name, keys in (("moon", {"contrastive-mu": 0.0}), ("fedavg", {}))
    )
    assert torch.equal(moon, fedavg)


def test_the_first_round_is_fedavgs(lab: Any, engine: str) -> None:
    """The first round equals FedAvg's because ``z_prev = z_glob``; the second does not.

    The loop engine gives the same bits. The stacked engine multiplies the previous models separately and is
    equal to rounding.
    """
    keys = {"local-steps": 3, "momentum": 0.9}
    moon, fedavg = (
        [
            finished.arrays["params"].numpy()
            for finished in lab.make(lab.Case(name, more).build(), engine).rounds(2)
        ]
        for name, more in (("moon", {**keys, "contrastive-mu": 10.0}), ("fedavg", keys))
    )
    assert np.abs(moon[0] - fedavg[0]).max() <= (0 if engine == "loop" else 1e-14)
    assert np.abs(moon[1] - fedavg[1]).max() > 1e-4


def test_a_model_of_one_layer_has_features_that_cannot_be_learnt(lab: Any, engine: str) -> None:
    """A single layer's features are its input, so MOON equals FedAvg.

    The stacked engine writes FedAvg's gradients out and is equal to rounding.
    """
    module = lambda: lab.fill(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))  # noqa: E731
    moon, fedavg = (
        lab.make(lab.Case(name, keys).build(), engine, module=module).run(3).params
        for name, keys in (("moon", {"contrastive-mu": 10.0}), ("fedavg", {}))
    )
    assert lab.relative(moon, fedavg) <= (1e-14 if engine == "vmap" else 0)


def test_anchors_are_seen_without_dropout(lab: Any) -> None:
    task = supervised(noisy(lab)().double(), 3)
    x, ones = torch.ones(2, 4, dtype=torch.float64), torch.ones(2)
    features = task.features(task.initial_params(), task.initial_buffers(), x, ones)
    first = task.module[0]
    assert torch.equal(features, torch.tanh(first(x)))


def test_features_of_zero_have_a_finite_gradient() -> None:
    """Features of zero, as from inactive ReLUs, have cosine 0 and no division by a norm of 0."""
    z = torch.zeros(1, 3, requires_grad=True)
    value = cosine(z, torch.tensor([[3.0, 0.0, 4.0]]))
    value.sum().backward()
    assert value.tolist() == [0]
    torch.testing.assert_close(z.grad, torch.tensor([[0.6, 0.0, 0.8]]))


# ----------------------------------------------------------------------------------------------- features


class Functional(nn.Module):
    """A network whose output layer is not called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x), self.head.weight, self.head.bias)


class Backwards(nn.Module):
    """A network that defines its output layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Functional(), r"is head \(Linear\) by definition and body \(Linear\) by call; let a model define"),
        (Backwards(), r"is body \(Linear\) by definition and head \(Linear\) by call; let a model define"),
        (nn.Flatten(), "is none by definition and none by call; let a model define"),
    ],
    ids=["functional", "backwards", "none"],
)
def test_a_model_without_features_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_features(module, lambda: module(torch.ones(5, 4)))
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_run_refuses_it_before_it_starts(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headless_model.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__()\n"
        "        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, num_outputs)\n"
        "    def forward(self, x):\n"
        "        return nn.functional.linear(self.body(x.flatten(1)), self.head.weight)\n"
        "def build(shape, num_outputs):\n"
        "    return Net(num_outputs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"algorithm": "moon", "model": "headless_model:build", "engine": engine, "num-server-rounds": 1}
    with pytest.raises(ValueError, match="no features: the last layer with parameters is head"):
        fedpisa.run(config)
    assert fedpisa.run({**config, "algorithm": "fedavg"}).status == "finished"


def test_it_learns_the_digits() -> None:
    """MOON learns the digits with a large contrastive weight, and its model differs from FedAvg's."""
    config = {
        "model": "mlp", "widths": [32], "num-clients": 5, "num-server-rounds": 12, "eval-every": 12,
        "local-epochs": 2, "learning-rate": 0.3,
    }  # fmt: skip
    moon, fedavg = (
        fedpisa.run({**config, "algorithm": name, **keys})
        for name, keys in (("moon", {"contrastive-mu": 5.0}), ("fedavg", {}))
    )
    assert moon.history["test_accuracy"].iloc[-1] > 0.85
    assert any(not np.allclose(moon.parameters[name], fedavg.parameters[name]) for name in moon.parameters)
