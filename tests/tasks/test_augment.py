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
from fedpisa.tasks.augment import CropFlip, ResizedCropFlip, resized_boxes
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


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop-flip"])
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_engines_agree(run: dict[str, Any], augment: str) -> None:
    run = {**run, "augment": augment}
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


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop-flip"])
def test_what_is_no_image_is_refused(augment: str) -> None:
    with pytest.raises(ValueError, match=f"augment = '{augment}' needs images"):
        fedpisa.run({"dataset": "synthetic", "augment": augment})


# --------------------------------------------------------------------------------------- resized crops


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1.5e-6)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14), (224, 224)])
def test_boxes_are_those_of_torchvision(
    height: int, width: int, kind: torch.dtype, tolerance: float, antialias: bool
) -> None:
    """A box is enlarged, so that antialiasing changes nothing; noise is the image whose pixels differ most.

    Places are rounded to the dtype in units of the image, thus to some 1e-7 of its length in float32.
    """
    from torchvision.transforms import functional

    count = 40 if height < 100 else 4
    x = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=kind)
    box_M4, flip_M = ResizedCropFlip().boxes(keys(count), height, width)
    found = resized_boxes(x, box_M4, flip_M)
    assert set(flip_M.tolist()) == {0, 1}
    for image, box, flip, one in zip(x, box_M4.tolist(), flip_M.tolist(), found, strict=True):
        wanted = functional.resized_crop(image, *box, [height, width], antialias=antialias)
        torch.testing.assert_close(one, wanted.flip(-1) if flip else wanted, rtol=0, atol=tolerance * width)


def test_the_whole_image_as_a_box_is_the_image() -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    box_M4 = torch.tensor([[0, 0, 5, 7]]).expand(2, 4)
    found = resized_boxes(x, box_M4, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.stack([x[0], x[1].flip(-1)]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (40, 90)])
def test_boxes_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    """The means and deviations of sides, places, shares and ratios are those of torchvision's draws."""
    from torchvision.transforms import RandomResizedCrop

    count = 4000
    box_M4, flip_M = ResizedCropFlip().boxes(keys(count), height, width)
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [
            RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            for _ in range(count)  # top, left, height, width
        ]
    assert abs(float(flip_M.double().mean()) - 0.5) < 5 * 0.5 / count**0.5
    for powers in (1, 2):
        mine, theirs = (_columns(box).pow(powers) for box in (box_M4, torch.tensor(drawn)))
        error = (mine.var(0) / count + theirs.var(0) / count).sqrt()
        assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * error).all()


def _columns(box_M4: torch.Tensor) -> torch.Tensor:
    box = box_M4.double()
    return torch.cat([box, box[:, 2:3] * box[:, 3:], box[:, 3:] / box[:, 2:3]], 1)


@pytest.mark.parametrize(("height", "width"), [(1, 30), (30, 1), (16, 16)])
def test_boxes_lie_in_the_image_and_fit_their_ratio(height: int, width: int) -> None:
    """If no box fits, the largest one in the middle is taken, as torchvision does."""
    box_M4, _ = ResizedCropFlip().boxes(keys(500), height, width)
    assert (box_M4[:, 2:] >= 1).all()
    assert (box_M4[:, :2] >= 0).all()
    assert (box_M4[:, :2] + box_M4[:, 2:] <= torch.tensor([height, width])).all()
    none_fits = ResizedCropFlip(scale=(4.0, 5.0)).boxes(keys(3), height, width)[0]
    wanted = {(1, 30): [0, 14, 1, 1], (30, 1): [14, 0, 1, 1], (16, 16): [0, 0, 16, 16]}[height, width]
    assert none_fits.tolist() == [wanted] * 3


def test_stacked_boxes_are_those_of_one_client() -> None:
    """The same bits alone, stacked by vmap, and stacked by hand."""
    augment, some = ResizedCropFlip(), keys(5)
    x = torch.randn(5, 2, 3, 1, 8, 8)
    stacked = vmap(augment)(x, some)
    assert torch.equal(stacked, augment(x, some))
    for one, own, key in zip(stacked, x, some, strict=True):
        assert torch.equal(one, augment(own, key))
