"""Random crops and flips: their distribution, closed forms, and equality in all engines."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

import fedpisa
from fedpisa.rng import mix, step_keys
from fedpisa.tasks.augment import CropFlip
from fedpisa.tasks.keyed import below, sample_keys


def keys(count: int) -> torch.Tensor:
    return torch.from_numpy(step_keys(0, np.arange(count), 1, 1)[:, 0])


@settings(deadline=None, max_examples=50)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_the_keys_are_those_of_the_numpy_streams(key: int, counter: int) -> None:
    from fedpisa.rng import hashed

    wanted = hashed(key % 2**64, np.array(counter, np.int64)).view(np.int64)
    # `hashed` finalises its key only together with a counter.
    assert int(mix(torch.tensor(key), torch.tensor(counter))) == int(wanted)


@pytest.mark.parametrize("end", [2, 9, 17])
def test_draws_are_uniform_and_independent(end: int) -> None:
    drawn = below(keys(20_000), 0, (end, end))
    both = np.bincount((drawn[:, 0] * end + drawn[:, 1]).numpy(), minlength=end * end)
    expected = 20_000 / end**2
    chi_squared, freedom = ((both - expected) ** 2 / expected).sum(), end**2 - 1
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5
    # Neither neighbouring samples nor other draws of the same key are related.
    samples = sample_keys(keys(100), 2, 100).flatten()
    first, second = (below(samples, number, (1000,))[:, 0].double() for number in (0, 1))
    for one, other in ((first[:-1], first[1:]), (first, second)):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / len(one) ** 0.5


def test_stacked_keys_are_those_of_one_client() -> None:
    some = keys(5)
    stacked = vmap(lambda key: sample_keys(key, 2, 7))(some)
    assert torch.equal(stacked, sample_keys(some, 2, 7))
    assert torch.equal(stacked[3], sample_keys(some[3], 2, 7))


def test_a_crop_and_a_flip_by_hand() -> None:
    image = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    moved = CropFlip(1).moved(
        image.expand(4, 1, 2, 3), *torch.tensor([[1, 1, 0], [1, 1, 1], [0, 2, 0], [2, 0, 1]]).T
    )
    assert moved[:, 0].tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[3, 2, 1], [6, 5, 4]],
        [[0, 0, 0], [2, 3, 0]],
        [[5, 4, 0], [0, 0, 0]],
    ]


def test_every_crop_and_flip_occurs_and_channels_move_together() -> None:
    image = torch.arange(1.0, 19.0).view(1, 1, 2, 3, 3).expand(1, 600, 2, 3, 3)
    out = CropFlip(1)(image, keys(1)[0])
    padded = torch.nn.functional.pad(image[0, 0], (1, 1, 1, 1))
    wanted = set()
    for down, right, flip in itertools.product(range(3), range(3), range(2)):
        crop = padded[:, down : down + 3, right : right + 3]
        wanted.add(tuple((crop.flip(-1) if flip else crop).flatten().tolist()))
    assert {tuple(one.flatten().tolist()) for one in out[0]} == wanted
    assert len(wanted) == 18


def convolutional(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, num_outputs))


KEYS = {
    "dataset": "digits",
    "num-clients": 4,
    "num-server-rounds": 5,
    "dtype": "float64",
    "augment": "crop-flip",
}
RUNS: list[dict[str, Any]] = [
    {"algorithm": "sisa", "model": "mlp", "batches-per-round": 3},
    {"algorithm": "fedavg", "model": "mlp", "local-steps": 3},
    {"algorithm": "fedavg", "model": "logistic", "local-epochs": 1, "momentum": 0.9},
    {"algorithm": "scaffold", "model": f"{__name__}:convolutional", "local-steps": 2},
    {"algorithm": "fedsgd", "model": "logistic", "micro-batch-size": 5},
]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_engines_agree(run: dict[str, Any]) -> None:
    loop, vmap_ = (
        fedpisa.run({**KEYS, **run, "crop-padding": 2, "engine": engine}) for engine in ("loop", "vmap")
    )
    plain = fedpisa.run({**KEYS, **run, "augment": "none"})
    for name, wanted in loop.parameters.items():
        np.testing.assert_allclose(vmap_.parameters[name], wanted, rtol=1e-11, atol=1e-13)
    assert any(not np.allclose(plain.parameters[name], wanted) for name, wanted in loop.parameters.items())
    # The initial model is evaluated on the images as they are.
    assert loop.history["test_loss"][0] == plain.history["test_loss"][0]


def test_no_border_leaves_flips_alone() -> None:
    x = torch.randn(1, 50, 1, 4, 4)
    out = CropFlip(0)(x, keys(1)[0])
    same = (out == x).flatten(2).all(-1)
    assert ((out == x.flip(-1)).flatten(2).all(-1) | same).all()
    assert 10 < int(same.sum()) < 40


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="needs images"):
        fedpisa.run({"dataset": "synthetic", "augment": "crop-flip"})
