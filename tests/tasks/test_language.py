"""The loss and the measures of language modelling, against PyTorch on flattened tokens and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedpisa.datasets.base import IGNORED
from fedpisa.datasets.client_data import ClientData
from fedpisa.models.language import bigram, lstm
from fedpisa.runs.per_client import evaluate_clients
from fedpisa.tasks.base import Samples
from fedpisa.tasks.language import Language
from fedpisa.tasks.supervised import Supervised

TOKENS = 5


def ragged(seed: int, n: int = 6, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits ``(n, T, V)``, tokens, and targets of which each sequence counts at least one."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, length, TOKENS, generator=generator, dtype=torch.float64)
    x, y = (torch.randint(TOKENS, (n, length), generator=generator) for _ in range(2))
    counted = torch.randint(1, length + 1, (n, 1), generator=generator)
    return logits, x, torch.where(torch.arange(length) < counted, y, IGNORED)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_sequence_counts_as_the_mean_of_its_tokens(seed: int) -> None:
    logits, _, y = ragged(seed)
    logits.requires_grad_()
    found = Language().loss(logits, y)
    wanted = torch.stack(
        [F.cross_entropy(one, t, ignore_index=IGNORED) for one, t in zip(logits, y, strict=True)]
    )
    torch.testing.assert_close(found, wanted)
    mine, theirs = (torch.autograd.grad(losses.sum(), logits)[0] for losses in (found, wanted))
    torch.testing.assert_close(mine, theirs)
    assert (mine[y == IGNORED] == 0).all()


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_every_token_counts_the_same_if_asked(seed: int) -> None:
    logits, _, y = ragged(seed)
    total = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(Language("token").loss(logits, y).sum(), total / y.shape[1])
    whole = torch.where(y == IGNORED, 0, y)  # without padding there is no difference
    torch.testing.assert_close(Language("token").loss(logits, whole), Language().loss(logits, whole))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_perplexity_is_that_of_all_tokens(batch_size: int) -> None:
    _, x, y = ragged(3, 13)
    task = Supervised(bigram((7,), TOKENS).double(), Language())
    params_P = torch.randn(TOKENS**2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = task.evaluate(params_P, torch.zeros(0), x, y, batch_size)
    logits, counted = params_P.view(TOKENS, TOKENS)[x], y != IGNORED
    nll = F.cross_entropy(logits[counted], y[counted])
    assert found["perplexity"] == pytest.approx(math.exp(nll))
    assert found["bits"] == pytest.approx(float(nll) / math.log(2))
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == y)[counted].double().mean()))
    assert list(found) == ["loss", "perplexity", "accuracy", "bits"]
    assert [measure.column for measure in task.measures] == ["perplexity", "loss", "accuracy", "bits"]


def test_the_measures_of_clients_are_those_of_their_own_tokens() -> None:
    _, x, y = ragged(4, 10)
    parts = [np.arange(3), np.arange(3, 4), np.arange(4, 10)]
    data = ClientData.of(x.numpy(), y.numpy(), parts, torch.float64)
    task = Supervised(lstm((7,), TOKENS, hidden=4).double(), Language())
    params_P = task.initial_params()
    found = evaluate_clients(task, data, params_P, torch.zeros(0), batch_size=4)
    for client in range(3):
        alone = task.evaluate(params_P, torch.zeros(0), *data.client(client))
        assert {name: values[client] for name, values in found.items()} == pytest.approx(alone)


def test_uniform_guessing_has_the_perplexity_of_the_vocabulary() -> None:
    _, x, y = ragged(5)
    task = Supervised(bigram((7,), TOKENS).double(), Language())
    found = task.evaluate(task.initial_params(), torch.zeros(0), x, y)
    assert found["perplexity"] == pytest.approx(TOKENS)


def test_padding_changes_nothing() -> None:
    _, x, y = ragged(6)
    task = Supervised(lstm((7,), TOKENS, hidden=4).double(), Language())
    params, padded = task.layout.unflatten(task.initial_params()), (y == IGNORED)
    other = torch.where(padded, (x + 1) % TOKENS, x)  # what stands where nothing counts, which comes last
    first, second = (
        task.losses(params, torch.zeros(0), Samples(tokens, y)).losses_B for tokens in (x, other)
    )
    torch.testing.assert_close(first, second)


def test_one_target_for_each_sample_is_refused() -> None:
    for y in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="needs a token for each position"):
            Language().check(y)
