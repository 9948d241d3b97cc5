"""Language models: PISA reaches the optimum of a convex one, FedAvg does not; engines agree with all algorithms."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedpisa
from fedpisa import families
from fedpisa.families.data import load
from fedpisa.runs.results import load_result
from fedpisa.tasks.generation import continued
from tests.runs.interrupted import assert_same, cut_short

DATA = Path(os.environ.get("FEDPISA_DATA") or "data") / "tinyshakespeare.txt"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
L2 = 1e-3


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def objective(table: Tensor, l2: float = L2) -> Tensor:
    """Return the regularised mean loss over all positions of the ten largest roles."""
    text = load("tinyshakespeare", num_clients=10)
    pair = torch.from_numpy(65 * text.x_train.ravel() + text.y_train.ravel())
    share = torch.bincount(pair, minlength=65 * 65).view(65, 65).double() / len(pair)
    return -(share * table.log_softmax(1)).sum() + l2 / 2 * (table**2).sum()


def optimum() -> Tensor:
    """Return the objective's minimiser by L-BFGS."""
    table = torch.zeros(65, 65, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [table], max_iter=5000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(table)
        loss.backward()
        return loss

    solver.step(closure)
    assert table.grad is not None
    assert float(table.grad.norm()) ** 2 / (2 * L2) < 1e-12  # a bound of the distance to the least value
    return table.detach()


BIGRAMS = {
    "dataset": "counted:counted",
    "task": "counted:Counted",
    "model": "counted:table",
    "num-clients": 10,
    "partitioner": "natural",
    "batch-size": "full",
    "dtype": "float64",
    "num-server-rounds": 300,
    "eval-every": 300,
}


def above(result: fedpisa.Result, least: float) -> float:
    return float(objective(torch.from_numpy(result.parameters["weight"]))) - least


@needs_data
def test_counts_have_the_objective_of_the_text() -> None:
    from counted import Counted, pairs  # type: ignore[import-not-found]

    table = torch.randn(65, 65, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, _, _ = pairs()
    losses_n = Counted().loss(table[torch.from_numpy(found[:, :1])], torch.arange(len(found)))
    assert float(losses_n.mean()) == pytest.approx(float(objective(table, 0)), rel=1e-12)
    text = load("tinyshakespeare", num_clients=10)
    x, y = torch.from_numpy(text.x_train), torch.from_numpy(text.y_train)
    whole = F.cross_entropy(table[x.flatten()], y.flatten())
    assert float(whole) == pytest.approx(float(objective(table, 0)), rel=1e-12)


@needs_data
@pytest.mark.slow
def test_pisa_reaches_the_optimum_of_bigrams_and_fedavg_does_not(tmp_path: Path) -> None:
    least = float(objective(optimum()))
    pisa = fedpisa.run({**BIGRAMS, "algorithm": "pisa", "sigma": 0.003, "rho": 0.02, "lambda": L2})
    assert abs(above(pisa, least)) < 1e-10
    sisa = fedpisa.run({**BIGRAMS, "algorithm": "sisa", "sigma": 0.003, "rho": 10, "lambda": L2})
    assert 0 <= above(sisa, least) < 1e-6
    local = {"local-steps": 20, "learning-rate": 50, "weight-decay": L2, "checkpoint-every": 0}
    fedavg = fedpisa.run({**BIGRAMS, "algorithm": "fedavg", **local}, tmp_path / "run")
    assert above(fedavg, least) > 3e-5
    fedavg = fedpisa.run({"num-server-rounds": 600}, resume=tmp_path / "run", allow=["counted"])
    assert above(fedavg, least) > 3e-5


@needs_data
def test_no_training_loss_passes_the_entropy_of_the_counts() -> None:
    text = load("tinyshakespeare", num_clients=10)
    counts = np.zeros((65, 65))
    np.add.at(counts, (text.x_train.ravel(), text.y_train.ravel()), 1)
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log((counts / counts.sum(1, keepdims=True).clip(1))[counts > 0])).sum()
    assert entropy == pytest.approx(2.408763, abs=1e-6)
    keys = {
        "algorithm": "pisa",
        "sigma": 1e-4,
        "rho": 0.02,
        "num-server-rounds": 30,
        "exact-diagnostics": True,
    }
    found = fedpisa.run({**BIGRAMS, **keys, "eval-every": 5})
    losses = found.history["objective"].dropna()
    assert losses.min() > entropy
    assert losses.iloc[-1] < 3


# --------------------------------------------------------------------------------- engines and resuming


class Mixed(nn.Module):
    """Layers that can be stacked: an embedding and a dense layer."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(num_outputs, 3), nn.Linear(3, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(x))
        return logits


def mixed(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Mixed(num_outputs)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for client, size in enumerate((90, 160, 240)):
        (folder / f"{client}.txt").write_text("".join(rng.choice(list("abcd e"), size)))
    return folder


def keys_of(texts: Path, **more: Any) -> dict[str, Any]:
    base = {
        "dataset": "text",
        "data-file": str(texts),
        "window": 5,
        "partitioner": "natural",
        "num-clients": 3,
    }
    return {**base, "batch-size": 4, "num-server-rounds": 5, **more}


@pytest.mark.parametrize("model", ["mixed", "lstm"])
@pytest.mark.parametrize("algorithm", sorted(families.available("algorithm")))
def test_engines_agree_on_language(texts: Path, algorithm: str, model: str) -> None:
    more = {"hidden": 4, "embed": 3} if model == "lstm" else {}
    name = f"{__name__}:mixed" if model == "mixed" else model
    for dtype, rounds, tolerance in (("float64", 5, 1e-12), ("float32", 1, 1e-5)):
        keys = keys_of(texts, algorithm=algorithm, model=name, dtype=dtype, **more)
        keys["num-server-rounds"] = rounds
        loop, vmap = (fedpisa.run({**keys, "engine": engine}) for engine in ("loop", "vmap"))
        for key, wanted in loop.parameters.items():
            scale = np.abs(wanted).max()
            assert np.abs(vmap.parameters[key] - wanted).max() <= tolerance * scale, (key, dtype)
        for column in ("train_loss", "test_loss", "test_perplexity", "test_accuracy"):
            one, other = (run.history[column].dropna().iloc[-1] for run in (loop, vmap))
            assert other == pytest.approx(one, rel=max(tolerance, 1e-9), abs=1e-9)


@pytest.mark.parametrize("carry", ["none", "epoch"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_killed_run_resumes_to_the_same_bytes_with_dropout(
    texts: Path, tmp_path: Path, engine: str, carry: str
) -> None:
    keys = keys_of(texts, algorithm="sisa", model="lstm", hidden=4, engine=engine)
    keys |= {"lstm-dropout": 0.3, "num-server-rounds": 6, "checkpoint-every": 2}
    keys |= {"task": "language", "carry-state": carry}
    fedpisa.run(keys, tmp_path / "whole")
    cut_short(keys, tmp_path / "cut", 3)
    fedpisa.run(resume=tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


@needs_data
@pytest.mark.slow
def test_an_lstm_passes_the_trigrams_of_the_training_text() -> None:
    text = load("tinyshakespeare", num_clients=10)
    train, test = (
        np.concatenate([x, y[:, -1:]], 1)
        for x, y in ((text.x_train, text.y_train), (text.x_test, text.y_test))
    )
    pairs, triples = np.zeros((65, 65)), np.zeros((65, 65, 65))
    np.add.at(pairs, (train[:, :-1], train[:, 1:]), 1)
    np.add.at(triples, (train[:, :-2], train[:, 1:-1], train[:, 2:]), 1)
    after_one = (pairs + 0.1) / (pairs.sum(1, keepdims=True) + 6.5)
    after_two = (triples + 5 * after_one) / (triples.sum(2, keepdims=True) + 5)
    bigram = np.exp(-np.log(after_one[test[:, :-1], test[:, 1:]]).mean())
    trigram = np.exp(-np.log(after_two[test[:, :-2], test[:, 1:-1], test[:, 2:]]).mean())
    assert bigram == pytest.approx(11.23, abs=0.005)
    assert trigram == pytest.approx(7.21, abs=0.05)
    keys: dict[str, object] = {"dataset": "tinyshakespeare", "model": "lstm", "num-clients": 10}
    keys |= {"partitioner": "natural", "batch-size": 32, "num-server-rounds": 60, "eval-every": 60}
    result = fedpisa.run({**keys, "algorithm": "sisa", "sigma": 0.005, "rho": 100})
    assert result.history["test_perplexity"].iloc[-1] < min(trigram, 7.21)


def test_the_run_knows_its_measures_and_its_path(texts: Path, tmp_path: Path) -> None:
    keys = keys_of(texts, model="lstm", hidden=4, target=5.9, **{"target-measure": "test-perplexity"})
    fedpisa.run(keys, tmp_path / "run")
    result = load_result(tmp_path / "run")
    assert result.headline.column == "test_perplexity"
    assert result.target == ("test_perplexity", 5.9)
    assert result.best() == result.history["test_perplexity"].min()
    assert '"path": "autograd"' in (tmp_path / "run" / "run.json").read_text()


def test_a_run_keeps_its_tokens_and_texts_that_its_model_writes(texts: Path, tmp_path: Path) -> None:
    keys = keys_of(texts, task="language", model="lstm", hidden=4, **{"sample-tokens": 30})
    fedpisa.run(keys, tmp_path / "run")
    fedpisa.run({**keys, "engine": "loop"}, tmp_path / "loop")
    tokens = json.loads((tmp_path / "run" / "vocabulary.json").read_text())
    assert tokens == sorted("abcd e")
    written = (tmp_path / "run" / "samples.txt").read_text()
    parts = written.split("=== after ")[1:]
    assert len(parts) == 3
    for part in parts:
        prompt, text = part.split("\n", 1)
        assert len(eval(prompt)) == 2
        assert len(text.rstrip("\n")) == 30
        assert set(text) <= {*tokens, "\n"}
    assert (tmp_path / "loop" / "samples.txt").read_text() == written
    fedpisa.run({**keys, "sample-tokens": 0}, tmp_path / "none")
    assert not (tmp_path / "none" / "samples.txt").exists()
    load_result(tmp_path / "run")


def test_what_a_model_writes_follows_its_probabilities() -> None:
    table = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    text = continued(lambda x: table[x], torch.zeros(50, 1, dtype=torch.int64), 400, 8, generator)
    for before in (0, 1):
        after = text[:, 1:][text[:, :-1] == before].double()
        wanted = float(table[before].softmax(0)[1])
        assert abs(float(after.mean()) - wanted) < 5 * (wanted * (1 - wanted) / len(after)) ** 0.5
