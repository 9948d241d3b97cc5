"""Optimizers by name equal torch's and pytorch_optimizer's bit for bit, also across rounds."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fedpisa.families import available, build, find, keys_of, resolve
from fedpisa.families.optimizers import without_tensors
from fedpisa.strategies import optimizer
from fedpisa.strategies.base import Cohort
from fedpisa.strategies.fedsgd import FedSGD
from fedpisa.strategies.optimizer import EXTRA, LEFT_OUT, Optimizer
from fedpisa.tasks.layout import ParamLayout

ALL = sorted(available("optimizer"))
NAMES = [name for name in ALL if find("optimizer", name).summary.startswith("torch.")]
INSTALLED = importlib.util.find_spec("pytorch_optimizer") is not None
needs_extra = pytest.mark.skipif(
    not INSTALLED, reason="pytorch_optimizer is not installed: the extra 'optimizers'"
)


def class_of(name: str) -> type[torch.optim.Optimizer]:
    return next(
        value for key, value in vars(torch.optim).items() if key.lower() == name and isinstance(value, type)
    )


def trajectory(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    """Return the weights after each of five steps on a tilted quadratic."""
    scale = torch.tensor([[1.0, 4.0], [0.5, 2.0]])
    points = []
    for _ in range(5):
        optimizer.zero_grad()
        (0.5 * (scale * (weight - 1) ** 2).sum()).backward()
        optimizer.step()
        points.append(weight.detach().clone())
    return torch.stack(points)


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([[3.0, -2.0], [0.5, 1.5]]))


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_torchs(name: str) -> None:
    ours, theirs = start(), start()
    optimizer = build(find("optimizer", name)).create([ours])
    assert type(optimizer) is class_of(name)
    assert torch.equal(trajectory(optimizer, ours), trajectory(class_of(name)([theirs]), theirs))


@pytest.mark.parametrize(
    ("name", "keys", "options"),
    [
        (
            "sgd",
            {"learning-rate": 0.1, "momentum": 0.9, "nesterov": True},
            {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        ),
        ("adam", {"betas": [0.8, 0.99], "amsgrad": True}, {"betas": (0.8, 0.99), "amsgrad": True}),
        ("adamw", {"weight-decay": 1}, {"weight_decay": 1.0}),
        ("rmsprop", {"alpha": 0.5, "centered": True}, {"alpha": 0.5, "centered": True}),
        ("adafactor", {"beta2-decay": -0.5}, {"beta2_decay": -0.5}),
    ],
)
def test_keys_are_torchs_options(name: str, keys: dict[str, object], options: dict[str, object]) -> None:
    ours, theirs = start(), start()
    optimizer = build(find("optimizer", name), keys).create([ours])
    assert torch.equal(trajectory(optimizer, ours), trajectory(class_of(name)([theirs], **options), theirs))


@pytest.mark.parametrize("name", ALL)
def test_resolved_values_build_the_same_optimizer(name: str) -> None:
    component = find("optimizer", name)
    assert build(component, resolve(component)) == build(component)


def test_every_optimizer_of_torch_is_there_or_left_out_with_a_reason() -> None:
    classes = {
        key.lower()
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    assert classes == {*NAMES, *(name.replace("-", "") for name in LEFT_OUT)}
    assert {"sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "adamax", "asgd"} <= {
        *NAMES
    }


def test_only_what_changes_the_steps_is_a_key() -> None:
    keys = {key.name: key for key in keys_of(available("optimizer")["sgd"]).values()}
    assert list(keys) == ["learning-rate", "momentum", "dampening", "weight-decay", "nesterov"]
    assert keys["momentum"].annotation is float
    assert keys["nesterov"].annotation is bool
    assert keys["momentum"].default == 0.0
    assert "momentum" in keys["momentum"].doc


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lbfgs", {}, "no optimizer 'lbfgs': it evaluates the loss several times"),
        ("adm", {}, "no optimizer 'adm'; did you mean 'adam', 'radam' or 'nadam'?"),
        ("adam", {"betas": (0.9, 1.5)}, "optimizer 'adam' refuses: Invalid beta parameter at index 1: 1.5"),
        ("sgd", {"nesterov": True}, "optimizer 'sgd' refuses: Nesterov momentum requires"),
        ("sgd", {"rate": 1.0}, "optimizer 'sgd' refuses: "),
    ],
)
def test_errors_are_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Optimizer(name, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_what_is_left_out_is_explained_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer '{name}' is left out: "):
        find("optimizer", name)


def test_equal_optimizers_have_equal_hashes() -> None:
    assert hash(Optimizer("sgd", {"lr": 0.5})) == hash(Optimizer("sgd", {"lr": 0.5}))


def test_annotations_lose_their_tensors() -> None:
    assert without_tensors(float | torch.Tensor) is float
    assert without_tensors(tuple[float | torch.Tensor, float] | None) == tuple[float, float] | None
    assert without_tensors(bool) is bool


# ------------------------------------------------------------------------------------- from round to round


def gradient(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of a tilted quartic, which has no accidental zeros."""
    return {
        name: torch.linspace(0.5, 2.0, value.numel()).reshape(value.shape) * (value - 1) + 0.1 * value**3
        for name, value in params.items()
    }


def model(shapes: Iterable[tuple[int, ...]]) -> dict[str, Tensor]:
    """Return weights whose names have dots."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


def rounds(algorithm: FedSGD, params: dict[str, Tensor], number: int) -> Iterator[dict[str, Tensor]]:
    """Yield the server's parameters after each round of one client; only tensors pass between rounds."""
    layout = ParamLayout.of(params.items())
    cohort = Cohort(torch.tensor([0]), torch.tensor([1.0], dtype=torch.float64), 1, 1, layout)
    server: Any = algorithm.init(layout.flatten(params), layout)
    for _ in range(number):
        g_P = layout.flatten(gradient(layout.unflatten(server["params"])))
        server = algorithm.step({k: v.clone() for k, v in server.items()}, {"gradient": g_P[None]}, cohort)
        assert all(isinstance(value, Tensor) for value in server.values())
        yield layout.unflatten(server["params"])


def by_hand(optimizer: torch.optim.Optimizer, bound: dict[str, torch.nn.Parameter]) -> None:
    for name, value in gradient({name: p.detach() for name, p in bound.items()}).items():
        bound[name].grad = value
    optimizer.step()


@pytest.mark.parametrize("name", ALL)
def test_rounds_are_steps_of_one_optimizer(name: str) -> None:
    """Twelve rounds, each with a rebuilt optimizer, equal twelve plain steps bit for bit."""
    shapes = [(4, 3), (3, 5)] if name == "muon" else [(4, 3), (4,), (3, 2, 2, 2)]
    params = model(shapes)
    optimizer = build(find("optimizer", name), {"learning-rate": 0.01})
    bound = {key: torch.nn.Parameter(value.clone()) for key, value in params.items()}
    plain = optimizer.create(bound)
    for after in rounds(FedSGD(optimizer=optimizer), params, 12):
        by_hand(plain, bound)
        for key, value in after.items():
            assert torch.equal(value, bound[key]), key
    assert any(not torch.equal(bound[key], params[key]) for key in params)
    assert all(bool(torch.isfinite(value).all()) for value in bound.values())


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", {"momentum": 0.9, "centered": True}),
        ("adam", {"amsgrad": True}),
        ("adafactor", {"beta2-decay": -0.5}),
    ],
)
def test_rounds_are_steps_with_options(name: str, keys: dict[str, object]) -> None:
    params = model([(4, 3), (4,)])
    optimizer = build(find("optimizer", name), keys)
    bound = {key: torch.nn.Parameter(value.clone()) for key, value in params.items()}
    plain = optimizer.create(bound)
    for after in rounds(FedSGD(optimizer=optimizer), params, 5):
        by_hand(plain, bound)
        assert all(torch.equal(value, bound[key]) for key, value in after.items())


def test_what_cannot_be_kept_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hoarder(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["things"] = {"a": object()}

    monkeypatch.setattr(optimizer, "optimizer_classes", lambda: {"hoarder": Hoarder})
    params = model([(2,)])
    layout = ParamLayout.of(params.items())
    with pytest.raises(
        ValueError, match=r"'hoarder' cannot train this model: its memory has a dict \(layer.0"
    ):
        FedSGD(optimizer=Optimizer("hoarder", {"lr": 0.1})).init(layout.flatten(params), layout)


# ---------------------------------------------------------------------------------------------- the extra


@needs_extra
def test_the_papers_optimizers_are_there() -> None:
    assert set(EXTRA) <= {*ALL}
    keys = {key.name: key for key in keys_of(find("optimizer", "lamb")).values()}
    assert {"learning-rate", "betas", "weight-decay", "eps"} <= keys.keys()
    assert not {"foreach", "maximize", "kwargs"} & keys.keys()
    assert keys["betas"].doc == "Decay rates for the first and second moments."


@needs_extra
def test_muon_leaves_vectors_to_adamw() -> None:
    weight, bias = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,)))
    groups = build(find("optimizer", "muon-adamw")).create([weight, bias]).param_groups
    assert [(group["use_muon"], len(group["params"])) for group in groups] == [(True, 1), (False, 1)]


def test_without_the_extra_its_names_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    torchs = {name: class_of(name) for name in NAMES}
    monkeypatch.setattr(optimizer, "optimizer_classes", lambda: torchs)
    monkeypatch.setattr("fedpisa.families.lookup._collected", lambda family: dict.fromkeys(NAMES))
    for attempt in (lambda: find("optimizer", "lamb"), lambda: Optimizer("lamb", {})):
        with pytest.raises(
            ValueError, match=r"no optimizer 'lamb': .* pip install 'fedpisa\[optimizers\]'"
        ) as caught:
            attempt()
        assert "\n" not in str(caught.value)
