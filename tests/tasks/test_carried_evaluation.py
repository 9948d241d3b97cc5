"""Evaluation with a carried state: windows of a text give what one long window gives."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset
from fedpisa.datasets.client_data import ClientData
from fedpisa.datasets.text import windows
from fedpisa.models.language import lstm
from fedpisa.models.recurrent import awd_lstm
from fedpisa.runs.per_client import evaluate_clients
from fedpisa.simulation.federation import Federation
from fedpisa.tasks.language import language
from fedpisa.tasks.supervised import Supervised

TOKENS, WINDOW = 6, 4
NO_BUFFERS = torch.zeros(0)


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "lstm":
        return lstm((WINDOW,), TOKENS, embed=3, hidden=5, layers=2).double()
    return awd_lstm((WINDOW,), TOKENS, embed=3, hidden=5, layers=2).double()


def task_of(module: nn.Module, carry: Any = "round") -> Supervised:
    return Supervised(module, language(carry_state=carry))


def texts_of(*counts: int, seed: int = 0) -> list[np.ndarray]:
    """Return texts of numbers of windows; each begins with the last token of the one before it."""
    texts = [
        np.random.default_rng(seed + k).integers(0, TOKENS, WINDOW * n + 1) for k, n in enumerate(counts)
    ]
    for before, text in itertools.pairwise(texts):
        text[0] = before[-1]
    return texts


def data_of(texts: list[np.ndarray]) -> ClientData:
    x, y = (np.concatenate(arrays) for arrays in zip(*(windows(text, WINDOW) for text in texts), strict=True))
    ends = np.cumsum([len(text) // WINDOW for text in texts])
    return ClientData.of(x, y, np.split(np.arange(len(x)), ends[:-1]), torch.float64)


def nll_T(module: nn.Module, text: np.ndarray) -> Tensor:
    """Return each token's loss in a text that is one long window."""
    tokens = torch.from_numpy(text)
    logits_TV = module.eval()(tokens[None, :-1])[0]
    return F.cross_entropy(logits_TV, tokens[1:], reduction="none").detach()


@pytest.mark.parametrize("name", ["lstm", "awd-lstm"])
def test_two_windows_are_one_of_twice_the_length(name: str) -> None:
    module = model_of(name)
    (text,) = texts_of(2)
    measures = task_of(module).evaluate_set(task_of(module).initial_params(), NO_BUFFERS, data_of([text]))
    wanted = float(nll_T(module, text).mean())
    assert measures["loss"] == pytest.approx(wanted, rel=1e-12)
    assert measures["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-12)
    plain = task_of(module, "none").evaluate_set(
        task_of(module).initial_params(), NO_BUFFERS, data_of([text])
    )
    assert abs(plain["loss"] - wanted) > 1e-4


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4096])
def test_texts_are_evaluated_alone_in_any_batches(batch_size: int) -> None:
    """The state is zero where a text begins, although its first token follows the text before it."""
    texts = texts_of(3, 7, 1, 4)
    module, data = model_of("lstm"), data_of(texts)
    task = task_of(module)
    losses = torch.cat([nll_T(module, text) for text in texts])
    scores = task.scores(task.initial_params(), NO_BUFFERS, data, batch_size)
    torch.testing.assert_close(scores["nll"], losses.view(-1, WINDOW).sum(1), rtol=1e-12, atol=0)
    measures = task.evaluate_set(task.initial_params(), NO_BUFFERS, data, batch_size)
    assert measures["loss"] == pytest.approx(float(losses.mean()), rel=1e-12)


def test_windows_that_do_not_follow_begin_with_zero() -> None:
    x, y = windows(np.arange(WINDOW * 5 + 1) % TOKENS, WINDOW)
    data = ClientData.of(x[[0, 2, 4]], y[[0, 2, 4]], [np.arange(3)], torch.float64)
    task, plain = (task_of(model_of("lstm"), carry) for carry in ("epoch", "none"))
    w_P = task.initial_params()
    assert task.evaluate_set(w_P, NO_BUFFERS, data) == pytest.approx(
        plain.evaluate_set(w_P, NO_BUFFERS, data)
    )


def test_each_client_is_evaluated_on_its_text() -> None:
    texts, module = texts_of(3, 2, 5), model_of("lstm")
    task = task_of(module)
    found = evaluate_clients(task, data_of(texts), task.initial_params(), NO_BUFFERS)
    wanted = [float(nll_T(module, text).mean()) for text in texts]
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-12)
    np.testing.assert_allclose(found["perplexity"], np.exp(wanted), rtol=1e-12)


TEXTS = texts_of(9, 6, 12), texts_of(2, 1, 3, seed=7)


def text(*, seed: int = 0, num_clients: int = 3) -> Dataset:
    """Return texts of three clients, and a test text of each."""
    train, test = map(data_of, TEXTS)
    groups, test_groups = (np.repeat(np.arange(3), part.sizes_N) for part in (train, test))
    samples = [(part.x.numpy(), part.y.numpy()) for part in (train, test)]
    fields = {"groups": groups, "test_groups": test_groups, "vocabulary": tuple("abcdef")}
    return Dataset.of("text", *samples, num_classes=TOKENS, **fields)


KEYS: dict[str, object] = {
    "dataset": f"{__name__}:text",
    "task": "language",
    "partitioner": "natural",
    "num-clients": 3,
    "algorithm": "fedavg",
    "model": "lstm",
    "embed": 3,
    "hidden": 5,
    "batch-size": 2,
    "num-server-rounds": 2,
    "dtype": "float64",
    "sample-tokens": 0,
}


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_run_carries_the_state_in_its_evaluations(engine: str) -> None:
    keys = {**KEYS, "carry-state": "round", "engine": engine, "per-client": True}
    result = fedpisa.run({**keys, "validation-fraction": 0.3})
    module = Federation(RunConfig.from_mapping(keys)).task.module
    module.load_state_dict({name: torch.from_numpy(value) for name, value in result.parameters.items()})
    row = result.history.iloc[-1]
    wanted = torch.cat([nll_T(module, one) for one in TEXTS[1]]).mean()
    assert row["test_loss"] == pytest.approx(float(wanted), rel=1e-12)
    # The validation windows are the last ones of each text: a text of their own.
    sizes = result.clients.query("round == 2")["num_examples"]
    held = [one[WINDOW * size :] for one, size in zip(TEXTS[0], sizes, strict=True)]
    assert all(len(part) > WINDOW for part in held)
    wanted = torch.cat([nll_T(module, part) for part in held]).mean()
    assert row["validation_loss"] == pytest.approx(float(wanted), rel=1e-12)
    kept = [one[: WINDOW * size + 1] for one, size in zip(TEXTS[0], sizes, strict=True)]
    losses = [float(nll_T(module, part).mean()) for part in kept]
    np.testing.assert_allclose(result.clients.query("round == 2")["loss"], losses, rtol=1e-12)


def test_a_sample_of_the_windows_is_refused() -> None:
    config = {**KEYS, "carry-state": "round", "eval-samples": 3}
    with pytest.raises(ValueError, match="eval-samples = 3 takes windows that do not follow each other"):
        fedpisa.run(config)
    assert fedpisa.run({**config, "eval-samples": 6}).status == "finished"  # these are all
    assert fedpisa.run({**config, "carry-state": "none"}).status == "finished"


def test_a_folder_has_a_test_text_for_each_file(tmp_path: Path) -> None:
    for number, size in enumerate((90, 160, 240)):
        words = np.random.default_rng(number).choice(list("abcdef"), size)
        (tmp_path / f"{number}.txt").write_text("".join(words))
    keys = {**KEYS, "dataset": "text", "data-file": str(tmp_path), "window": 4, "carry-state": "epoch"}
    assert Federation(RunConfig.from_mapping(keys)).test.sizes_N.tolist() == [2, 3, 5]
    keys["carry-state"] = "none"
    assert Federation(RunConfig.from_mapping(keys)).test.sizes_N.tolist() == [10]
