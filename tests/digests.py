"""Digests of every algorithm's results, to compare two versions of the code bit for bit.

``python tests/digests.py OUT.json`` runs every algorithm with both engines in several settings, for three
small rounds each. It writes ``{name: {"model": ..., "metrics": ...}}``. For a refused combination it writes
``{"refused": "ValueError"}``. ``python tests/digests.py --compare A.json B.json`` names the differences. Only
files of the same machine and the same version of PyTorch can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

import fedpisa

ALGORITHMS = (
    "fedadmm",
    "fedavg",
    "feddr",
    "feddyn",
    "fedgia",
    "fednova",
    "fedpd",
    "fedprox",
    "fedsgd",
    "iceadmm",
    "iiadmm",
    "localsgd",
    "moon",
    "nsisa",
    "pisa",
    "scaffnew",
    "scaffold",
    "sisa",
)
WITHOUT_LOCAL_STEPS = ("fedsgd", "scaffnew")
ENGINES = ("loop", "vmap")
MLP = {"model": "mlp", "widths": [6]}
PARTIAL = {"fraction-train": 0.5}
SETTINGS = {
    "mlp": MLP,
    "simple-cnn": {"model": "simple-cnn"},
    "batch-norm": {"model": "digests:batch_norm_mlp"},
    "schedule": {**MLP, "schedule": "step", "schedule-every": 1, "schedule-factor": 0.5, "warmup-rounds": 1},
    "files": {**MLP, "state-memory": 0},
    "partial": {**MLP, **PARTIAL},
    "partial-files": {**MLP, **PARTIAL, "state-memory": 0},
    "partial-batch-norm": {"model": "digests:batch_norm_mlp", **PARTIAL},
}
FAULTS = {"dropout": 0.2, "crash": 0.1, "late": 0.1, "nan": 0.1, "corrupt": 0.1}
PRECONDITIONERS = ("identity", "adagrad", "rmsprop", "adam", "fisher", "hutchinson", "newton-schulz")
DUALS = ("pisa", "sisa", "nsisa", "fedgia", "fedpd", "iceadmm", "iiadmm", "scaffnew")
PENALISED = ("pisa", "sisa", "fedadmm", "feddr", "feddyn", "fedgia", "fedpd", "iceadmm", "iiadmm")
SERVER_STRATEGIES = (
    "fed-adam",
    "fed-yogi",
    "fed-adagrad",
    "fed-avg",
    "fed-avg-m",
    "fed-median",
    "fed-trimmed-avg",
    "krum",
    "multi-krum",
    "bulyan",
    "qfed-avg",
)
VARIANTS = {
    **{f"pisa {name}": {"algorithm": "pisa", "preconditioner": name} for name in PRECONDITIONERS},
    **{
        f"pisa {name} partial": {"algorithm": "pisa", "preconditioner": name, **PARTIAL}
        for name in PRECONDITIONERS
    },
    "pisa eta": {"algorithm": "pisa", "preconditioner": "adam", "eta": 0.05},
    "pisa gamma": {"algorithm": "pisa", "gamma": 0.9, "gamma-every": 2},
    "pisa gamma until": {"algorithm": "pisa", "gamma": 0.9, "gamma-until": 2},
    "pisa gamma partial": {"algorithm": "pisa", "gamma": 0.9, **PARTIAL},
    "pisa one step": {"algorithm": "pisa", "local-steps": 1},
    "pisa three steps": {"algorithm": "pisa", "local-steps": 3, "mu": 0.01},
    "pisa full batch": {"algorithm": "pisa", "batch-size": "full"},
    "pisa all batches": {"algorithm": "pisa", "batches-per-round": "all", "local-steps": 1},
    "pisa sum": {"algorithm": "pisa", "batches-per-round": "all", "gradient-reduction": "sum"},
    "sisa gamma": {"algorithm": "sisa", "gamma": 0.9},
    "nsisa simple-cnn partial": {"algorithm": "nsisa", "model": "simple-cnn", **PARTIAL},
    **{f"{name} drop": {"algorithm": name, "absent": "drop", **PARTIAL} for name in DUALS},
    **{
        f"{name} drop files": {"algorithm": name, "absent": "drop", **SETTINGS["partial-files"]}
        for name in DUALS
    },
    **{
        f"{name} fresh {setting}": {"algorithm": name, "absent": "fresh", **SETTINGS[setting]}
        for name in ("pisa", "sisa", "nsisa")
        for setting in ("partial", "partial-files")
    },
    **{f"{name} lambda": {"algorithm": name, "lambda": 0.01, "weighting": "uniform"} for name in PENALISED},
    "fedsgd adam": {"algorithm": "fedsgd", "optimizer": "adam", "learning-rate": 0.01},
    "fedsgd adam partial": {"algorithm": "fedsgd", "optimizer": "adam", "learning-rate": 0.01, **PARTIAL},
    "fedsgd adam schedule": {
        "algorithm": "fedsgd",
        "optimizer": "adam",
        "learning-rate": 0.01,
        **SETTINGS["schedule"],
    },
    "fedsgd momentum": {"algorithm": "fedsgd", "momentum": 0.9, "nesterov": True},
    "fedsgd rmsprop": {"algorithm": "fedsgd", "optimizer": "rmsprop", "learning-rate": 0.01},
    "fedavg momentum": {"algorithm": "fedavg", "momentum": 0.9, "weight-decay": 0.01},
    "fedavg epochs": {"algorithm": "fedavg", "local-steps": None, "local-epochs": 2},
    "fednova epochs": {"algorithm": "fednova", "local-steps": None, "local-epochs": 2, "momentum": 0.9},
    "scaffold momentum": {"algorithm": "scaffold", "momentum": 0.9},
    "scaffold momentum partial": {"algorithm": "scaffold", "momentum": 0.9, **PARTIAL},
    "feddyn momentum": {"algorithm": "feddyn", "momentum": 0.9},
    "fedadmm server step": {"algorithm": "fedadmm", "server-step": 0.7, **PARTIAL},
    "feddr relaxation": {"algorithm": "feddr", "relaxation": 1.5, **PARTIAL},
    "fedpd skip": {"algorithm": "fedpd", "skip-probability": 0.5},
    "scaffnew probable": {"algorithm": "scaffnew", "probability": 0.5, "momentum": 0.9},
    **{
        f"fedavg {name}": {"algorithm": "fedavg", "server-strategy": name, "fraction-train": 1.0}
        for name in SERVER_STRATEGIES
    },
    "fedavg fed-avg-m momentum": {
        "algorithm": "fedavg",
        "server-strategy": "fed-avg-m",
        "server-momentum": 0.9,
    },
    "fedavg multi-krum of three": {
        "algorithm": "fedavg",
        "server-strategy": "multi-krum",
        "server-num-nodes-to-select": 3,
    },
    "fedprox fed-adam partial": {"algorithm": "fedprox", "server-strategy": "fed-adam", **PARTIAL},
    "fedavg clipped": {
        "algorithm": "fedavg",
        "differential-privacy": "server-fixed-clipping",
        "noise-multiplier": 0.0,
        "clipping-norm": 0.1,
    },
    **{
        f"{name} faults": {"algorithm": name, **FAULTS, "pace": "lognormal", "pace-jitter": 0.5}
        for name in ("fedavg", "sisa", "scaffold", "iiadmm", "moon")
    },
    **{
        f"{name} on-off": {"algorithm": name, "availability": "on-off", "online-period": 2}
        for name in ("fedavg", "sisa", "feddyn")
    },
    **{
        f"{name} float64": {"algorithm": name, "dtype": "float64", "exact-diagnostics": True}
        for name in ("fedavg", "sisa", "scaffold", "fedsgd")
    },
    **{
        f"{name} cosine": {"algorithm": name, "schedule": "cosine", "schedule-end": 0.1}
        for name in ("fedavg", "sisa", "iceadmm")
    },
    **{f"{name} bfloat16": {"algorithm": name, "autocast": "bfloat16"} for name in ("fedavg", "sisa")},
    **{f"{name} blocks": {"algorithm": name, "cohort-block": 4} for name in ("fedavg", "sisa", "scaffold")},
    "refused scaffold fed-adam": {"algorithm": "scaffold", "server-strategy": "fed-adam"},
    "refused fedsgd fed-adam": {"algorithm": "fedsgd", "server-strategy": "fed-adam"},
    "refused qfed-avg schedule": {
        "algorithm": "fedavg",
        "server-strategy": "qfed-avg",
        **SETTINGS["schedule"],
    },
    "refused schedule keys": {"algorithm": "fedavg", **SETTINGS["schedule"], "schedule-keys": "sigma"},
    "refused sigma": {"algorithm": "sisa", "sigma": -1.0},
    "refused key": {"algorithm": "fedavg", "sigma": 1.0},
    "refused images": {"algorithm": "sisa", "model": "linear", "widths": [6]},
    "sisa schedule of sigma": {"algorithm": "sisa", **SETTINGS["schedule"], "schedule-keys": "sigma"},
    "sisa classes apart": {"algorithm": "sisa", "partitioner": "labels-per-client", "labels-per-client": 1},
}
"""Settings that only some algorithms have, by name; the defaults are the mlp and both engines."""


def batch_norm_mlp(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Multi-layer perceptron with BatchNorm: parameters and buffers."""
    size = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_outputs)
    )


def write_data(file: Path) -> None:
    """Write noise images with a bright place that depends on the class, so that a model can learn."""
    generator = np.random.default_rng(0)
    labels = np.arange(180) % 4
    images = generator.random((len(labels), 1, 28, 28), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 7 * label : 7 * label + 7] += 0.5
    np.savez(file, x=images - 0.5, y=labels)


def cases() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the name and the keys of every run."""
    for engine in ENGINES:
        for algorithm in ALGORITHMS:
            for setting, keys in SETTINGS.items():
                yield (
                    f"{algorithm} / {engine} / {setting}",
                    {"algorithm": algorithm, "engine": engine, **keys},
                )
        for name, keys in VARIANTS.items():
            model = {} if "model" in keys else MLP
            yield f"{name} / {engine}", {"engine": engine, **model, **keys}


def digests(directory: Path) -> dict[str, str]:
    """Return the digests of a run's tensors and of its metrics without measured seconds."""
    model, metrics = hashlib.sha256(), hashlib.sha256()
    for name, array in sorted(load_file(directory / "model.safetensors").items()):
        model.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = {key: value for key, value in json.loads(line).items() if not _is_clock(key)}
        metrics.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return {"model": model.hexdigest(), "metrics": metrics.hexdigest()}


def _is_clock(column: str) -> bool:
    """Return whether a column is measured time; simulated seconds are not."""
    return column.endswith("seconds") and column != "simulated_seconds"


def measure() -> dict[str, dict[str, str]]:
    """Run all cases; print each refusal's text to standard error too."""
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        write_data(data)
        base: dict[str, object] = {
            "dataset": "file",
            "data-file": str(data),
            "num-clients": 6,
            "num-server-rounds": 3,
            "batch-size": 8,
            "device": "cpu",
            "checkpoint-every": 0,
        }
        for number, (name, keys) in enumerate(cases()):
            steps = {} if keys["algorithm"] in WITHOUT_LOCAL_STEPS else {"local-steps": 2}
            place = Path(folder) / str(number)
            try:
                fedpisa.run({**base, **steps, **keys}, out=place)
            except ValueError as error:
                print(f"{name}: {error}", file=sys.stderr)
                found[name] = {"refused": type(error).__name__}
            else:
                found[name] = digests(place)
    return found


def compare(first: Path, second: Path) -> int:
    """Print the names that differ between two files; return their number."""
    one, other = (json.loads(file.read_text()) for file in (first, second))
    different = {name for name in one | other if one.get(name) != other.get(name)}
    for name in sorted(different):
        before, after = one.get(name), other.get(name)
        if before is None or after is None:
            print(f"{name}: only in {first if after is None else second}")
        else:
            keys = sorted(key for key in before | after if before.get(key) != after.get(key))
            print(f"{name}: {', '.join(keys)}")
    print(f"{len(different)} of {len(one | other)} differ")
    return len(different)


def main() -> int:
    """Write digests or compare two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"))
    given = parser.parse_args()
    if (given.out is None) == (given.compare is None):
        parser.error("give OUT.json, or --compare A.json B.json")
    if given.compare:
        return int(compare(*given.compare) > 0)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = measure()
    given.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    refused = sum("refused" in entry for entry in found.values())
    print(f"{len(found)} runs, {refused} of them refused, {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
