"""Models of sequences: sizes by hand, causality, closed forms, and clients stacked by torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from fedpisa.config.run import RunConfig
from fedpisa.datasets import Dataset
from fedpisa.families import models
from fedpisa.models.language import bigram, gpt, lstm
from fedpisa.simulation.parts import build_model

Model = Callable[..., nn.Module]
NAMES = ("bigram", "lstm", "gpt")
V, T = 7, 6


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def made(name: str, seed: int = 0, **keys: Any) -> nn.Module:
    """Return a model in float64 whose weights are far from zero."""
    model = models.build(name, (T,), V, seed, target_shape=(T,), integers=True, **keys).double()
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (bigram((64,), 65), 65**2),
        (lstm((64,), 65), 65 * 16 + 4 * 128 * (16 + 128 + 2) + 129 * 65),
        (lstm((64,), 65), 84_177),
        (
            lstm((9,), 30, embed=5, hidden=7, layers=2),
            30 * 5 + 4 * 7 * (5 + 7 + 2) + 4 * 7 * (7 + 7 + 2) + 8 * 30,
        ),
        (lstm((9,), 30, embed=8, hidden=8, tied=True), 30 * 8 + 4 * 8 * (8 + 8 + 2) + 30),
        (gpt((64,), 65), (2 * 65 + 64) * 64 + 2 * (12 * 64**2 + 4 * 64) + 2 * 64),
        (gpt((64,), 65), 111_360),
        (gpt((9,), 30, width=12, heads=3, layers=1), (2 * 30 + 9) * 12 + 12 * 12**2 + 4 * 12 + 2 * 12),
    ],
)
def test_parameter_counts(model: nn.Module, expected: int) -> None:
    assert size(model) == expected


@pytest.mark.parametrize("name", NAMES)
def test_logits_for_every_position(name: str) -> None:
    model = models.build(name, (T,), V, seed=0, target_shape=(T,), integers=True)
    assert model(tokens(3, T)).shape == (3, T, V)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "keys"),
    [("bigram", {}), ("lstm", {}), ("lstm", {"layers": 2}), ("gpt", {}), ("gpt", {"heads": 1, "layers": 1})],
)
@given(place=st.integers(0, T - 1), seed=st.integers(0, 20))
def test_a_token_changes_nothing_before_it(name: str, keys: dict[str, Any], place: int, seed: int) -> None:
    model, x = made(name, **keys), tokens(1, T, seed=seed)
    other = x.clone()
    other[0, place] = (x[0, place] + 1) % V
    difference_T = (model(x) - model(other)).abs().amax(-1)[0]
    assert bool((difference_T[:place] < 1e-12).all())
    if name == "bigram":
        assert bool((difference_T[place + 1 :] == 0).all())
    else:  # what was read before is remembered
        assert bool((difference_T[place:] > 1e-9).all())


def test_positions_matter_to_gpt() -> None:
    same = made("gpt")(torch.zeros(1, T, dtype=torch.int64))
    assert bool(((same[0, 1:] - same[0, :-1]).abs().amax(-1) > 1e-6).all())


def test_a_sequence_may_be_shorter() -> None:
    for name in NAMES:
        model, x = made(name), tokens(2, T)
        torch.testing.assert_close(model(x[:, :3]), model(x)[:, :3])


@given(seed=st.integers(0, 50))
def test_gradient_of_bigram_in_closed_form(seed: int) -> None:
    """The row of token a is sum_b (n_a softmax(w_a) - n_ab) / n with the counts of the pairs."""
    model, x, y = made("bigram", seed), tokens(4, T, seed=seed), tokens(4, T, seed=seed + 1)
    y[0, :2] = -100
    cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    counts = torch.zeros(V, V, dtype=torch.float64)
    for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        if b != -100:
            counts[a, b] += 1
    weight = next(model.parameters())
    expected = (counts.sum(1, keepdim=True) * weight.detach().softmax(-1) - counts) / counts.sum()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)


def test_bigram_starts_at_the_uniform_distribution() -> None:
    logits = models.build("bigram", (T,), V, seed=3, target_shape=(T,), integers=True)(tokens(5, T))
    assert cross_entropy(logits.flatten(0, 1), tokens(5 * T)).item() == pytest.approx(math.log(V))


def test_initial_weights_of_gpt() -> None:
    model = models.build("gpt", (64,), 65, seed=0, target_shape=(64,), integers=True)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == ("weight" in name)).all())
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.06)
    again = models.build("gpt", (64,), 65, seed=0, target_shape=(64,), integers=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_lstm_is_the_recurrence_of_its_definition() -> None:
    """PyTorch's order of the gates is input, forget, cell, output; the state begins at zero."""
    model, x = made("lstm", embed=3, hidden=5), tokens(2, T)
    p = dict(model.named_parameters())
    h = c = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(T):
        gates = p["embed.weight"][x[:, t]] @ p["rnn.weight_ih_l0"].T + h @ p["rnn.weight_hh_l0"].T
        i, f, g, o = (gates + p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"]).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(model(x)[:, t], h @ p["head.weight"].T + p["head.bias"])


def test_attention_of_gpt_is_that_of_its_definition() -> None:
    """Each head mixes the values before a position by softmax(q k / sqrt(D / heads))."""
    block, h = made("gpt", width=8, heads=2, layers=1).blocks[0], torch.randn(3, T, 8, dtype=torch.float64)
    q, k, v = (block.queries_keys_values(block.norm_1(h))).chunk(3, -1)
    before = torch.ones(T, T).tril() == 1
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].mT / 2
        heads.append(scores.masked_fill(~before, -math.inf).softmax(-1) @ v[..., part])
    middle = h + block.attended(torch.cat(heads, -1))
    torch.testing.assert_close(block(h), middle + block.mlp(block.norm_2(middle)))


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("bigram", {}),
        ("lstm", {}),
        ("lstm", {"layers": 2}),
        ("lstm", {"embed": 8, "hidden": 8, "tied": True}),
        ("gpt", {}),
    ],
)
def test_gradients_of_stacked_clients(name: str, keys: dict[str, Any], shared: bool) -> None:
    """They are those of one client after the other, from one model or from a model each."""
    model, x, y = made(name, **keys), tokens(3, 4, T), tokens(3, 4, T, seed=1)
    one = {key: value.detach() for key, value in model.named_parameters()}
    each = {key: torch.stack([value * factor for factor in (1.0, 0.5, -1.0)]) for key, value in one.items()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (x,)).flatten(0, 1), y.flatten())

    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
        stacked = vmap(grad(loss), in_dims=(None if shared else 0, 0, 0))(one if shared else each, x, y)
    for client in range(3):
        params = one if shared else {key: value[client] for key, value in each.items()}
        for key, value in grad(loss)(params, x[client], y[client]).items():
            torch.testing.assert_close(stacked[key][client], value)


@pytest.mark.parametrize(
    ("name", "shape", "keys", "message"),
    [
        ("lstm", (1, 8, 8), {}, "needs sequences of tokens (length,), and a sample has shape (1, 8, 8)"),
        ("gpt", (), {}, "needs sequences of tokens (length,), and a sample has shape ()"),
        ("bigram", (2, 2), {}, "dataset = 'tinyshakespeare'"),
        ("gpt", (8,), {"width": 10}, "cannot split width = 10 among heads = 4: take a multiple"),
        ("lstm", (8,), {"tied": True}, "needs embed = hidden, not 16 and 128: set embed = 128"),
        ("lstm", (8,), {"lstm_dropout": 1.0}, "lstm-dropout"),
        ("mlp", (8,), {}, "cannot take a sample of shape (8,) of integers ("),
    ],
)
def test_what_does_not_fit(name: str, shape: tuple[int, ...], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        models.build(name, shape, V, seed=0, target_shape=shape, integers=True, **keys)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target_shape", "integers", "message"),
    [
        ((), True, "gives (2, 6, 7) for two samples, and the labels need (2, 7)"),
        ((5,), True, "and the labels need (2, 5, 7)"),
        ((6,), False, "model 'lstm' cannot take a sample of shape (6,) ("),
    ],
)
def test_data_of_another_kind(target_shape: tuple[int, ...], integers: bool, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        models.build("lstm", (T,), V, seed=0, target_shape=target_shape, integers=integers)
    assert message in str(caught.value)


def test_a_run_builds_its_model_for_the_kind_of_its_data(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.int32).reshape(4, 6) % V
    data = Dataset.of(
        "own", (x, x.astype(np.int64)), (x, x.astype(np.int64)), num_classes=V, default_model="gpt"
    )
    assert build_model(RunConfig(), data)(torch.from_numpy(x).long()).shape == (4, 6, V)


def test_dropout_is_for_training_alone() -> None:
    model, x = made("lstm", lstm_dropout=0.5, layers=2), tokens(2, T)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
