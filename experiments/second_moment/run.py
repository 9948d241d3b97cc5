"""Does SISA stay at a solution? Six remedies on three strictly convex problems; prints the table.

FEDPISA_DATA=/path/to/data OMP_NUM_THREADS=1 python experiments/second_moment/run.py --jobs 2
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import fedpisa

CLOSE, FURTHER, EVERY = 1e-10, 1000, 10
Keys = Mapping[str, object]
COMMON: Keys = {
    "algorithm": "sisa",
    "model": "linear",
    "partitioner": "iid",
    "num-clients": 4,
    "batch-size": "full",
    "dtype": "float64",
    "exact-diagnostics": True,
    "eval-every": EVERY,
}
_BIGRAMS: Keys = {"dataset": "bigrams:bigrams"}
PROBLEMS: Mapping[str, Keys] = {
    "bigrams, lambda 1e-3": {**_BIGRAMS, "lambda": 1e-3, "sigma": 0.01, "rho": 6.0, "num-server-rounds": 2500},
    "bigrams, lambda 1e-4": {**_BIGRAMS, "lambda": 1e-4, "sigma": 0.01, "rho": 16.0, "num-server-rounds": 4000},
    "a9a, lambda 1e-3": {
        "dataset": "a9a", "lambda": 1e-3, "sigma": 0.1, "rho": 10.0, "num-server-rounds": 2500,
    },
}  # fmt: skip
REMEDIES: Mapping[str, Keys] = {
    "none: Scheme III": {},
    "`amsgrad`: the largest moment": {"amsgrad": True},
    "Scheme I: the sum of all moments": {"preconditioner": "adagrad"},
    "a floor on Q: `eps` 0.1": {"eps": 0.1},
    "sigma grows by 1 % a round: `gamma` 0.99": {"gamma": 0.99},
    "sigma 1, above 3/2 of the curvature": {"sigma": 1.0},
}


def measure(problem: str, remedy: str) -> str:
    """Return a row of the table."""
    keys = {**COMMON, **PROBLEMS[problem], **REMEDIES[remedy]}
    history = fedpisa.run(keys).history
    # F is strongly convex with modulus lambda, so ||grad F||^2 / (2 lambda) bounds F(w) - min F.
    gaps = history["gradient_norm"].dropna() ** 2 / (2 * float(str(keys["lambda"])))
    cells = [f"{history['objective'][number]:.4f}" for number in (10, 50, 100)]
    close = gaps.index[gaps <= CLOSE]
    if len(close):
        after = gaps.loc[close[0] : close[0] + FURTHER]
        cells += [str(close[0]), f"{after.max():.0e}", str(after.index[-1] - close[0])]
    else:
        cells += ["–", f"least {gaps.min():.0e}", "–"]
    return f"| {problem} | {remedy} | {' | '.join(cells)} |"


def main() -> None:
    """Measure all pairs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    jobs = parser.parse_args().jobs
    print(
        "| problem | remedy | F at round 10 | 50 | 100 | within 1e-10 at round | largest gap after | rounds after |"
    )
    print("| --- " * 8 + "|")
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for row in pool.map(measure, *zip(*itertools.product(PROBLEMS, REMEDIES), strict=True)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
