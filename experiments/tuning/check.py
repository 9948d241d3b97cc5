"""Compare what `fedpisa tune` chose with the best of 200 random trials, on ten fresh seeds.

::

    fedpisa tune experiments/tune_digits.toml --out tuned/digits --extend 2
    fedpisa tune experiments/tuning/random.toml --out tuned/random --jobs 2
    python experiments/tuning/check.py tuned/digits/best.toml tuned/random/best.toml
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import fedpisa

SEEDS = tuple(range(10, 20))
SEARCHED = ("learning-rate", "local-steps", "sigma", "rho")


def main(tuned: str, random: str, out: str = "studies/tuning-check") -> None:
    """Run both choices of every variant on the fresh seeds, and print a row for each variant.

    Parameters
    ----------
    tuned, random
        Files ``best.toml`` of the two searches.
    out
        Directory of the study.
    """
    studies = {"tune": fedpisa.read_study(tuned), "random": fedpisa.read_study(random)}
    names = list(studies["tune"].variants)
    variants = {
        f"{name}-{search}": {**study.base, **study.variants[name]}
        for search, study in studies.items()
        for name in names
    }
    study = replace(studies["tune"], name="check", base={}, variants=variants, seeds=SEEDS)
    fedpisa.compare(study, out, jobs=2)
    accuracy = {
        (one.variant, one.seed): 100 * (one.result.last("test_accuracy") or 0)
        for one in fedpisa.load_study(Path(out))
    }
    print(
        "| variant | `tune` | 200 random trials | difference ± standard error | chosen by `tune` | by random |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        values = {search: [accuracy[f"{name}-{search}", seed] for seed in SEEDS] for search in studies}
        cells = [f"{fmean(one):.1f} ± {stdev(one):.1f}" for one in values.values()]
        gaps = [tuned - random for tuned, random in zip(*values.values(), strict=True)]
        cells.append(f"{fmean(gaps):+.2f} ± {stdev(gaps) / len(gaps) ** 0.5:.2f}")
        for search in studies:
            keys = variants[f"{name}-{search}"]
            cells.append(", ".join(f"{key} {keys[key]:.3g}" for key in SEARCHED if key in keys))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
