"""A user's own component is one file, named ``module:Class``, and runs on both engines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.families import find, keys_of

ROOT = Path(__file__).parents[2]
SMALL = {"num-server-rounds": 3, "num-clients": 4, "model": "mlp", "widths": [8], "dtype": "float64"}

ALGORITHM = '''
"""FedAvg with a server that goes further: a client's update, a server, and a key for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.authoring import (
    Algorithm,
    Arrays,
    Cohort,
    Epochs,
    Gradient,
    LocalUpdate,
    MiniBatches,
    LocalResult,
    ParamLayout,
    Positive,
    PositiveInt,
    StepSize,
    weighted_mean,
)


@final
@dataclass(frozen=True)
class Descent(LocalUpdate):
    """Plain gradient steps that count themselves.

    Parameters
    ----------
    reach
        Length of a step.
    batch_size
        Samples per mini-batch.
    """

    reach: StepSize = 0.1
    batch_size: PositiveInt = 16

    def batch_sampler(self):
        return Epochs(self.batch_size)

    def init(self, params_P):
        return {"rounds": params_P.new_zeros(())}

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        return {"v": down["params"]}

    def step(self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches) -> Arrays:
        return {"v": work["v"] - self.reach * gradient(work["v"], batch)[1]}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        return LocalResult({"move": work["v"] - down["params"]}, {"rounds": state["rounds"] + 1}, {})


@final
@dataclass(frozen=True)
class Further(Algorithm):
    """Move by a multiple of the mean move.

    Parameters
    ----------
    local_update
        The client.
    stride
        The multiple.
    patience
        No step size.
    """

    local_update: Descent = Descent()
    stride: StepSize = 1.0
    patience: Positive = 1.0

    def init(self, params_P, layout: ParamLayout) -> Arrays:
        return {"params": params_P}

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        move_P = weighted_mean(self.weights(cohort), uploads_S["move"])
        return {"params": server["params"] + self.stride * move_P}
'''


@pytest.fixture
def drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that drops a file into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def on_both_engines(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the model of a run, and check that both engines give it."""
    loop, stacked = (fedpisa.run({**SMALL, **config, "engine": engine}) for engine in ("loop", "vmap"))
    assert loop.status == stacked.status == "finished"
    for name, wanted in loop.parameters.items():
        np.testing.assert_allclose(stacked.parameters[name], wanted, rtol=1e-11, atol=1e-13)
    return dict(stacked.parameters)


def test_an_algorithm_is_one_file(drop: Any) -> None:
    drop("my_fedpisa_algorithm", ALGORITHM)
    ours = {"algorithm": "my_fedpisa_algorithm:Further", "reach": 0.2, "batch-size": 16}
    got = on_both_engines(ours)
    # With stride 1 it is FedAvg.
    wanted = fedpisa.run({**SMALL, "algorithm": "fedavg", "learning-rate": 0.2, "batch-size": 16})
    for name, value in wanted.parameters.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-12)
    further = on_both_engines({**ours, "stride": 1.5})
    assert any(not np.allclose(further[name], got[name]) for name in got)
    with pytest.raises(ValueError, match="key 'stride' = -1: must be greater than 0"):
        fedpisa.run({**SMALL, **ours, "stride": -1})


def test_the_step_sizes_of_an_algorithm_of_ones_own_are_scheduled(drop: Any) -> None:
    """A schedule finds a step size by its annotation, not by its name.

    By default it scales the client's step size. ``schedule-keys`` may name the server's too.
    """
    drop("my_fedpisa_algorithm", ALGORITHM)
    ours = {"algorithm": "my_fedpisa_algorithm:Further", "reach": 0.2, "batch-size": 16}
    falling = {"schedule": "linear", "warmup-rounds": 1}
    got = on_both_engines({**ours, **falling})
    fedavg = {**SMALL, "algorithm": "fedavg", "learning-rate": 0.2, "batch-size": 16, **falling}
    for name, value in fedpisa.run(fedavg).parameters.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-12)
    named = on_both_engines({**ours, **falling, "schedule-keys": "reach"})
    assert all(np.array_equal(named[name], got[name]) for name in got)
    # A factor of 1/2 in every round halves the stride.
    drop("my_fedpisa_schedule", "def half() -> float:\n    return 0.5\n")
    constant = {"schedule": "my_fedpisa_schedule:half", "schedule-keys": "stride"}
    halved, wanted = on_both_engines({**ours, **constant}), on_both_engines({**ours, "stride": 0.5})
    assert all(np.array_equal(halved[name], wanted[name]) for name in wanted)
    with pytest.raises(
        ValueError, match=r"'patience', which cannot be scheduled here.*\(what can: reach, stride\)"
    ):
        fedpisa.run({**SMALL, **ours, **falling, "schedule-keys": "patience"})


def test_an_algorithm_without_step_sizes_has_no_schedule(drop: Any) -> None:
    drop("my_unscheduled_algorithm", ALGORITHM.replace("StepSize", "Positive"))
    with pytest.raises(
        ValueError, match="nothing to act on: no key of Further is a StepSize or an InverseStepSize"
    ):
        fedpisa.run({**SMALL, "algorithm": "my_unscheduled_algorithm:Further", "schedule": "linear"})


def documented() -> str:
    """Return the code of the documentation's example."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/preconditioner.md").read_text(), re.S)
    return str(code)


def test_the_documented_preconditioner_is_one_file(drop: Any) -> None:
    drop("mine", documented())
    config = {"algorithm": "pisa", "preconditioner": "mine:Magnitude", "rho": 20.0, "floor": 0.1}
    got = on_both_engines(config)
    plain = fedpisa.run({**SMALL, "algorithm": "pisa", "rho": 20.0})
    assert any(not np.allclose(plain.parameters[name], got[name]) for name in got)
    keys = keys_of(find("preconditioner", "mine:Magnitude"))
    assert (list(keys), keys["floor"].doc) == (["eta", "floor"], "Added to ``Q``.")


def test_what_is_no_preconditioner_is_refused(drop: Any) -> None:
    drop("my_fedpisa_thing", "class Thing: ...\n")
    with pytest.raises(
        ValueError, match="the preconditioner is a Thing: give an instance of a subclass"
    ) as caught:
        fedpisa.run({**SMALL, "algorithm": "pisa", "preconditioner": "my_fedpisa_thing:Thing"})
    assert "\n" not in str(caught.value)
