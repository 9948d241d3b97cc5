"""The bound on updates refuses no honest client, on the hardest splits of `experiments/family`."""

from __future__ import annotations

import json
from typing import Any

import pytest

import fedpisa
from fedpisa.server.reply_filter import MAX_UPLOAD_NORM
from fedpisa.server.reply_spec import idle_result
from tests.studies.test_family import EXPERIMENTS, family, require_optimizer

RUNS = family.read(EXPERIMENTS / "family" / "runs.csv")


HARDEST = ("labels-per-client 1", "label-dirichlet 0.1")


@pytest.mark.parametrize(("row", "split"), [cell for cell in family.cells() if cell[1] in HARDEST])
def test_no_honest_client_is_refused(row: str, split: str) -> None:
    require_optimizer(row)
    algorithm, spending, _ = family.GRIDS[row]
    chosen = json.loads(family.best_setting(row, split, RUNS))
    result = fedpisa.run(
        {
            **family.COMMON, **family.SPLITS[split], **spending, **chosen, "algorithm": algorithm,
            "dataset": "digits", "num-server-rounds": 10, "eval-every": 10, "device": "cpu",
            "max-upload-norm": MAX_UPLOAD_NORM,
        }
    )  # fmt: skip
    assert set(result.history["replies"][1:]) == {10}


def test_an_idle_client_uploads_the_model_or_nothing(lab: Any, case: Any) -> None:
    """With gradients of zero, every upload is the model or zero, so an update measures a client's movement.

    A regularizer moves even an idle client.
    """
    if {"mu", "weight-decay"} & case.values.keys():
        return
    federation = lab.make(case.build(), "loop")
    algorithm, layout = federation.algorithm, federation.task.layout
    down = algorithm.broadcast(algorithm.init(federation.task.initial_params(), layout))
    update = algorithm.local_update.at_round(1).for_broadcast(down)
    for name, value in idle_result(update, down, layout).upload.items():
        if value.dim() and bool(value.any()):
            assert float((value - down["params"]).abs().max()) <= 1e-12, name


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("algorithm", ["fedavg", "sisa", "scaffold"])
def test_the_bound_changes_no_bit(algorithm: str, engine: str) -> None:
    keys = {
        "algorithm": algorithm,
        "dataset": "synthetic",
        "num-server-rounds": 3,
        "engine": engine,
        "device": "cpu",
    }
    with_bound, without = (
        fedpisa.run({**keys, **more}).parameters for more in ({"max-upload-norm": 100}, {})
    )
    assert all((with_bound[name] == without[name]).all() for name in without)
