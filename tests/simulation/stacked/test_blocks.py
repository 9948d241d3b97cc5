"""A cohort runs in blocks, and a full device memory makes the blocks smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpisa import families
from fedpisa.simulation.stacked import cohort


@pytest.mark.parametrize("name", families.available("algorithm"))
def test_blocks_change_nothing_but_rounding(lab: Any, name: str) -> None:
    """Blocks change models and states by rounding errors only.

    Clients differ in size, some are absent, and the model has buffers.
    """
    module = lambda: nn.Sequential(nn.BatchNorm1d(4), lab.mlp())  # noqa: E731
    blocks, whole = (
        lab.make(lab.Case(name, {}).build(), "vmap", module=module, fraction=0.7) for _ in range(2)
    )
    blocks.grid.block = 2
    assert lab.relative(blocks.run(3).params, whole.run(3).params) <= 1e-12
    for mine, other in zip(blocks.states(), whole.states(), strict=True):
        assert mine.keys() == other.keys()
        assert all(lab.relative(mine[key], other[key]) <= 1e-11 for key in mine)


def test_dropout_draws_anew_in_every_block(lab: Any) -> None:
    """Four clients with the same samples, in blocks of two, draw four different masks."""
    data = lab.blobs(sizes=(8,) * 4)
    data["x"], data["y"] = np.tile(data["x"][:8], (4, 1)), np.tile(data["y"][:8], 4)
    dropout = nn.Sequential(nn.Dropout(0.5), lab.mlp())
    algorithm = lab.Case("fedavg", {"batch-size": "full"}).build()
    federation = lab.Federation(algorithm, dropout, engine="vmap", **data)
    federation.grid.block = 2
    down = {"params": federation.task.initial_params()}
    outcome = federation.grid._in_blocks(np.arange(4), 1, down, {})
    assert len(torch.unique(outcome.upload["params"], dim=0)) == 4


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Limit the device's memory to three clients; return the block sizes that were tried."""
    tried: list[int] = []
    run_stacked = cohort._run_stacked

    def limited(*args: Any) -> Any:
        tried.append(len(args[2]))
        if len(args[2]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return run_stacked(*args)

    monkeypatch.setattr(cohort, "_run_stacked", limited)
    return tried


def test_a_full_memory_halves_the_block_for_good(
    lab: Any, small_memory: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    data = lab.blobs(sizes=(5,) * 10)
    algorithm = lab.Case("sisa", {}).build()
    federation = lab.Federation(algorithm, lab.mlp(), engine="vmap", **data)
    found = federation.run(2).params
    assert small_memory == [10, 5, *[2] * 5, *[2] * 5]
    assert [record.getMessage() for record in caplog.records if record.name == "fedpisa"] == [
        "out of memory: from now on 5 clients at a time",
        "out of memory: from now on 2 clients at a time",
    ]
    whole = lab.Federation(algorithm, lab.mlp(), engine="loop", **data).run(2).params
    assert lab.relative(found, whole) <= 1e-12


def test_a_client_that_does_not_fit_is_named(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cohort, "_run_stacked", full)
    with pytest.raises(
        ValueError, match=r"one client's local step does not fit .* take a smaller batch-size"
    ):
        lab.make(lab.Case("sisa", {}).build(), "vmap").run(1)
