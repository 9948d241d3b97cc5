"""A library call does not change the process's settings; fedpisa's own processes are tuned."""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpisa import run
from fedpisa.runs.events import Event
from fedpisa.simulation.stacked import compat_torch

SMALL = {"num-server-rounds": 1, "num-clients": 5, "local-steps": 1, "batch-size": 16}
MODEL = "tests.test_guest:with_dropout"
IMAGES = {
    "dataset": "fedpisa.bench.workloads:images",
    "samples-per-client": 20,
    "partitioner": "natural",
    "model": "simple-cnn",
}
ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'fedpisa[ray]'")


def with_dropout(*, shape: tuple[int, ...], num_outputs: int) -> torch.nn.Module:
    """Return a model that draws random numbers in training."""
    layers = torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.LazyLinear(num_outputs)
    model = torch.nn.Sequential(*layers)
    model(torch.zeros(1, *shape))
    return model


def state() -> dict[str, object]:
    """Return the process-wide settings that a run must restore."""
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "gradients": torch.is_grad_enabled(),
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "path": list(sys.path),
        "umask": os.umask(os.umask(0o22)),
    }


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        *product(("loop", "vmap"), ({"model": "mlp"}, {"model": MODEL}, IMAGES)),
        pytest.param("ray", IMAGES, marks=ray),
    ],
)
def test_a_run_leaves_the_process_as_it_was(
    where: str, keys: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Interactive Python has "" on the path. Without it, a run would append the current directory.
    monkeypatch.syspath_prepend("")
    keys, fresh = {**SMALL, **keys, "engine": where}, state()
    run(keys)  # imported modules stay imported
    before, during = state(), list[object]()

    def listen(event: Event) -> None:
        during.append(state()["handlers"])

    run(keys, tmp_path / "run", on_event=listen)
    after = state()
    assert after["handlers"] == fresh["handlers"]
    assert not os.environ.keys() & {"RAY_USAGE_STATS_ENABLED", "PYTHONBREAKPOINT"}
    assert {name for name in before if before[name] != after[name]} == set()
    assert during
    assert all(handlers == before["handlers"] for handlers in during)


MEMORY = """
import gc, json, sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
import numpy
import fedpisa
from fedpisa.runs.events import RoundFinished
faults = []
def count(event):
    if isinstance(event, RoundFinished):
        faults.append(getrusage(RUSAGE_SELF).ru_minflt)
keys = {"engine": "vmap", "eval-every": 100, **json.loads(sys.argv[1])}
fedpisa.run({**keys, "num-server-rounds": 1})
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
x = numpy.ones(50_000_000)
peak = resident()
del x
given_back = peak - resident()
fedpisa.run({**keys, "num-server-rounds": 8}, on_event=count)
new = min(b - a for a, b in zip(faults, faults[1:]))
kept = []
for _ in range(3):  # what lies beside freed memory, and keeps it, differs from run to run
    gc.collect()
    kept.append(resident() - before)
    fedpisa.run({**keys, "num-server-rounds": 2})
print(json.dumps([given_back, min(kept), new]))
"""
LARGE = {"dataset": "fedpisa.bench.workloads:images", "samples-per-client": 20, "partitioner": "natural"}


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or platform.libc_ver()[0] != "glibc",
    reason="memory is read from /proc, and reserved in glibc's heap",
)
@pytest.mark.parametrize(
    ("keys", "pages"),
    [
        ({}, 1_000),
        (IMAGES, 1_000),
        # Ten stacked models are 57 MB: without a reservation, each stack takes 14,000 new pages.
        ({**LARGE, "model": "mlp", "widths": [1024, 600], "num-clients": 10, "local-steps": 2}, 1_000),
    ],
    ids=["logistic", "cnn", "mlp"],
)
def test_a_run_reuses_its_memory_and_returns_it(keys: dict[str, object], pages: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, json.dumps(keys)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    given_back, kept, faults = json.loads(printed.stdout)
    assert given_back > 390e6
    assert kept < 100e6
    assert faults < pages


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("keys", [{"algorithm": "sisa"}, {"algorithm": "fedavg"}, {"algorithm": "fedprox"}])
def test_an_unknown_torch_takes_the_public_way(
    keys: dict[str, object], missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**SMALL, "num-server-rounds": 3, "engine": "vmap", "model": "mlp", **keys}
    known = run(keys)
    if missing:
        monkeypatch.setattr(compat_torch, "functorch", None)
    else:
        monkeypatch.setattr(compat_torch, "TESTED", ((2, 0), (2, 1)))
    compat_torch.private.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            unknown = run(keys)
        assert not compat_torch.private()
    finally:
        compat_torch.private.cache_clear()
    assert len([one for one in caught if "stacked engine is tuned for" in str(one.message)]) == 1
    for name, value in known.parameters.items():
        np.testing.assert_allclose(unknown.parameters[name], value, rtol=1e-5, atol=1e-7)


def test_this_torch_is_tested() -> None:
    assert compat_torch.private()


def test_private_torch_is_in_one_file() -> None:
    package = Path(compat_torch.__file__).parents[2]
    private = ("torch._", "torch.utils._", "_functorch")
    found = {
        file.name
        for file in package.rglob("*.py")
        for line in file.read_text().splitlines()
        if line.lstrip().startswith(("import ", "from ")) and any(name in line for name in private)
    }
    assert found == {"compat_torch.py"}
