"""Torchvision's classifiers of at most 30 million parameters train as in plain PyTorch, on every engine.

Six small models run by default. ``FEDPISA_ALL_MODELS=1`` runs all, and ``FEDPISA_MODEL_TABLE=FILE`` writes a
table.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.plain_fedavg import difference, initial, plain, settings, simulated

try:
    from torchvision import models
except (ImportError, RuntimeError, AttributeError) as error:
    pytest.skip(f"torchvision cannot be imported: {error}", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MOST = 30_000_000
SMALLEST = {
    "convnext_tiny": 32,
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), 64),
    "inception_v3": 107,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_t": 4,
    "swin_v2_t": 4,
}
"""Height and width of the smallest image that a model takes in training. For DenseNets and Inception it is the smallest
that leaves two pixels in the last block; see `OTHERS`."""
OTHERS = 33
"""Height and width for the others. They take a single pixel too, but then BatchNorm maps two samples to plus and minus
one, for any pixels, and the gradient is only rounding error."""
STEADY = 1e-5
"""How far plain PyTorch's result may move when the samples move by a rounding error."""
FAMILIES = {
    *(
        "mnasnet0_5",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        "resnet18",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ),
}


def names() -> list[Any]:
    found = []
    for name in models.list_models(module=models):
        if models.get_model_weights(name).DEFAULT.meta["num_params"] <= MOST:
            every = os.environ.get("FEDPISA_ALL_MODELS")
            skip = pytest.mark.skipif(not every and name not in FAMILIES, reason="set FEDPISA_ALL_MODELS=1")
            found.append(pytest.param(name, marks=skip))
    return found


@pytest.mark.parametrize("name", names())
def test_the_model_is_trained_as_in_plain_pytorch(name: str) -> None:
    size, builder = SMALLEST.get(name, OTHERS), "tests.contracts.plain_fedavg:from_torchvision"
    keys = settings(builder, (3, size, size), sizes="2 2") | {
        "torchvision-name": name,
        "num-server-rounds": 1,
    }
    wanted = plain(keys, copy.deepcopy)
    moved, _ = difference(plain(keys | {"moved": 1e-15}, copy.deepcopy), wanted)
    assert moved < STEADY
    count = sum(parameter.numel() for parameter in initial(keys).parameters())
    row, worst = f"| {name} | {count:,} | {size}", 0.0
    for engine in ("auto", "vmap", "loop"):
        outcome = simulated(keys, engine)
        row += f" | {outcome.path}"
        if outcome.path != "refused":
            error, tensor = difference(outcome, wanted)
            worst = max(worst, error)
            assert error < max(1e-9, 10 * moved), (
                f"{engine} ({outcome.path}): {tensor} differs by {error:.1e}"
            )
        assert engine != "loop" or outcome.path == "loop"
    if file := os.environ.get("FEDPISA_MODEL_TABLE"):
        with Path(file).open("a") as table:
            table.write(f"{row} | {worst:.1e} | {moved:.1e} |\n")


def test_the_chosen_models_exist() -> None:
    assert set(models.list_models(module=models)) >= FAMILIES | SMALLEST.keys()
