"""Models: sizes by hand, shapes, initial weights, and the errors for unsuitable data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedpisa
from fedpisa import families
from fedpisa.families import models, torchvision_models
from fedpisa.models.cifar import cifar_densenet121, cifar_resnet34, cifar_vgg11
from fedpisa.models.cnn import leaf_cnn, simple_cnn
from fedpisa.models.linear import linear, logistic
from fedpisa.models.mlp import mlp, tabular_mlp

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int = 5) -> int:
    return inputs * outputs * kernel**2 + outputs


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (linear((7,), 1), 7),
        (linear((7,), 1, bias=True), 8),
        (logistic((8, 8), 10), dense(64, 10)),
        (logistic((123,), 2), dense(123, 1)),
        (logistic((123,), 2, bias=False), 123),
        (mlp(GREY, 10), dense(784, 200) + dense(200, 200) + dense(200, 10)),
        (mlp((5,), 3, widths=()), dense(5, 3)),
        (tabular_mlp((123,), 2), dense(123, 32) + dense(32, 16) + dense(16, 8) + dense(8, 2)),
        # 28 -> conv 24 -> pool 12 -> conv 8 -> pool 4
        (
            simple_cnn(GREY, 10),
            conv(1, 6) + conv(6, 16) + dense(16 * 4 * 4, 120) + dense(120, 84) + dense(84, 10),
        ),
        # 32 -> conv 28 -> pool 14 -> conv 10 -> pool 5
        (
            simple_cnn(COLOUR, 10),
            conv(3, 6) + conv(6, 16) + dense(16 * 5 * 5, 120) + dense(120, 84) + dense(84, 10),
        ),
        (leaf_cnn(GREY, 10), 1_663_370),  # the number that McMahan et al. give
        (leaf_cnn(COLOUR, 10), conv(3, 32) + conv(32, 64) + dense(64 * 8 * 8, 512) + dense(512, 10)),
    ],
)
def test_parameter_counts(model: nn.Module, expected: int) -> None:
    assert size(model) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [(cifar_resnet34, 21_282_122), (cifar_vgg11, 9_750_922), (cifar_densenet121, 6_956_298)],
)
def test_the_networks_for_cifar_have_the_sizes_of_the_literature(model: Any, expected: int) -> None:
    with torch.device("meta"):
        network = model(COLOUR, 10)
    assert size(network) == expected
    assert network(torch.zeros(2, *COLOUR, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "side"), [("cifar-resnet34", 8), ("cifar-densenet121", 8), ("cifar-vgg11", 32)]
)
def test_the_networks_for_cifar_train_stacked(name: str, side: int, tmp_path: Path) -> None:
    """One step of two clients is the same on both engines."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(10, 3, side, side)), y=np.arange(10) % 2)
    keys = {"dataset": "file", "data-file": str(tmp_path / "data.npz"), "test-fraction": 0.2, "model": name}
    keys |= {"algorithm": "fedsgd", "num-clients": 2, "num-server-rounds": 1, "partitioner": "iid"}
    loop, stacked = (fedpisa.run({**keys, "engine": engine}).parameters for engine in ("loop", "vmap"))
    for key, value in loop.items():
        assert np.abs(stacked[key] - value).max() <= 1e-5 * max(np.abs(value).max(), 1)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32), (1, 17, 23), (4, 28, 32)])
@pytest.mark.parametrize("name", ["simple-cnn", "leaf-cnn", "mlp", "logistic"])
@pytest.mark.parametrize("num_outputs", [2, 10])
def test_a_batch_gives_one_row_of_outputs_per_sample(
    name: str, shape: tuple[int, ...], num_outputs: int
) -> None:
    model = models.build(name, shape, num_outputs, seed=0)
    width = 1 if (name, num_outputs) == ("logistic", 2) else num_outputs
    assert model(torch.randn(3, *shape)).shape == (3, width)


# --------------------------------------------------------------------------------- initial weights


@pytest.mark.parametrize("name", ["linear", "logistic"])
def test_convex_models_start_at_zero(name: str) -> None:
    model = models.build(name, (4,), 5, seed=3, bias=True)
    assert all(bool((parameter == 0).all()) for parameter in model.parameters())
    loss = nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.arange(6) % 5)
    assert loss.item() == pytest.approx(math.log(5))


def test_tabular_mlp_starts_as_in_niid_bench() -> None:
    model = models.build("tabular-mlp", (123,), 2, seed=0)
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    assert first.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert bool((first.bias == 0.1).all())


def weights(seed: int, name: str = "mlp") -> torch.Tensor:
    return nn.utils.parameters_to_vector(models.build(name, (1, 16, 16), 10, seed).parameters())


@pytest.mark.parametrize("name", ["mlp", "simple-cnn", "resnet18"])
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(1)
    first = weights(0, name)
    torch.manual_seed(2)
    assert torch.equal(weights(0, name), first)
    assert not torch.equal(weights(1, name), first)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights(0)
    assert torch.equal(torch.rand(3), expected)


def test_weights_are_float32_whatever_the_default_dtype_of_the_data() -> None:
    assert weights(0).dtype == torch.float32


def test_the_model_is_in_training_mode_with_untouched_statistics() -> None:
    model = models.build("resnet18", (3, 32, 32), 10, seed=0)
    assert all(module.training for module in model.modules())
    buffers = dict(model.named_buffers())
    assert buffers["bn1.num_batches_tracked"] == 0
    assert bool((buffers["bn1.running_mean"] == 0).all())


# ------------------------------------------------------------------------------------- torchvision


def test_a_torchvision_model_by_name() -> None:
    # He et al. give 11.7 million for 1000 classes; the last layer here has 10.
    model = models.build("resnet18", (3, 32, 32), 10, seed=0)
    assert size(model) == 11_689_512 - dense(512, 1000) + dense(512, 10)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet-v3-small", "squeezenet1_1"])
def test_dashes_do_for_underscores(name: str) -> None:
    assert models.build(name, (3, 64, 64), 7, seed=0).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_a_grey_image_is_seen_as_one_in_three_channels() -> None:
    grey = models.build("resnet18", (1, 32, 32), 10, seed=0).eval()
    colour = models.build("resnet18", (3, 32, 32), 10, seed=0).eval()
    assert next(grey.parameters()).shape == (64, 1, 7, 7)
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)))


def test_a_torchvision_that_does_not_match_torch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def broken(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(
        ValueError, match=r"nms does not exist\): install torch and torchvision together"
    ) as caught:
        torchvision_models.find("resnet18", ["mlp"])
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("name", "shape", "num_outputs", "message"),
    [
        ("simple-cnn", (1, 8, 8), 10, "needs images of at least 16x16, not 8x8"),
        ("leaf-cnn", (1, 3, 9), 10, "needs images of at least 4x4, not 3x9"),
        ("cifar-vgg11", (3, 28, 32), 10, "needs images of at least 32x32, not 28x32"),
        ("cifar-resnet34", (64,), 10, "needs images (channels, height, width), and a sample has shape (64,)"),
        ("simple-cnn", (64,), 10, "needs images (channels, height, width), and a sample has shape (64,)"),
        ("resnet18", (64,), 10, "needs images of shape (1 or 3, height, width)"),
        ("resnet18", (2, 32, 32), 10, "needs images of shape (1 or 3, height, width)"),
        ("alexnet", (3, 16, 16), 10, "model 'alexnet' cannot take a sample of shape (3, 16, 16) ("),
        ("logistic", (4,), 1, "needs at least 2 classes, not 1"),
        ("logstic", (4,), 3, "unknown model 'logstic'; did you mean 'logistic'?"),
        ("resnet1", (3, 32, 32), 3, "unknown model 'resnet1'; did you mean 'resnet18', "),
    ],
)
def test_models_that_do_not_fit_are_explained(
    name: str, shape: tuple[int, ...], num_outputs: int, message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        models.build(name, shape, num_outputs, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


USER_CODE = """
import torch
from torch import nn

def good(shape, num_outputs, *, width: int = 4):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], width), nn.Linear(width, num_outputs))

def wide(shape, num_outputs):
    return nn.Linear(shape[0], num_outputs + 1)

def no_model(shape, num_outputs):
    return 3

class Net(nn.Module):
    def __init__(self, num_outputs: int):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x)

class Pair(Net):
    def forward(self, x):
        return self.layer(x), x
"""


@pytest.fixture
def _user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_fedpisa_models.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_user_module")
def test_a_users_model() -> None:
    model = models.build("my_fedpisa_models:good", (6,), 3, seed=0, width=5)
    assert size(model) == dense(6, 5) + dense(5, 3)
    again = models.build("my_fedpisa_models:good", (6,), 3, seed=0, width=5)
    assert torch.equal(
        nn.utils.parameters_to_vector(model.parameters()), nn.utils.parameters_to_vector(again.parameters())
    )
    assert size(models.build("my_fedpisa_models:Net", (6,), 2, seed=0)) == 7  # one logit for two classes


@pytest.mark.usefixtures("_user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide", "gives (2, 4) for two samples, and the labels need (2, 3): give its last layer 3 outputs"),
        ("Net", "gives (2, 1) for two samples, and the labels need (2, 3)"),
        ("Pair", "gives tuple for two samples"),
        ("no_model", "gave an object of type int: it must give a torch.nn.Module"),
    ],
)
def test_a_users_model_that_does_not_fit_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        models.build(f"my_fedpisa_models:{name}", (6,), 3, seed=0)
    assert message in str(caught.value)


def test_every_model_is_found_by_name() -> None:
    assert set(families.available("model")) >= {
        "linear",
        "logistic",
        "mlp",
        "tabular-mlp",
        "simple-cnn",
        "leaf-cnn",
        "cifar-resnet34",
        "cifar-vgg11",
        "cifar-densenet121",
    }
