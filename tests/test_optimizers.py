"""Optimizers by name are torch's own, to the last bit."""

from __future__ import annotations

import inspect

import pytest
import torch

from fedpisa.components import available, build, find, resolve
from fedpisa.strategies.optimizers import LEFT_OUT, Optimizer, without_tensors

NAMES = sorted(available("optimizer"))


def class_of(name: str) -> type[torch.optim.Optimizer]:
    return next(
        value for key, value in vars(torch.optim).items() if key.lower() == name and isinstance(value, type)
    )


def trajectory(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    """Return the weights on five steps down a tilted quadratic."""
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


@pytest.mark.parametrize("name", NAMES)
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
    keys = {key.name: key for key in available("optimizer")["sgd"].keys}
    assert list(keys) == ["learning-rate", "momentum", "dampening", "weight-decay", "nesterov"]
    assert keys["momentum"].annotation is float
    assert keys["nesterov"].annotation is bool
    assert keys["momentum"].default == 0.0
    assert "momentum" in keys["momentum"].doc


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lbfgs", {}, "no optimizer 'lbfgs': it evaluates the loss several times"),
        ("adm", {}, "no optimizer 'adm'; did you mean 'adam'?"),
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
