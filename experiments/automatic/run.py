"""PISA with penalties from a measured curvature against a grid; writes ``runs.csv`` and prints the table.

The twelve settings of `GRID` are compared on each problem by the test accuracy of a run with seed 100. The best setting
and the measured one run with the seeds 0, 1 and 2. Runs that ``runs.csv`` contains are not repeated.

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
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

import fedpisa
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.config.run import RunConfig
from fedpisa.datasets.client_data import rows
from fedpisa.simulation.federation import Federation

ONE: Mapping[str, object] = {"partitioner": "labels-per-client", "labels-per-client": 1}
TWO: Mapping[str, object] = {"partitioner": "labels-per-client", "labels-per-client": 2}
DIRICHLET: Mapping[str, object] = {"partitioner": "label-dirichlet", "dirichlet-alpha": 0.1}
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
}
COMMON: Mapping[str, object] = {
    "algorithm": "pisa",
    "num-clients": 10,
    "num-server-rounds": 50,
    "eval-every": 50,
}
MEASURED = "measured"
SIGMA_SHARE, RHO_SHARE = 0.15, 1.5
"""The measured ``sigma`` and ``rho`` as multiples of the curvature."""
GRID = [
    json.dumps({"sigma": sigma, "rho": rho})
    for sigma, rho in itertools.product((0.1, 0.3, 1.0, 3.0), (1.0, 3.0, 10.0))
]
TUNING_SEED, SEEDS = 100, (0, 1, 2)
COLUMNS = ("problem", "settings", "seed", "accuracy")
Run = tuple[str, str, int]
"""The problem, the settings as JSON or `MEASURED`, the seed."""


def curvature(config: RunConfig) -> float:
    """Return ``(sum_i n_i ||H_i g_i||^2 / sum_i n_i ||g_i||^2)^{1/2}`` at the first model and on round 1's samples."""
    federation = Federation(config)
    task, params_P = federation.task, federation.task.initial_params()
    sampler = federation.algorithm.local_update.batch_sampler()
    image = length = 0.0
    for client_id in range(config.num_clients):
        client = federation.client(client_id)
        size = len(client.x)
        indices = sampler.draw(np.array([size]), np.array([client_id]), 1, config.seed)
        index_CB = torch.from_numpy(indices.index_SKCB[0, 0])
        weight_CB = torch.from_numpy(indices.weight_SKCB[0, 0]).to(client.x)
        batch = MiniBatches(rows(client.x, index_CB), rows(client.y, index_CB), weight_CB)
        gradient = AutogradGradient(task, task.initial_buffers())
        _, g_P = gradient(params_P, batch)
        _, _, image_1P = gradient.with_hessian(params_P, batch, g_P[None])
        image += size * float(image_1P[0] @ image_1P[0])
        length += size * float(g_P @ g_P)
    return sqrt(image / length)


def measure(run: Run) -> tuple[str, str, int, float]:
    """Return the row of ``runs.csv`` for one run; one that diverged has accuracy 0."""
    problem, settings, seed = run
    keys = {**COMMON, **PROBLEMS[problem], "seed": seed}
    if settings == MEASURED:
        h = curvature(RunConfig.from_mapping(keys))
        values = {"sigma": SIGMA_SHARE * h, "rho": RHO_SHARE * h}
    else:
        values = json.loads(settings)
    result = fedpisa.run({**keys, **values})
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
    print("| problem | chosen sigma, rho | tuned | measured | difference |")
    print("| --- | --- | --- | --- | --- |")
    for problem in PROBLEMS:
        runs = train([(problem, values, TUNING_SEED) for values in GRID], options.out, options.jobs)
        best = max(GRID, key=lambda values: runs[problem, values, TUNING_SEED])
        both = [(problem, values, seed) for values in (best, MEASURED) for seed in SEEDS]
        runs = train(both, options.out, options.jobs)
        tuned, measured = ([runs[problem, values, seed] for seed in SEEDS] for values in (best, MEASURED))
        difference = cell([b - a for a, b in zip(tuned, measured, strict=True)])
        values = ", ".join(f"{value:g}" for value in json.loads(best).values())
        print(f"| {problem} | {values} | {cell(tuned)} | {cell(measured)} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
