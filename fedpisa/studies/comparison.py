"""A study carried out: its runs begun, gone on with, or left alone because they are done; and what came out.

After an interruption the same command goes on: every run is a directory of its own with its own checkpoints
and its own lock, and the study itself keeps nothing but ``study.toml``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.config.run import load_config
from fedpisa.runs.resume import differences
from fedpisa.runs.signals import Interrupted
from fedpisa.simulation.federation import build_algorithm, build_schedule, load_dataset
from fedpisa.storage.files import locked, replace_file
from fedpisa.studies.study import STUDY_FILE, Study, StudyResult, StudyRun, load_study, read_study
from fedpisa.studies.workers import Progress, Task, run_task, share_out, standing

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 4
"""Runs, and differences, that one error message names."""


def compare(
    study: Study | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Progress]:
    """Carry out a study, or what is left of it, and write its ``summary.csv``.

    Parameters
    ----------
    study
        A study, or the path of its file.
    out
        The study's directory; ``studies/<name of the file>`` by default. One that holds a part of the study's runs
        is completed.
    jobs
        Runs at a time, each in a process of its own with one thread; what comes out does not depend on it.
    on_progress
        Told where each run stands, whenever that changes.

    Returns
    -------
    list of Progress
        Where each run stands at the end, in the study's order.

    Raises
    ------
    ValueError
        If the study or one of its runs is unusable, or runs that are there have another configuration; nothing is
        written then.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, once all runs at work have ended their round and written a checkpoint.
    """
    if isinstance(study, Study):
        content, name = study.to_toml().encode(), study.name
    else:
        content, name = Path(study).read_bytes(), Path(study).stem
        study = read_study(study)
    directory = Path("studies") / name if out is None else Path(out)
    runs = study.runs()
    check(runs)
    with locked(directory, wait=True):
        _require_same(runs, directory)
        if not (directory / STUDY_FILE).exists() or (directory / STUDY_FILE).read_bytes() != content:
            replace_file(directory / STUDY_FILE, content)

    from fedpisa.simulation.stacked.threads import one_thread

    tasks = [Task(number, run.keys, str(directory / run.path)) for number, run in enumerate(runs)]
    stands = [standing(task) for task in tasks]
    for progress in stands:
        on_progress(progress)

    def note(progress: Progress) -> None:
        stands[progress.number] = progress
        on_progress(progress)

    signum = None
    with one_thread():
        # What another process was at is tried once more at the end: it may have ended, or have been ended.
        for wanted in ("waiting", "elsewhere"):
            left = [task for task in tasks if stands[task.number].state == wanted]
            if left and signum is None:
                signum = share_out(left, jobs, note) if jobs > 1 else _one_by_one(left, note)
    with locked(directory, wait=True):
        table = summary(load_study(directory))
        replace_file(directory / "summary.csv", table.to_csv(index=False).encode())
    if signum is not None and any(stand.state in ("waiting", "interrupted") for stand in stands):
        raise Interrupted(signum)
    return stands


def check(runs: Sequence[StudyRun]) -> None:
    """Check every run's configuration, its algorithm, and that the data can be read.

    Raises
    ------
    ValueError
        Naming variant and point.
    """
    read = set()
    for run in runs:
        config = run.config
        try:
            build_schedule(config, build_algorithm(config))
            if (config.dataset, config.data_dir) not in read:
                load_dataset(config)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from error
        read.add((config.dataset, config.data_dir))


def _require_same(runs: Sequence[StudyRun], directory: Path) -> None:
    """Refuse to go on with runs that were begun with other configurations."""
    other, reasons = [], dict[str, None]()
    for run in runs:
        file = directory / run.path / "config.toml"
        if file.exists():
            before = load_config(file)
            after = run.config.replace({"model": before.model}) if run.config.model is None else run.config
            if different := differences(before, after):
                other.append(str(run.path))
                reasons |= dict.fromkeys(different.values())
    if other:
        raise ValueError(
            f"{len(other)} of the {len(runs)} runs in {directory} were begun with another configuration "
            f"({_few(list(reasons))}): {_few(other)}: put the study back as it was, or give another directory "
            "with --out, or remove those runs"
        )


def _few(texts: Sequence[str]) -> str:
    return ", ".join(texts[:MOST_NAMED]) + (", ..." if len(texts) > MOST_NAMED else "")


def _one_by_one(tasks: Sequence[Task], note: Callable[[Progress], None]) -> int | None:
    """Carry out runs in this process; return the signal that ended it, if one did."""
    for task in tasks:
        progress = run_task(task, note)
        note(progress)
        if progress.state == "interrupted":
            return progress.signum
    return None


# ----------------------------------------------------------------------------------------- what came out


def summary(results: Sequence[StudyResult]) -> pd.DataFrame:
    """Return one row per variant and point: the mean and the deviation over the seeds of what was reached.

    Columns: ``variant``, the swept keys, ``runs`` begun and ``finished``; of the finished ones ``final`` and ``best``
    accuracy (without accuracy: the loss), ``rounds_to_target`` over those ``reached``. Deviations are those of a
    sample, empty for one run.
    """
    import pandas as pd

    accuracy = any(one.result.last("test_accuracy") is not None for one in results)
    return pd.DataFrame([_row(group, accuracy) for group in by_seed(results)])


def by_seed(results: Sequence[StudyResult]) -> list[list[StudyResult]]:
    """Return the results in groups that differ in their seeds alone."""
    groups: dict[str, list[StudyResult]] = {}
    for one in results:
        groups.setdefault(repr((one.variant, one.point)), []).append(one)
    return list(groups.values())


def _row(group: Sequence[StudyResult], accuracy: bool) -> dict[str, Any]:
    import pandas as pd

    finished = [one.result for one in group if one.result.status == "finished"]
    column = "test_accuracy" if accuracy else "test_loss"
    targets = [(result, result.config.target_accuracy) for result in finished]
    reached = [result.rounds_to(target) for result, target in targets if target is not None]
    point = {
        key: str(value) if isinstance(value, list | bool) else value for key, value in group[0].point.items()
    }
    counts = {"runs": len(group), "finished": len(finished)}
    row: dict[str, Any] = {"variant": group[0].variant, **point, **counts}
    numbers = [number for number in reached if number is not None]
    values = {
        f"final_{column}": [result.last(column) for result in finished],
        f"best_{column}": [
            result.best(column) if accuracy else result.history[column].min() for result in finished
        ],
        "rounds_to_target": numbers,
    }
    for name, by_run in values.items():
        series = pd.Series(by_run, dtype="float64")
        row |= {f"{name}_mean": series.mean(), f"{name}_std": series.std()}
    return {**row, "reached": len(numbers)}
