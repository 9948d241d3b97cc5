"""Training a cohort on several threads equals training it on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fedpisa import families
from fedpisa.config.run import RunConfig
from fedpisa.models.language import gpt
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.stacked import cohort
from fedpisa.simulation.stacked.threads import Threads


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give PyTorch three threads and make every step large enough for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(cohort, "WORTH_A_THREAD", 0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", families.available("algorithm"))
def test_threads_change_nothing_but_rounding(lab: Any, name: str, three_threads: None) -> None:
    """Threads change models and states by rounding errors only.

    Clients differ in size, some are absent, and the model has buffers.
    """
    module = lambda: nn.Sequential(nn.BatchNorm1d(4), lab.mlp())  # noqa: E731
    spread, whole = (
        lab.make(lab.Case(name, {}).build(), "vmap", module=module, fraction=0.7) for _ in range(2)
    )
    assert len(spread.grid.copies) == 2
    whole.grid.copies = []
    assert lab.relative(spread.run(3).params, whole.run(3).params) <= 1e-12
    for mine, other in zip(spread.states(), whole.states(), strict=True):
        assert mine.keys() == other.keys()
        assert all(lab.relative(mine[key], other[key]) <= 1e-11 for key in mine)
    for mine, other in zip(spread.history, whole.history, strict=True):
        assert mine.train_metrics["local-steps"] == other.train_metrics["local-steps"]
        assert mine.train_metrics["train-loss"] == pytest.approx(other.train_metrics["train-loss"], rel=1e-11)


def test_tokens_and_frozen_weights_count_as_work(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clients have 2 windows of 64 tokens, and of 61,952 weights 64 are trained: too few without the others."""
    asked: list[int] = []
    map_ = Threads.map
    monkeypatch.setattr(
        Threads, "map", lambda own, f, *parts: asked.append(len(parts[0])) or map_(own, f, *parts)
    )
    keys = {"num-clients": 3, "samples-per-client": 2, "fraction-train": 1.0, "batch-size": 2, "seed": 0}
    texts = {
        "dataset": "fedpisa.bench.workloads:texts",
        "partitioner": "natural",
        "model": f"{__name__}:frozen",
    }
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = Simulation(RunConfig.from_mapping({**keys, **texts, "num-server-rounds": 1})).rows()
        assert len(list(rows)) == 2
    finally:
        torch.set_num_threads(before)
    assert asked == [2]


def frozen(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    model = gpt(shape, num_outputs, width=64, layers=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "norm.weight"
    return model


@pytest.mark.parametrize("spread", [True, False])
def test_they_give_the_same_bits_every_time(lab: Any, spread: bool, three_threads: None) -> None:
    module = lambda: nn.Sequential(nn.LayerNorm(4), lab.mlp()) if spread else lab.mlp()  # noqa: E731
    runs = [lab.make(lab.Case("sisa", {}).build(), "vmap", module=module).run(5) for _ in range(5)]
    assert all(bool(run.grid.copies) == spread for run in runs)
    assert all(torch.equal(runs[0].params, other.params) for other in runs[1:])


def test_dense_layers_stay_in_one_piece(lab: Any, three_threads: None) -> None:
    """PyTorch itself spreads batched products over threads, with the same result."""
    three = lab.make(lab.Case("scaffold", {}).build(), "vmap").run(3)
    torch.set_num_threads(1)
    one = lab.make(lab.Case("scaffold", {}).build(), "vmap").run(3)
    assert three.grid.copies == []
    assert lab.relative(three.params, one.params) <= 1e-12


def test_more_threads_than_clients(lab: Any, three_threads: None) -> None:
    data = lab.blobs(sizes=(5, 3))
    module = nn.Sequential(nn.LayerNorm(4), lab.mlp()).double()
    federation = lab.Federation(lab.Case("fedavg", {}).build(), module, engine="vmap", **data)
    assert len(federation.grid.copies) == 2
    assert torch.isfinite(federation.run(2).params).all()


def test_what_draws_random_numbers_stays_on_one_thread(lab: Any, three_threads: None) -> None:
    """Random numbers come from one generator, whose order must not depend on threads."""
    dropout = lambda: nn.Sequential(nn.FeatureAlphaDropout(0.5), lab.mlp())  # noqa: E731
    assert lab.make(lab.Case("fedavg", {}).build(), "vmap", module=dropout).grid.copies == []


def test_dropout_is_spread_and_draws_the_same_masks(lab: Any, three_threads: None) -> None:
    dropout = lambda: nn.Sequential(lab.mlp(), nn.Dropout(0.5))  # noqa: E731
    spread, whole = (lab.make(lab.Case("fedavg", {}).build(), "vmap", module=dropout) for _ in range(2))
    assert len(spread.grid.copies) == 2
    whole.grid.copies = []
    assert lab.relative(spread.run(3).params, whole.run(3).params) <= 1e-12


def test_a_small_step_is_not_spread(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(Threads, "map", None)
        module = lambda: nn.Sequential(nn.LayerNorm(4), lab.mlp())  # noqa: E731
        federation = lab.make(lab.Case("fedavg", {}).build(), "vmap", module=module)
        assert federation.grid.copies
        federation.run(1)
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_the_callers_and_threads_are_as_before(three_threads: None) -> None:
    def fail(number: int) -> int:
        raise ValueError(f"in thread {number}")

    with pytest.raises(ValueError, match="in thread 0"):
        Threads(2).map(fail, range(2))
    assert torch.get_num_threads() == 3
