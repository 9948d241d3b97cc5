"""Every algorithm on six splits of a small MNIST, under one budget; writes ``runs.csv`` and prints the tables.

Each algorithm has six settings, `GRIDS`. They are compared on each split by the mean validation accuracy over the last
ten rounds of a run with seed 100, in which a fifth of each client's training samples is held out. The best setting is
run on all training samples with the seeds 0, 1 and 2, and these runs are reported. Runs that ``runs.csv`` contains are
not repeated. The row with Muon needs the extra ``optimizers``.

    FEDPISA_DATA=/path/to/data OMP_NUM_THREADS=1 python experiments/family/run.py --jobs 2
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import fedpisa

STEPS, BATCH = 10, 64
"""Mini-batch gradients of each client in each round, and their size: the same for all algorithms."""

COMMON: Mapping[str, object] = {
    "dataset": "mnist-t10k",
    "model": "mlp",
    "widths": [64],
    "num-clients": 10,
    "num-server-rounds": 50,
    "batch-size": BATCH,
}
SPLITS: Mapping[str, Mapping[str, object]] = {
    **{
        f"labels-per-client {k}": {"partitioner": "labels-per-client", "labels-per-client": k}
        for k in (1, 2, 3)
    },
    **{
        f"label-dirichlet {alpha}": {"partitioner": "label-dirichlet", "dirichlet-alpha": alpha}
        for alpha in (0.1, 0.5)
    },
    "label-dirichlet 0.1, 2 of 10 clients": {
        "partitioner": "label-dirichlet",
        "dirichlet-alpha": 0.1,
        "fraction-train": 0.2,
    },
}
VALIDATION: Mapping[str, object] = {"validation-fraction": 0.2}
TUNING_SEED, SEEDS, TARGET, LAST = 100, (0, 1, 2), 0.9, 10

Values = Mapping[str, object]
_LOCAL: Values = {"local-steps": STEPS}  # that many steps of one mini-batch
_AT_ONCE: Values = {"batches-per-round": STEPS}  # one step with the mean gradient at the global model
_RATES = {"learning-rate": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)}
_RATE3 = {"learning-rate": (0.03, 0.1, 0.3)}
_PISA = {"sigma": (0.3, 3.0), "rho": (3.0, 10.0, 30.0)}
_SISA = {"sigma": (3.0, 10.0), "rho": (100.0, 300.0, 1000.0)}
_SPECTRAL = {"sigma": (0.3, 1.0), "rho": (1.0, 3.0, 10.0)}
_ADAM = {"optimizer": "adam", "sigma": 3.0}  # with rho = sigma and one step, FedSGD with Adam
_MOMENTUM = {"optimizer": "sgd", "momentum": 0.5, "learning-rate": 1.0}
_OPTIMIZED = "consensus_optimizer:OptimizedPisa"

GRIDS: dict[str, tuple[str, Values, Mapping[str, Sequence[float]]]] = {
    "fedavg": ("fedavg", _LOCAL, _RATES),
    "localsgd": ("localsgd", _LOCAL, _RATES),
    "fedsgd": ("fedsgd", _AT_ONCE, _RATES),
    "fedsgd, Adam": ("fedsgd", {**_AT_ONCE, "optimizer": "adam"}, _RATES),
    "fedsgd, Muon": ("fedsgd", {**_AT_ONCE, "optimizer": "muon-adamw"}, _RATES),
    "fedprox": ("fedprox", _LOCAL, {**_RATE3, "proximal-mu": (0.01, 0.1)}),
    "fednova": ("fednova", _LOCAL, _RATES),
    "moon": ("moon", _LOCAL, {**_RATE3, "contrastive-mu": (0.1, 1.0)}),
    "scaffold": ("scaffold", _LOCAL, _RATES),
    "scaffnew": ("scaffnew", {"probability": 1 / STEPS}, _RATES),
    "feddyn": ("feddyn", _LOCAL, {**_RATE3, "sigma": (0.1, 1.0)}),
    "fedadmm": ("fedadmm", _LOCAL, {**_RATE3, "sigma": (0.1, 1.0)}),
    "fedpd": ("fedpd", _LOCAL, {**_RATE3, "sigma": (0.1, 1.0)}),
    "feddr": ("feddr", _LOCAL, {**_RATE3, "sigma": (0.1, 1.0)}),
    "iceadmm": ("iceadmm", _LOCAL, {"sigma": (3.0, 10.0), "proximity": (10.0, 30.0, 100.0)}),
    "iiadmm": ("iiadmm", _LOCAL, {"sigma": (0.3, 3.0), "proximity": (3.0, 10.0, 30.0)}),
    "fedgia": ("fedgia", _AT_ONCE, {"sigma": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)}),
    "pisa": ("pisa", _AT_ONCE, _PISA),
    "sisa": ("sisa", _AT_ONCE, _SISA),
    "nsisa": ("nsisa", _AT_ONCE, {"sigma": (30.0, 100.0), "rho": (30.0, 100.0, 300.0)}),
    "pisa, 10 local steps": ("pisa", _LOCAL, _PISA),
    "sisa, 10 local steps": ("sisa", _LOCAL, _SISA),
    "sisa, amsgrad": (
        "sisa",
        {**_AT_ONCE, "amsgrad": True},
        {"sigma": (0.3, 3.0), "rho": (10.0, 30.0, 100.0)},
    ),
    "spectral-pisa": ("spectral-pisa", _AT_ONCE, _SPECTRAL),
    "spectral-pisa, 10 local steps": (
        "spectral-pisa",
        _LOCAL,
        {"sigma": (0.3, 1.0), "rho": (3.0, 10.0, 30.0)},
    ),
    "pisa, Adam on the consensus": (
        _OPTIMIZED,
        {**_AT_ONCE, **_ADAM},
        {"rho": (3.0, 10.0), "learning-rate": (0.003, 0.01, 0.03)},
    ),
    "pisa, 10 local steps, Adam on the consensus": (
        _OPTIMIZED,
        {**_LOCAL, **_ADAM, "rho": 10.0},
        {"sigma": (0.3, 3.0), "learning-rate": (0.003, 0.01, 0.03)},
    ),
    "pisa, momentum on the consensus": (_OPTIMIZED, {**_AT_ONCE, **_MOMENTUM}, _PISA),
    "pisa, 10 local steps, momentum on the consensus": (_OPTIMIZED, {**_LOCAL, **_MOMENTUM}, _PISA),
}
"""For each row: the algorithm, how it spends the budget, and its six settings."""
FRESH = ("pisa", "sisa", "pisa, 10 local steps", "sisa, 10 local steps", "spectral-pisa")
"""Rows that the splits with absent clients also have with ``absent = "fresh"``."""
GRIDS |= {
    f"{row}, fresh": (algorithm, {**spending, "absent": "fresh"}, grid)
    for row, (algorithm, spending, grid) in GRIDS.items()
    if row in FRESH
}

COLUMNS = ("row", "split", "settings", "seed", "status", "validation", "final", "best", "rounds_to_target")
Run = tuple[str, str, str, int]
"""The row, the split, the settings as JSON, the seed."""


def cells(rows: Iterable[str] = GRIDS) -> list[tuple[str, str]]:
    """Return the pairs of a row and a split; with all clients in each round, ``fresh`` is the row without it."""
    return [
        (row, split)
        for row, split in itertools.product(rows, SPLITS)
        if not row.endswith("fresh") or "fraction-train" in SPLITS[split]
    ]


def settings(row: str) -> list[str]:
    """Return the six settings of a row, as JSON."""
    grid = GRIDS[row][2]
    return [json.dumps(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def measure(run: Run) -> dict[str, object]:
    """Return the row of `runs.csv` for one run."""
    row, split, chosen, seed = run
    algorithm, spending, _ = GRIDS[row]
    keys = {**COMMON, **SPLITS[split], **spending, **json.loads(chosen), "algorithm": algorithm, "seed": seed}
    tuning = seed == TUNING_SEED
    result = fedpisa.run({**keys, **VALIDATION} if tuning else keys)
    accuracies = result.history["test_accuracy"].tolist()
    # A run that diverged ends early. The accuracy of its last finite model is not comparable.
    finished = result.status == "finished"
    validation = mean(result.history["validation_accuracy"].tolist()[-LAST:]) if tuning and finished else 0.0
    return {
        "row": row,
        "split": split,
        "settings": chosen,
        "seed": seed,
        "status": result.status,
        "validation": validation if tuning else None,
        "final": accuracies[-1] if finished else 0.0,
        "best": result.best(),
        "rounds_to_target": result.rounds_to(TARGET) if finished else None,
    }


def train(runs: Iterable[Run], file: Path, jobs: int) -> dict[Run, dict[str, str]]:
    """Run what the file lacks, and return all its runs."""
    known = read(file)
    missing = [run for run in runs if run not in known]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = [pool.submit(measure, run) for run in missing]
        for number, done in enumerate(as_completed(waiting), 1):
            append(file, done.result())
            print(f"\r{number} of {len(missing)} runs", end="", flush=True)
    if missing:
        print()
    return read(file)


def read(file: Path) -> dict[Run, dict[str, str]]:
    """Return the runs in the file."""
    if not file.exists():
        return {}
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(row["row"], row["split"], row["settings"], int(row["seed"])): row for row in rows}


def append(file: Path, row: Mapping[str, object]) -> None:
    """Add one run to the file."""
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def best_setting(row: str, split: str, runs: Mapping[Run, Mapping[str, str]]) -> str:
    """Return the setting with the highest validation accuracy over the last rounds, on the tuning seed."""
    return max(settings(row), key=lambda chosen: float(runs[row, split, chosen, TUNING_SEED]["validation"]))


def table(split: str, runs: Mapping[Run, Mapping[str, str]]) -> Iterator[str]:
    """Yield a split's table in Markdown, the best row first."""
    lines = []
    for row in GRIDS:
        if any((row, split, chosen, TUNING_SEED) not in runs for chosen in settings(row)):
            continue
        chosen = best_setting(row, split, runs)
        three = [runs[row, split, chosen, seed] for seed in SEEDS]
        final, best = ([100 * float(run[name]) for run in three] for name in ("final", "best"))
        reached = [int(run["rounds_to_target"]) for run in three if run["rounds_to_target"]]
        rounds = f"{mean(reached):.0f}" if reached else "–"
        rounds += f" ({len(reached)} of {len(three)})" if 0 < len(reached) < len(three) else ""
        diverged = sum(run["status"] != "finished" for run in three)
        values = ", ".join(f"{key} {value:g}" for key, value in json.loads(chosen).items())
        lines.append(
            (
                -mean(final),
                f"| {row} | {values} | {mean(final):.1f} ± {stdev(final):.1f} | {mean(best):.1f} ± {stdev(best):.1f} "
                f"| {rounds} |" + (f" {diverged} diverged" if diverged else ""),
            )
        )
    yield f"**{split}**\n"
    yield "| algorithm | chosen | final | best | rounds to 90 % |"
    yield "| --- | --- | --- | --- | --- |"
    yield from (line for _, line in sorted(lines))
    yield ""


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--rows", nargs="*", default=list(GRIDS), choices=list(GRIDS), help="rows to run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("runs.csv"))
    options = parser.parse_args()
    tuning = [
        (row, split, chosen, TUNING_SEED) for row, split in cells(options.rows) for chosen in settings(row)
    ]
    runs = train(tuning, options.out, options.jobs)
    final = [
        (row, split, best_setting(row, split, runs), seed)
        for row, split in cells(options.rows)
        for seed in SEEDS
    ]
    runs = train(final, options.out, options.jobs)
    for split in SPLITS:
        print("\n".join(table(split, runs)))


if __name__ == "__main__":
    main()
