"""`MaskedBatchNorm` equals PyTorch's BatchNorm on the real rows, and also handles a single value."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpisa.tasks.batchnorm import MaskedBatchNorm, mask_batchnorms, real_rows

pytestmark = pytest.mark.filterwarnings("error")
LAYERS = {
    "1d": (nn.BatchNorm1d, (3,)),
    "1d-sequence": (nn.BatchNorm1d, (3, 5)),
    "2d": (nn.BatchNorm2d, (3, 4, 2)),
    "3d": (nn.BatchNorm3d, (3, 2, 2, 3)),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": 0.3},
    {"momentum": 0.0},
    {"affine": False},
    {"track_running_stats": False},
    {"eps": 0.1},
]


def pair(layer: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Return PyTorch's layer, and ours around a copy of it."""
    torch.manual_seed(0)
    theirs = LAYERS[layer][0](3, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    return theirs, mask_batchnorms(copy.deepcopy(theirs))


def compare(theirs: nn.Module, ours: nn.Module, x: Tensor, padding: Tensor | None = None) -> None:
    """Compare outputs, gradients of inputs and parameters, and buffers."""
    n = len(x)
    padded = x if padding is None else torch.cat([x, padding])
    mask = torch.cat([torch.ones(n), torch.zeros(len(padded) - n)])
    a, b = x.clone().requires_grad_(), padded.clone().requires_grad_()
    cotangent = torch.randn_like(x)
    wanted = theirs(a)
    with real_rows(mask):
        got = ours(b)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got[:n], wanted, rtol=1e-12, atol=1e-12)
    (wanted * cotangent).sum().backward()
    (got[:n] * cotangent).sum().backward()
    torch.testing.assert_close(b.grad[:n], a.grad, rtol=1e-10, atol=1e-11)
    if ours.training:
        assert not bool(b.grad[n:].any())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-11)
    own = dict(ours.named_buffers())
    assert list(own) == [name for name, _ in theirs.named_buffers()]
    for name, buffer in theirs.named_buffers():
        assert own[name].dtype == buffer.dtype
        torch.testing.assert_close(own[name], buffer, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_pytorchs_over_several_steps(layer: str, options: dict[str, Any]) -> None:
    """Both layers agree on four padded mini-batches in training, and then in evaluation.

    The mini-batches differ in size, and the padding has huge values.
    """
    theirs, ours = pair(layer, **options)
    for size in (4, 2, 7, 3):
        x = torch.randn(size, *LAYERS[layer][1], dtype=torch.float64) * 3 + 1
        compare(theirs, ours, x, padding=torch.full((size - 1, *x.shape[1:]), 1e6, dtype=torch.float64))
    theirs.eval()
    ours.eval()
    compare(theirs, ours, torch.randn(5, *LAYERS[layer][1], dtype=torch.float64))


def test_a_scale_without_shift(dtype: str) -> None:
    """Newer versions of PyTorch allow a BatchNorm with a weight and without a bias."""
    try:
        theirs = nn.BatchNorm1d(3, bias=False).to(getattr(torch, dtype))
    except TypeError:
        pytest.skip("this PyTorch's BatchNorm has no key 'bias'")
    nn.init.normal_(theirs.weight)
    ours = mask_batchnorms(copy.deepcopy(theirs))
    x = torch.randn(5, 3, dtype=getattr(torch, dtype))
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_a_single_value_is_normalised_to_zero(options: dict[str, Any]) -> None:
    """A single value has variance 0, so the output is the shift. PyTorch refuses this case."""
    theirs, ours = pair("1d", **options)
    x = torch.randn(1, 3, dtype=torch.float64).requires_grad_()
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(x)
    out = ours(x)
    assert torch.equal(out, ours.bias.detach().expand(1, 3))
    (out**2).sum().backward()
    assert not bool(x.grad.any())
    if ours.running_mean is not None:
        rate = 1.0 if ours.momentum is None else 0.1
        torch.testing.assert_close(ours.running_mean, rate * x.detach()[0])
        torch.testing.assert_close(ours.running_var, torch.full((3,), 1 - rate, dtype=torch.float64))


def test_a_mini_batch_that_is_not_there_is_finite() -> None:
    """An absent mini-batch has a finite output and gradient, so that a weight of 0 removes it."""
    _, ours = pair("2d")
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64).requires_grad_()
    with real_rows(torch.zeros(2)):
        out = ours(x)
    (0 * out).sum().backward()
    for value in (out, x.grad, *(p.grad for p in ours.parameters()), *ours.buffers()):
        assert bool(torch.isfinite(value).all())


def test_the_mask_ends_with_its_block() -> None:
    _, ours = pair("1d", track_running_stats=False)
    x = torch.randn(4, 3, dtype=torch.float64)
    plain = ours(x)
    with real_rows(torch.tensor([1.0, 1.0, 0.0, 0.0])):
        masked = ours(x)
    assert not torch.equal(masked, plain)
    assert torch.equal(ours(x), plain)


def test_layers_are_replaced_at_every_depth_under_their_names() -> None:
    def tree() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ModuleDict({"a": nn.Sequential(nn.BatchNorm2d(3))})
        )

    replaced = mask_batchnorms(tree())
    layers = [m for m in replaced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(type(layer) is MaskedBatchNorm for layer in layers)
    assert list(replaced.state_dict()) == list(tree().state_dict())
    assert isinstance(mask_batchnorms(nn.BatchNorm1d(2)), MaskedBatchNorm)


def test_a_layer_that_is_used_twice_stays_one_layer() -> None:
    """A layer under two names, in one parent or in two, keeps one set of statistics."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm1d(2)
            self.second = self.first
            self.inner = nn.Sequential(self.first)

    replaced = mask_batchnorms(Twice())
    assert isinstance(replaced.first, MaskedBatchNorm)
    assert replaced.second is replaced.first
    assert replaced.inner[0] is replaced.first
