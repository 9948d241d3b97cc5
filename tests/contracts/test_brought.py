"""Users' models and partitioners run correctly, or a one-line error names the fix."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import fedpisa
from fedpisa.families.data import load, partition
from fedpisa.runs.results import load_result
from tests.contracts import brought

BASE = {"algorithm": "fedavg", "num-server-rounds": 2, "num-clients": 3, "dtype": "float64", "local-steps": 2}
COLUMNS = ["train_loss", "test_loss", "test_accuracy"]


def run(model: str = "", out: Path | None = None, **keys: Any) -> Any:
    keys = {key.replace("_", "-"): value for key, value in keys.items()}
    named = {"model": f"tests.contracts.brought:{model}"} if model else {}
    return fedpisa.run({**BASE, **named, **keys}, out)


@pytest.mark.parametrize("keys", [{}, {"per_client": True}, {"exact_diagnostics": True}], ids=str)
def test_a_model_that_writes_into_its_input_changes_no_data(keys: dict[str, Any]) -> None:
    if "exact_diagnostics" in keys:
        keys = {**keys, "algorithm": "sisa", "local_steps": 1}
    writes, keeps = (run(model, **keys).history[COLUMNS] for model in ("WritesInput", "KeepsInput"))
    pd.testing.assert_frame_equal(writes, keeps)


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize("model", ["DrawsByNumpy", "DrawsByRandom", "DrawsByTorch"])
def test_a_model_that_draws_is_reproducible(model: str, engine: str) -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first, second = (run(model, engine=engine).history[COLUMNS] for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize(
    ("model", "keys", "cause"),
    [
        ("frozen", {}, "no trainable parameters"),
        ("scripted", {}, "RecursiveScriptModule"),
        ("parallel", {}, "gave a DataParallel: give the torch.nn.Module inside it"),
        ("PairInTraining", {}, "returns a tuple in training"),
        ("WritesParameters", {}, "writes into its parameters"),
        ("with_batchnorm", {"batch_size": 1}, "client 0 with .* has one: change batch-size"),
        ("", {"min_replies": 20}, "min-replies = 20 is more than the 3 clients of a round"),
        ("", {"partitioner": "tests.contracts.brought:split_by_name"}, "a dict whose keys are not 0 to 2"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    model: str, keys: dict[str, Any], cause: str, engine: str
) -> None:
    with pytest.raises(ValueError, match=cause) as caught:
        run(model, engine=engine, **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_parameters_are_trained_and_saved(dtype: str, tmp_path: Path) -> None:
    result = run("complex_parameter", tmp_path / "run", dtype=dtype)
    assert result.parameters["phase"].dtype == ("complex64" if dtype == "float32" else "complex128")
    np.testing.assert_array_equal(load_result(tmp_path / "run").parameters["phase"], np.ones(2, np.complex64))


def test_lazy_modules_get_their_shapes_and_weights_from_the_seed() -> None:
    first, second = (run("lazy").parameters for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_callers_gradient_mode_changes_nothing(engine: str, mode: Any) -> None:
    wanted = run(engine=engine).parameters
    with mode():
        got = run(engine=engine).parameters
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_the_saved_model_loads_into_the_module(tmp_path: Path) -> None:
    result = run("Tied", tmp_path / "run")
    brought.Tied(10).load_state_dict(load_file(tmp_path / "run/model.safetensors"), strict=True)
    loaded = load_result(tmp_path / "run").parameters
    assert set(result.parameters) - set(loaded) == {"offset"}  # a buffer that is not persistent is not saved
    assert all(np.array_equal(loaded[name], result.parameters[name]) for name in loaded)


def test_results_can_be_pickled_and_copied() -> None:
    result = run()
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert other.config == result.config
        assert other.rows == result.rows


@pytest.mark.parametrize("name", ["split_as_dict", "split_lazily"])
def test_a_partitioner_may_return_any_parts(name: str) -> None:
    result = run(partitioner=f"tests.contracts.brought:{name}")
    assert [len(part) for part in result.partition] == [480, 479, 479]
    data = load("digits")
    partition(data, f"tests.contracts.brought:{name}", num_clients=3)
    assert data.y_train.any()  # the partitioner wrote into a copy


def table(path: Path, sign: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 3)), columns=list("abc"))
    frame.assign(label=sign * 2.5 * frame.a).to_csv(path, index=False)
    return {"dataset": "file", "data_file": str(path), "partitioner": "iid"}


def test_resume_refuses_other_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = table(tmp_path / "t.csv")
    run(out=tmp_path / "run", **keys)
    table(tmp_path / "t.csv", sign=-1.0)
    with pytest.raises(ValueError, match="the data or their partition are not those"):
        fedpisa.run({"num-server-rounds": 4}, resume=tmp_path / "run")
    table(tmp_path / "t.csv")
    assert fedpisa.run({"num-server-rounds": 4}, resume=tmp_path / "run").status == "finished"


def test_the_default_picture_of_a_regression_is_its_loss(tmp_path: Path) -> None:
    axes = run(**table(tmp_path / "t.csv")).plot()
    assert "loss" in axes.get_ylabel().lower()


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_outputs_that_are_not_numbers_in_evaluation_have_no_accuracy(engine: str) -> None:
    """NaN outputs in evaluation end the run as diverged in that round, without an accuracy."""
    result = run("NotANumber", engine=engine, per_client=True)
    assert result.status == "diverged"
    assert len(result.rows) == 1
    assert np.isnan(result.history[["test_loss", "test_accuracy"]]).all(axis=None)
    assert result.last("test_accuracy") is None
    clients = result.clients
    assert (clients.accuracy.isna() == ~np.isfinite(clients.loss)).all()
