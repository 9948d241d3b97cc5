"""The bare loop ends with fedpisa's model if both use the same shuffles."""

from __future__ import annotations

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpisa.bench.workloads import SEED, Algorithm, Job, Workload
from fedpisa.clients.batches import Epochs
from fedpisa.config.run import RunConfig
from fedpisa.runs.simulation import Simulation
from fedpisa.server.base import sampled

COMPETITORS = Path(__file__).parents[2] / "benchmarks" / "competitors"


@pytest.fixture(scope="module")
def bare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bare", COMPETITORS / "bare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bare"] = module
    spec.loader.exec_module(module)
    return module


NEEDS_PEFT = pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra language")
LARGER = [
    "lstm",
    "gpt",
    "vit",
    pytest.param("lora", marks=NEEDS_PEFT),
]


def job(model: str, algorithm: Algorithm) -> Job:
    return Job(Workload("tiny", clients=6, samples=8, per_round=3, batch=4, model=model), algorithm, 3, 0)


def in_both(bare: ModuleType, work: Job) -> tuple[Simulation, nn.Module, Any]:
    """Return fedpisa's simulation, and the bare loop's data and model with the same weights."""
    simulation = Simulation(RunConfig.from_mapping({**work.keys(), "dtype": "float64"}))
    bare_model = bare.model_of(work.workload.model).double()
    nn.utils.vector_to_parameters(simulation.federation.task.initial_params(), bare.trained(bare_model))
    if (
        work.workload.model == "lora"
    ):  # of the base, only the random weights that are frozen are not in the vector
        assert all(param.requires_grad == ("lora" in name) for name, param in bare_model.named_parameters())
    data = bare.Data(work)
    if not work.workload.is_text:
        data.x = data.x.double()
    return simulation, bare_model, data


def cohort_of(work: Job, server_round: int) -> list[int]:
    workload = work.workload
    return sampled(range(workload.clients), workload.per_round / workload.clients, SEED, server_round)


def weights(simulation: Simulation) -> Tensor:
    return simulation._vectors()[0]


@pytest.mark.parametrize("model", ["logistic", "mlp", "leaf-cnn", *LARGER])
def test_fedavg_is_the_same(bare: ModuleType, model: str) -> None:
    work = job(model, "fedavg")
    simulation, bare_model, data = in_both(bare, work)
    rows = simulation.rows()
    next(rows)
    for server_round in (1, 2):
        row = next(rows)
        cohort = cohort_of(work, server_round)
        plan = Epochs(batch_size=4).draw(np.full(3, 8), np.array(cohort), server_round, SEED)
        assert plan.steps_S.tolist() == [work.workload.steps] * 3
        assert row["local_steps"] == 3 * work.workload.steps
        batches = {
            client: list(torch.from_numpy(plan.index_SKCB[place, :, 0]))
            for place, client in enumerate(cohort)
        }
        assert all(sorted(torch.cat(own).tolist()) == list(range(8)) for own in batches.values())
        bare.fedavg_round(bare_model, data, cohort, batches.__getitem__)
        params = nn.utils.parameters_to_vector(bare.trained(bare_model))
        torch.testing.assert_close(params, weights(simulation), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", ["mlp", *LARGER])
def test_sisa_is_the_same(bare: ModuleType, model: str) -> None:
    work = job(model, "sisa")
    simulation, bare_model, data = in_both(bare, work)
    sisa = bare.Sisa(bare_model)
    rows = simulation.rows()
    next(rows)
    for server_round in (1, 2, 3):
        next(rows)
        sisa.round(data, cohort_of(work, server_round))
        params = nn.utils.parameters_to_vector(bare.trained(bare_model))
        torch.testing.assert_close(params, weights(simulation), rtol=1e-9, atol=1e-12)
    assert len(sisa.states) > work.workload.per_round  # the cohorts differ between rounds


@pytest.mark.parametrize(("name", "size"), [("logistic", 7850), ("mlp", 199_210), ("leaf-cnn", 1_663_370)])
def test_the_models_are_the_workloads(bare: ModuleType, name: str, size: int) -> None:
    assert sum(param.numel() for param in bare.model_of(name).parameters()) == size
