"""Runs whose models take several inputs, by name or in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.stacked.grid import choose_path
from tests.simulation.several_inputs import image_samples, text_samples

HERE = "tests.simulation.several_inputs"
COLUMNS = ["train_loss", "test_loss", "test_accuracy"]
CASES = [("texts", "MeanOfTokens"), ("images", "ImageAndTable")]
BASE = {"num-clients": 3, "num-server-rounds": 3, "batch-size": 4, "local-steps": 5, "dtype": "float64"}


def settings(dataset: str, model: str, **keys: Any) -> dict[str, Any]:
    named = {
        "dataset": f"{HERE}:{dataset}",
        "model": f"{HERE}:{model}",
        "algorithm": "fedavg",
        "partitioner": "iid",
    }
    return {**BASE, **named, **{key.replace("_", "-"): value for key, value in keys.items()}}


def run(dataset: str, model: str, out: Path | None = None, **keys: Any) -> Any:
    return fedpisa.run(settings(dataset, model, **keys), out)


def differences(one: Any, other: Any) -> float:
    """Return the largest difference of two runs' parameters and losses."""
    pairs = [(one.parameters[name], other.parameters[name]) for name in one.parameters]
    pairs += [(one.history[column], other.history[column]) for column in COLUMNS]
    assert one.parameters.keys() == other.parameters.keys()
    return max(float(np.nanmax(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


@pytest.mark.parametrize("keys", [{}, {"partitioner": "label-dirichlet"}, {"algorithm": "sisa"}], ids=str)
@pytest.mark.parametrize(("dataset", "model"), CASES)
def test_engines_agree(dataset: str, model: str, keys: dict[str, Any]) -> None:
    config = settings(dataset, model, **keys)
    loop, stacked = (fedpisa.run({**config, "engine": engine}) for engine in ("loop", "vmap"))
    federation = Federation(RunConfig.from_mapping(config))
    assert choose_path(federation.task, federation.data)[0] == "stacked"
    assert differences(loop, stacked) < 1e-12
    assert loop.history["train_loss"].iloc[-1] < loop.history["train_loss"].iloc[1]


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize(("dataset", "model"), CASES)
def test_a_model_of_one_array_learns_the_same(dataset: str, model: str, engine: str) -> None:
    """A single bit of the large integers lost would show."""
    several = run(dataset, model, engine=engine)
    one = run(f"{dataset}_in_one_array", f"{model}InOneArray", engine=engine)
    assert differences(several, one) < 1e-12


@pytest.mark.parametrize(("dataset", "model"), CASES)
def test_the_first_round_is_a_gradient_step_of_plain_pytorch(dataset: str, model: str) -> None:
    config = settings(dataset, model, batch_size="full", local_steps=1, num_server_rounds=1, num_clients=1)
    federation = Federation(RunConfig.from_mapping(config))
    module = federation.task.module.train()
    x, y = (text_samples if dataset == "texts" else image_samples)(50, 0)
    named = x if isinstance(x, dict) else dict(zip(("image", "table", "number"), x, strict=True))
    tensors = {name: torch.from_numpy(values) for name, values in named.items()}
    tensors = {
        name: value.double() if value.is_floating_point() else value for name, value in tensors.items()
    }
    loss = F.cross_entropy(module(**tensors), torch.from_numpy(y))
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    trained = fedpisa.run(config).parameters
    for (name, parameter), gradient in zip(module.named_parameters(), gradients, strict=True):
        wanted = parameter.detach() - 0.1 * gradient
        np.testing.assert_allclose(trained[name], wanted.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dataset", "model", "keys"),
    [
        ("texts", "MeanOfTokens", {"algorithm": "sisa", "preconditioner": "fisher"}),
        ("images", "ImageAndTable", {"algorithm": "sisa", "preconditioner": "hutchinson"}),
        ("images", "Noisy", {"max_grad_norm": 0.1, "drop_last": True}),
        ("texts", "Attention", {}),
        ("next_tokens", "EachToken", {}),
        ("own_torch_data", "MeanOfTokens", {}),
        ("images", "sized", {"task": "tests.tasks.own_task:CrossEntropy"}),
        ("images", "ImageAndTable", {"algorithm": "moon"}),
    ],
)
def test_engines_agree_on_all_that_derives(dataset: str, model: str, keys: dict[str, Any]) -> None:
    keys = {"num_server_rounds": 2, **keys}
    loop, stacked = (run(dataset, model, engine=engine, **keys) for engine in ("loop", "auto"))
    pairs = [(loop.parameters[name], stacked.parameters[name]) for name in loop.parameters]
    for one, other in [*pairs, (loop.history["test_loss"], stacked.history["test_loss"])]:
        # Hutchinson's preconditioner divides by small curvatures.
        np.testing.assert_allclose(
            one, other, rtol=0, atol=1e-12 if "hutchinson" not in keys.values() else 1e-10
        )


def test_samples_made_on_demand_are_those_that_are_stored() -> None:
    stored, made = (run(name, "MeanOfTokens", partitioner="natural") for name in ("texts", "made_on_demand"))
    assert differences(stored, made) == 0


def test_natural_clients_validation_measures_by_client_and_micro_batches() -> None:
    keys: dict[str, Any] = {"partitioner": "natural", "validation_fraction": 0.2, "per_client": True}
    whole = run("texts", "MeanOfTokens", **keys)
    pieces = run("texts", "MeanOfTokens", micro_batch_size=2, **keys)
    assert np.isfinite(whole.history["validation_loss"]).all()
    assert differences(whole, pieces) < 1e-12


def test_a_model_that_writes_into_its_inputs_changes_no_data() -> None:
    writes, keeps = (run("texts", model, engine="loop") for model in ("WritesInputs", "MeanOfTokens"))
    pd.testing.assert_frame_equal(writes.history[COLUMNS], keeps.history[COLUMNS])


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_resumed_run_has_the_same_bytes(engine: str, tmp_path: Path) -> None:
    config = settings("texts", "MeanOfTokens", engine=engine, algorithm="scaffold")
    long = fedpisa.run(config, tmp_path / "long")
    fedpisa.run({**config, "num-server-rounds": 2}, tmp_path / "cut")
    resumed = fedpisa.run({**config, "num-server-rounds": 3}, resume=tmp_path / "cut")
    pd.testing.assert_frame_equal(resumed.history[COLUMNS], long.history[COLUMNS], check_exact=True)
    assert all(np.array_equal(resumed.parameters[name], long.parameters[name]) for name in long.parameters)


@pytest.mark.parametrize(
    ("dataset", "model", "keys", "cause"),
    [
        ("texts", "WithoutMask", {}, r"attention_mask.*forward\(self, input_ids, attention_mask, weight\)"),
        ("images", "MeanOfTokens", {}, r"forward\(self, x0, x1, x2\)"),
        (
            "one_label_in_an_array",
            "ImageAndTable",
            {},
            "targets of shape .50, 1.; give one target per sample",
        ),
        (
            "next_tokens",
            "Recurrent",
            {"partitioner": "consecutive", "task": "language", "carry_state": "round"},
            "a recurrent state that is carried or penalised takes one array of features.*: remove these keys",
        ),
        ("texts", "MeanOfTokens", {"augment": "crop-flip"}, 'one array of features.*set augment = "none"'),
        (
            "images",
            "ImageAndTable",
            {"partitioner": "feature-noise"},
            "feature-noise takes one array of features",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    dataset: str, model: str, keys: dict[str, Any], cause: str
) -> None:
    with pytest.raises(ValueError, match=cause) as caught:
        run(dataset, model, **keys)
    assert "\n" not in str(caught.value)


def test_a_model_by_name_is_refused() -> None:
    config = {key: value for key, value in settings("texts", "MeanOfTokens").items() if key != "model"}
    with pytest.raises(
        ValueError, match=r"'logistic' takes one array.*input_ids \(6,\) int64.*module:callable"
    ):
        fedpisa.run(config)
