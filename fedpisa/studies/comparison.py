"""Run a study: start, resume or skip each of its runs, and summarize the results.

After an interruption, the same command continues. Each run has a directory with its checkpoints and its lock; the
study's only file beside them is ``study.toml``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.datasets.validation import hold_out
from fedpisa.runs.results import common_headline
from fedpisa.runs.resume import differences
from fedpisa.runs.run_files import RunReader
from fedpisa.runs.signals import Interrupted
from fedpisa.simulation.federation import build_algorithm, build_schedule
from fedpisa.simulation.parts import load_dataset
from fedpisa.storage.csv_file import to_csv
from fedpisa.storage.files import inside, locked, read_bytes, replace_file
from fedpisa.studies.study import STUDY_FILE, Study, StudyResult, StudyRun, load_study, read_study
from fedpisa.studies.workers import Progress, Task, run_task, share_out, standing

if TYPE_CHECKING:
    import pandas as pd

    from fedpisa.runs.results import Result

MOST_NAMED = 4
"""Maximum runs, and maximum differences, in an error message."""


def compare(
    study: Study | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    allow: Iterable[str] = (),
) -> list[Progress]:
    """Run a study, or the rest of it, and write its ``summary.csv``.

    Finished runs are only read: no module that they name is imported, and no data are loaded.

    Parameters
    ----------
    study
        A study, or the path of its file.
    out
        The study's directory; ``studies/<name of the file>`` by default. Runs that it already has are not repeated.
    jobs
        Number of parallel processes, each with one thread. The results do not depend on it.
    on_progress
        Called on each progress of a run.
    allow
        Modules that the file may name, besides those in its folder and in the current one.

    Returns
    -------
    list of Progress
        Final state of each run, in the study's order.

    Raises
    ------
    ValueError
        If the study or one of its runs is invalid, or existing runs have another configuration. Nothing is written.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, when all current runs have finished their round and written a checkpoint.
    """
    if isinstance(study, Study):
        content, name = study.to_toml().encode(), study.folder
    else:
        content, name = Path(study).read_bytes(), Path(study).stem
        study = read_study(study, allow=allow)
    directory = Path("studies") / name if out is None else Path(out)
    runs = study.runs()
    places = [inside(directory, run.path) for run in runs]
    tasks = [
        Task(n, run.keys, str(place), run.permission)
        for n, (run, place) in enumerate(zip(runs, places, strict=True))
    ]
    stands = [standing(task) for task in tasks]
    check([run for run, stand in zip(runs, stands, strict=True) if stand.state == "waiting"])
    with locked(directory, wait=True):
        _require_same(runs, directory)
        if not (directory / STUDY_FILE).exists() or read_bytes(directory / STUDY_FILE) != content:
            replace_file(directory / STUDY_FILE, content)

    from fedpisa.simulation.stacked.threads import one_thread

    for progress in stands:
        on_progress(progress)

    def note(progress: Progress) -> None:
        stands[progress.number] = progress
        on_progress(progress)

    signum = None
    with one_thread():
        # Retry the runs of other processes at the end: those processes may have ended, or died.
        for state in ("waiting", "elsewhere"):
            left = [task for task in tasks if stands[task.number].state == state]
            if left and signum is None:
                signum = share_out(left, jobs, note) if jobs > 1 else _one_by_one(left, note)
    with locked(directory, wait=True):
        table = summary(load_study(directory))
        replace_file(directory / "summary.csv", to_csv(table))
    if signum is not None and any(stand.state in ("waiting", "interrupted") for stand in stands):
        raise Interrupted(signum)
    return stands


def check(runs: Sequence[StudyRun]) -> None:
    """Check each run's configuration and algorithm, and that its data can be loaded.

    Raises
    ------
    ValueError
        If a check fails; the error names the variant and the point.
    """
    read = set()
    for run in runs:
        config = run.config
        try:
            build_schedule(config, build_algorithm(config))
            data = config.dataset, config.data_dir, config.validation_fraction
            if data not in read:
                hold_out(load_dataset(config), config.validation_fraction, config.seed)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from error
        read.add(data)


def _require_same(runs: Sequence[StudyRun], directory: Path) -> None:
    """Raise an error if existing runs have other configurations."""
    other, reasons = [], dict[str, None]()
    for run in runs:
        path = inside(directory, run.path)
        if (path / "config.toml").exists():
            try:
                before = RunReader(path).config()
            except ValueError:  # the run fails, and the others go on
                continue
            after = run.stored
            after = after.replace({"model": before.model}) if after.model is None else after
            # The defaults of components that are not imported are unknown.
            unset = before.options_of_unread() - after.to_mapping().keys()
            if different := {k: text for k, text in differences(before, after).items() if k not in unset}:
                other.append(str(run.path))
                reasons |= dict.fromkeys(different.values())
    if other:
        raise ValueError(
            f"{len(other)} of the {len(runs)} runs in {directory} have another configuration "
            f"({_few(list(reasons))}): {_few(other)}: restore the study, give another directory with "
            "--out, or remove those runs"
        )


def _few(texts: Sequence[str]) -> str:
    return ", ".join(texts[:MOST_NAMED]) + (", ..." if len(texts) > MOST_NAMED else "")


def _one_by_one(tasks: Sequence[Task], note: Callable[[Progress], None]) -> int | None:
    """Run the tasks in this process; return the signal that interrupted, if any."""
    for task in tasks:
        progress = run_task(task, note)
        note(progress)
        if progress.state == "interrupted":
            return progress.signum
    return None


# ----------------------------------------------------------------------------------------------- summary


def summary(results: Sequence[StudyResult]) -> pd.DataFrame:
    """Return a row per variant and point, with means and standard deviations over the seeds.

    Columns: ``variant``, the swept keys, the numbers of started ``runs`` and ``finished`` runs; over the finished runs
    the ``final`` and ``best`` value of the headline, see `fedpisa.runs.results.common_headline`; ``rounds_to_target``
    over the runs that ``reached`` it. Deviations are sample standard deviations, NaN for one run. Runs with validation
    samples add ``selected``, the value in the round of the lowest validation loss, and early stopping adds
    ``rounds``. If known, ``majority_share`` is the share of the test set's most frequent class, and if there are any,
    ``reference`` marks the variants that only give scale.
    """
    import pandas as pd

    column = common_headline(one.result for one in results).column
    measures: dict[str, Callable[[Result], float | None]] = {f"final_{column}": lambda run: run.last(column)}
    if any(one.result.best_round() is not None for one in results):
        measures[f"selected_{column}"] = lambda run: run.selected(column)
    measures[f"best_{column}"] = lambda run: run.best(column)
    if any(one.result.stopped_early for one in results):
        measures["rounds"] = lambda run: run.last_round
    table = pd.DataFrame([_row(group, measures) for group in by_seed(results)])
    last = [name for name in ("majority_share", "reference") if name in table]
    return table[[*(name for name in table.columns if name not in last), *last]]


def by_seed(results: Sequence[StudyResult]) -> list[list[StudyResult]]:
    """Return the results in groups that differ only in their seeds."""
    groups: dict[str, list[StudyResult]] = {}
    for one in results:
        groups.setdefault(repr((one.variant, one.point)), []).append(one)
    return list(groups.values())


def _row(
    group: Sequence[StudyResult], measures: Mapping[str, Callable[[Result], float | None]]
) -> dict[str, Any]:
    import pandas as pd

    finished = [one.result for one in group if one.result.status == "finished"]
    reached = [run.rounds_to_target() for run in finished if run.target]
    point = {
        key: str(value) if isinstance(value, list | bool) else value for key, value in group[0].point.items()
    }
    row: dict[str, Any] = {
        "variant": group[0].variant,
        **point,
        "runs": len(group),
        "finished": len(finished),
    }
    numbers = [number for number in reached if number is not None]
    values = {name: [measure(run) for run in finished] for name, measure in measures.items()}
    for name, by_run in {**values, "rounds_to_target": numbers}.items():
        series = pd.Series(by_run, dtype="float64")
        row |= {f"{name}_mean": series.mean(), f"{name}_std": series.std()}
    row["reached"] = len(numbers)
    shares = [one.result.majority_share for one in group if one.result.majority_share is not None]
    row |= {"majority_share": math.fsum(shares) / len(shares)} if shares else {}
    return {**row, "reference": True} if group[0].result.reference else row
