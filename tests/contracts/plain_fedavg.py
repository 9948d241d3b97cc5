"""A plain PyTorch FedAvg, the reference for any model that a configuration names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedpisa.clients.batches import Epochs
from fedpisa.config.run import RunConfig
from fedpisa.datasets import Dataset
from fedpisa.families import models
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.stacked.grid import UnstackableError

RATE, CLASSES, ROUNDS, STEPS, TESTS = 0.1, 3, 2, 2, 4
SIZES = "2 4 6"
Tensors = Mapping[str, Tensor]


def samples(of_shape: str, whole: bool = False, sizes: str = SIZES) -> Dataset:
    """Return random samples for all clients, integers if ``whole`` is true."""
    rng, n = np.random.default_rng(0), sum(numbers(sizes)) + TESTS
    shape = (n, *numbers(of_shape))
    x = rng.integers(0, 7, shape).astype(np.float64) if whole else rng.normal(size=shape)
    y = np.arange(n) % CLASSES
    return Dataset.of("random", (x[:-TESTS], y[:-TESTS]), (x[-TESTS:], y[-TESTS:]), num_classes=CLASSES)


def split(labels: Any, num_clients: int, sizes: str = SIZES) -> Any:
    """Return each client's rows. Clients own consecutive rows."""
    return [np.arange(a, b) for a, b in itertools.pairwise(np.cumsum([0, *numbers(sizes)]))]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


class Outcome(NamedTuple):
    """A run's path, model and test loss, or the reason of its refusal."""

    path: str
    reason: str = ""
    tensors: Tensors | None = None
    loss: float = 0.0


def settings(model: str, shape: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return the configuration of a model."""
    sizes = more.pop("sizes", SIZES)
    return {
        "algorithm": "fedavg",
        "dataset": "tests.contracts.plain_fedavg:samples",
        "partitioner": "tests.contracts.plain_fedavg:split",
        "of-shape": " ".join(map(str, shape)),
        "sizes": sizes,
        "whole": False,
        "num-clients": len(numbers(sizes)),
        "model": model,
        "dtype": "float64",
        "device": "cpu",
        "batch-size": "full",
        "local-steps": STEPS,
        "learning-rate": RATE,
        "num-server-rounds": ROUNDS,
        **more,
    }


def simulated(keys: Mapping[str, Any], engine: str) -> Outcome:
    """Run the configuration with the package and return the outcome."""
    try:
        simulation = Simulation(RunConfig.from_mapping({**keys, "engine": engine}))
    except UnstackableError as error:
        if engine != "vmap":
            raise
        return Outcome("refused", str(error))
    rows = list(simulation.rows())
    info: Any = simulation.grid.info  # type: ignore[attr-defined]
    tensors = {name: torch.from_numpy(value) for name, value in simulation.parameters().items()}
    return Outcome(info["path"], info.get("path_reason", ""), tensors, rows[-1]["test_loss"])


def initial(keys: Mapping[str, Any]) -> nn.Module:
    """Return the model with its initial weights."""
    options = {key.replace("-", "_"): keys[key] for key in ("torchvision-name", "kind") if key in keys}
    return models.build(keys["model"], tuple(numbers(keys["of-shape"])), CLASSES, 0, **options).double()


def plain(keys: Mapping[str, Any], copied: Callable[[nn.Module], nn.Module] | None = None) -> Outcome:
    """Run FedAvg in plain PyTorch, with one module and one `torch.optim.SGD` per client.

    Some modules cannot be copied. By default each client's module is therefore built anew and loads the
    global model's tensors.
    """
    model, sizes = initial(keys), numbers(keys["sizes"])
    data = samples(keys["of-shape"], keys["whole"], keys["sizes"])
    parts = split(None, len(sizes), keys["sizes"])
    x, y = torch.from_numpy(data.x_train * (1 + keys.get("moved", 0.0))), torch.from_numpy(data.y_train)
    for server_round in range(1, keys["num-server-rounds"] + 1):
        trained = []
        for number, part in enumerate(parts):
            client = (copied(model) if copied else rebuilt(model, keys)).train()
            # Each step uses all samples in an order that the seed decides; a module may depend on the order.
            orders = Epochs("full", local_steps=STEPS).draw(
                np.array([len(part)]), np.array([number]), server_round, 0
            )
            optimizer = torch.optim.SGD([p for p in client.parameters() if p.requires_grad], lr=RATE)
            for order in orders.index_SKCB[0, :, 0]:
                rows = torch.from_numpy(part[order])
                optimizer.zero_grad()
                F.cross_entropy(client(x[rows]), y[rows]).backward()
                optimizer.step()
            trained.append(tensors_of(client))
        average(tensors_of(model), trained, [size / sum(sizes) for size in sizes])
    tensors = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(data.x_test))
        loss = F.cross_entropy(outputs, torch.from_numpy(data.y_test))
    return Outcome("plain", "", tensors, float(loss))


def rebuilt(model: nn.Module, keys: Mapping[str, Any]) -> nn.Module:
    """Return a new module with the tensors of ``model``."""
    client = initial(keys)
    with torch.no_grad():
        for name, tensor in tensors_of(client).items():
            tensor.copy_(tensors_of(model)[name])
    return client


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def average(into: Tensors, clients: list[dict[str, Tensor]], weights: list[float]) -> None:
    """Average by samples. Integers and booleans, such as counters, take the maximum."""
    with torch.no_grad():
        for name, tensor in into.items():
            values = [client[name] for client in clients]
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.copy_(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            else:
                tensor.copy_(torch.stack(values).amax(0))


def difference(got: Outcome, wanted: Outcome) -> tuple[float, str]:
    """Return the largest relative difference of a tensor or the loss, and its name.

    A tensor's difference is relative to its largest entry.
    """
    assert got.tensors is not None
    assert wanted.tensors is not None
    assert got.tensors.keys() == wanted.tensors.keys()
    found = [(abs(got.loss - wanted.loss) / max(abs(wanted.loss), 1e-30), "test loss")]
    for name, value in wanted.tensors.items():
        assert got.tensors[name].dtype == value.dtype, name
        if value.numel():
            exact = value.to(torch.complex128 if value.is_complex() else torch.float64)
            error = (got.tensors[name].to(exact.dtype) - exact).abs().max()
            found.append((float(error / exact.abs().max().clamp(min=1e-6)), name))
    return max(found, key=lambda pair: pair[0] if pair[0] == pair[0] else float("inf"))


def from_torchvision(num_outputs: int, shape: tuple[int, ...], torchvision_name: str) -> nn.Module:
    """Return a torchvision model without dropout."""
    model = models.build(torchvision_name, shape, num_outputs, 0)
    for layer in model.modules():
        if isinstance(getattr(layer, "p", None), float):
            layer.p = 0.0
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return model
