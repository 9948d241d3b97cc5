"""Print the tables of the comparison of absent clients from its six studies.

::

    python experiments/fresh/check.py studies/fresh-*
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean, stdev

import fedpisa

FRACTIONS, SEEDS = (0.1, 0.2, 0.5), (0, 1, 2)
VARIANTS = (
    "pisa-keep", "pisa-drop", "pisa-fresh", "sisa-keep", "sisa-drop", "sisa-fresh", "feddyn", "scaffold",
)  # fmt: skip
PAIRS = [
    (f"{name}-fresh", other) for name in ("pisa", "sisa") for other in (f"{name}-keep", "feddyn", "scaffold")
]


def accuracies(study: Path) -> dict[tuple[str, float, int], float]:
    """Return the test accuracy in % after the last round; 0 for a run that diverged."""
    return {
        (one.variant, one.point["fraction-train"], one.seed): 100 * (one.result.last("test_accuracy") or 0)
        if one.result.status == "finished"
        else 0.0
        for one in fedpisa.load_study(study)
    }


def main(*studies: str) -> None:
    """Print the accuracies of all variants, and the paired differences of ``fresh``."""
    found = {Path(name).name.removeprefix("fresh-"): accuracies(Path(name)) for name in studies}
    print(f"| study | fraction | {' | '.join(VARIANTS)} |")
    print("| --- " * (2 + len(VARIANTS)) + "|")
    for study, runs in found.items():
        for fraction in FRACTIONS:
            values = [[runs[name, fraction, seed] for seed in SEEDS] for name in VARIANTS]
            cells = [f"{fmean(one):.1f} ± {stdev(one):.1f}" for one in values]
            print(f"| {study} | {fraction} | {' | '.join(cells)} |")
    print(f"\n| study | fraction | {' | '.join(f'{a} - {b}' for a, b in PAIRS)} |")
    print("| --- " * (2 + len(PAIRS)) + "|")
    worse = dict.fromkeys(PAIRS, 0)
    for study, runs in found.items():
        for fraction in FRACTIONS:
            cells = []
            for pair in PAIRS:
                gaps = [runs[pair[0], fraction, seed] - runs[pair[1], fraction, seed] for seed in SEEDS]
                is_worse = fmean(gaps) < -stdev(gaps)
                worse[pair] += is_worse
                text = f"{fmean(gaps):+.1f} ± {stdev(gaps):.1f}"
                cells.append(f"**{text}**" if is_worse else text)
            print(f"| {study} | {fraction} | {' | '.join(cells)} |")
    for (a, b), points in worse.items():
        print(
            f"{a} is worse than {b} by more than the deviation at {points} of {len(found) * len(FRACTIONS)} points"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
