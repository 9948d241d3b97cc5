"""PISA with automatic penalties against a grid; writes ``runs.csv`` and prints the table.

The twelve settings of `GRID` are compared on each problem by the test accuracy of a run with seed 100. The best setting
and the automatic one run with the seeds 3, 4 and 5. Runs that ``runs.csv`` contains are not repeated.

    FEDPISA_DATA=/path/to/data OMP_NUM_THREADS=1 python experiments/automatic/run.py --jobs 2
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import fedpisa

ONE: Mapping[str, object] = {"partitioner": "labels-per-client", "labels-per-client": 1}
TWO: Mapping[str, object] = {"partitioner": "labels-per-client", "labels-per-client": 2}
DIRICHLET: Mapping[str, object] = {"partitioner": "label-dirichlet", "dirichlet-alpha": 0.1}
FEW: Mapping[str, object] = {"fraction-train": 0.2}
MNIST: Mapping[str, object] = {
    "dataset": "mnist-t10k",
    "model": "mlp",
    "widths": [64],
    "batch-size": 64,
    "batches-per-round": 10,
}
PROBLEMS: Mapping[str, Mapping[str, object]] = {
    "digits, logistic, 1 label": {"dataset": "digits", "model": "logistic", **ONE},
    "digits, logistic, Dir(0.1)": {"dataset": "digits", "model": "logistic", **DIRICHLET},
    "digits, mlp, 1 label": {"dataset": "digits", "model": "mlp", **ONE},
    "digits, mlp, 2 labels": {"dataset": "digits", "model": "mlp", **TWO},
    "mnist-t10k, mlp, 1 label": {**MNIST, **ONE},
    "mnist-t10k, mlp, Dir(0.1)": {**MNIST, **DIRICHLET},
    "a9a, logistic, 1 label": {"dataset": "a9a", "model": "logistic", **ONE},
    "a9a, logistic, Dir(0.5)": {"dataset": "a9a", "model": "logistic", **DIRICHLET, "dirichlet-alpha": 0.5},
    "digits, mlp, 2 labels, 2 of 10 clients": {"dataset": "digits", "model": "mlp", **TWO, **FEW},
    "mnist-t10k, mlp, Dir(0.1), 2 of 10 clients": {**MNIST, **DIRICHLET, **FEW},
}
COMMON: Mapping[str, object] = {
    "algorithm": "pisa",
    "num-clients": 10,
    "num-server-rounds": 50,
    "eval-every": 50,
}
AUTOMATIC = json.dumps({"sigma": "auto", "rho": "auto"})
GRID = [
    json.dumps({"sigma": sigma, "rho": rho})
    for sigma, rho in itertools.product((0.1, 0.3, 1.0, 3.0), (1.0, 3.0, 10.0))
]
TUNING_SEED, SEEDS = 100, (3, 4, 5)
COLUMNS = ("problem", "settings", "seed", "accuracy")
Run = tuple[str, str, int]
"""The problem, the settings as JSON, the seed."""


def measure(run: Run) -> tuple[str, str, int, float]:
    """Return the row of ``runs.csv`` for one run; one that diverged has accuracy 0."""
    problem, settings, seed = run
    result = fedpisa.run({**COMMON, **PROBLEMS[problem], **json.loads(settings), "seed": seed})
    finished = result.status == "finished"
    return *run, float(result.history["test_accuracy"].iloc[-1]) if finished else 0.0


def train(runs: Iterable[Run], file: Path, jobs: int) -> dict[Run, float]:
    """Run what the file lacks, and return the accuracies of all its runs."""
    known = read(file)
    missing = [run for run in runs if run not in known]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool, file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if not known:
            writer.writerow(COLUMNS)
        for done in as_completed([pool.submit(measure, run) for run in missing]):
            writer.writerow(done.result())
            stream.flush()
    return read(file)


def read(file: Path) -> dict[Run, float]:
    """Return the accuracies of the runs in the file."""
    if not file.exists():
        return {}
    with file.open(newline="") as stream:
        return {
            (row["problem"], row["settings"], int(row["seed"])): float(row["accuracy"])
            for row in csv.DictReader(stream)
        }


def cell(values: list[float]) -> str:
    """Return mean and standard deviation in percent.

    Examples
    --------
    >>> cell([0.9, 0.92])
    '91.0 ± 1.4'
    """
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("runs.csv"))
    options = parser.parse_args()
    print("| problem | chosen sigma, rho | tuned | automatic | difference |")
    print("| --- | --- | --- | --- | --- |")
    for problem in PROBLEMS:
        runs = train([(problem, values, TUNING_SEED) for values in GRID], options.out, options.jobs)
        best = max(GRID, key=lambda values: runs[problem, values, TUNING_SEED])
        both = [(problem, values, seed) for values in (best, AUTOMATIC) for seed in SEEDS]
        runs = train(both, options.out, options.jobs)
        tuned, automatic = ([runs[problem, values, seed] for seed in SEEDS] for values in (best, AUTOMATIC))
        difference = cell([b - a for a, b in zip(tuned, automatic, strict=True)])
        values = ", ".join(f"{value:g}" for value in json.loads(best).values())
        print(f"| {problem} | {values} | {cell(tuned)} | {cell(automatic)} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
