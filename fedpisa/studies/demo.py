"""The demonstration: what local steps cost, and what duals change, where each client has one label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final

from fedpisa.runs.places import require_free
from fedpisa.studies.comparison import compare
from fedpisa.studies.study import Study, StudyResult, load_study, read_study

if TYPE_CHECKING:
    from rich.table import Table

    from fedpisa.runs.results import Result
    from fedpisa.studies.workers import Progress

FILE: Final = Path(__file__).with_name("demo.toml")
"""The study: the values that ``fedpisa tune experiments/tune_demo.toml`` chose."""

LABELS: Final[Mapping[str, str]] = {
    "fedavg": "FedAvg",
    "fedavg-10": "FedAvg, 10 steps",
    "localsgd": "LocalSGD",
    "scaffold": "SCAFFOLD",
    "sisa": "SISA",
    "pisa": "PISA",
}
"""Texts of the legend."""

STORY: Final = (
    "Each client has a single digit. Over several local steps its model moves towards that digit, and the average of "
    "such models is not the best model for all, so FedAvg does best with one step. The duals of PISA and the control "
    "variates of SCAFFOLD cancel this pull: with many local steps they still come close to the optimum, where the "
    "gradient is 0."
)
"""What the picture shows."""


def demo_study(seeds: int = 1) -> Study:
    """Return the demonstration's study for the seeds 0, 1, ...

    Parameters
    ----------
    seeds
        Number of seeds, from 1 to 100. The values were chosen on seeds from 100 on.

    Raises
    ------
    ValueError
        If the number is out of range.

    Examples
    --------
    >>> study = demo_study(2)
    >>> list(study.variants), study.seeds
    (['fedavg', 'fedavg-10', 'localsgd', 'scaffold', 'sisa', 'pisa'], (0, 1))
    """
    if not 1 <= seeds <= 100:
        raise ValueError(
            f"seeds = {seeds} is not in 1 to 100: the values were chosen on the seeds after these"
        )
    study = read_study(FILE)
    return replace(study, base={**study.base, "exact-diagnostics": True}, seeds=tuple(range(seeds)))


def run_demo(
    out: str | Path,
    seeds: int = 1,
    *,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[StudyResult]:
    """Run the demonstration's study in a directory, and draw ``convergence.png`` there.

    Parameters
    ----------
    out
        A new or empty directory.
    seeds
        Number of seeds.
    jobs
        Number of parallel processes.
    on_progress
        Called on each progress of a run, as in `fedpisa.compare`.

    Returns
    -------
    list of StudyResult
        The results, in the study's order.

    Raises
    ------
    ValueError
        If ``out`` exists and is not empty, or the number of seeds is out of range.
    """
    directory, study = require_free(out), demo_study(seeds)
    compare(study, directory, jobs=jobs, on_progress=on_progress)
    # The gradient of the convex objective is 0 only at the optimum: a plateau above 0 is a bias.
    study.plot(
        directory,
        ("rounds", "gradients"),
        ("test_accuracy", "gradient_norm"),
        directory / "convergence.png",
        labels=LABELS,
    )
    return load_study(directory)


def table(results: Sequence[StudyResult]) -> Table:
    """Return the comparison as a table for the terminal: means over the seeds, of accuracies with deviation.

    Parameters
    ----------
    results
        The demonstration's results.
    """
    from fedpisa.runs.console import plain_table

    target = results[0].result.config.target_accuracy or 1.0
    view = plain_table(
        "algorithm",
        "local steps",
        "final accuracy",
        f"rounds to {target:.0%}",
        f"gradients to {target:.0%}",
        "gradient norm",
        "seconds",
    )
    for variant, group in groupby(results, key=lambda one: one.variant):
        runs = [one.result for one in group]
        finished = [run for run in runs if run.status == "finished"]
        bad = ", ".join(dict.fromkeys(run.status for run in runs if run.status != "finished"))
        rounds = [reached for run in finished if (reached := run.rounds_to(target)) is not None]
        gradients = [_gradients(run, target) for run in finished]
        missed = f" ({len(rounds)} of {len(finished)})" if 0 < len(rounds) < len(finished) else ""
        view.add_row(
            LABELS.get(variant, variant) + (f" ({bad})" if bad else ""),
            str(runs[0].config.options["local-steps"]),
            _mean([run.last("test_accuracy") for run in finished], ".1%", deviation=True),
            (_mean(rounds, ".0f") if rounds else "never") + missed,
            _mean(gradients, ",.0f") if rounds else "never",
            _mean([run.last("gradient_norm") for run in finished], ".1e"),
            _mean([run.total("seconds") for run in finished], ".1f"),
        )
    return view


def _gradients(run: Result, target: float) -> float | None:
    """Return the gradients of all clients up to the round that reaches the target."""
    reached = run.rounds_to(target)
    rounds = run.history
    return None if reached is None else float(rounds.loc[rounds["round"] <= reached, "local_steps"].sum())


def _mean(values: Sequence[float | None], form: str, *, deviation: bool = False) -> str:
    """Return the mean, with several values also the sample standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {stdev(known):{form}}" if deviation and len(known) > 1 else ""
    return f"{fmean(known):{form}}{spread}"
