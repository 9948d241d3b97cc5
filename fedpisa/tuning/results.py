"""What tuning leaves to read and to go on with: all trials, a picture of them, and the best values as TOML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpisa import components
from fedpisa.config.run import nest
from fedpisa.storage.files import replace_file
from fedpisa.studies.study import Study
from fedpisa.tuning.picture import plot_trials
from fedpisa.tuning.plan import Plan, Subject
from fedpisa.tuning.trials import Trial, best_of

if TYPE_CHECKING:
    import pandas as pd


def write_results(plan: Plan, trials: Sequence[Sequence[Trial]], directory: Path) -> None:
    """Write ``trials.csv`` and ``trials.png``; once the budget is spent ``best/`` and ``best.toml``, too.

    Parameters
    ----------
    plan
        What was tuned.
    trials
        The trials of each of its subjects.
    directory
        Where to write.
    """
    replace_file(directory / "trials.csv", frame(plan, trials).to_csv(index=False).encode())
    if any(trial.metric is not None for its in trials for trial in its):
        plot_trials(plan, trials, directory / "trials.png")
    files = _best_files(plan, trials) if is_complete(plan, trials) else {}
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(directory / name, content.encode())
    for file in [directory / "best.toml", *(directory / "best").rglob("*.toml")]:
        if str(file.relative_to(directory)) not in files:
            file.unlink(missing_ok=True)


def _best_files(plan: Plan, trials: Sequence[Sequence[Trial]]) -> dict[str, str]:
    """Return by name the files with the best values; ``best.toml`` only if there is a best of every subject."""
    best = [best_of(its, plan.metric) for its in trials]
    files = {
        str(Path("best") / f"{subject.path}.toml"): best_config(subject, its)
        for subject, its in zip(plan.subjects, best, strict=True)
        if its is not None
    }
    if len(files) == len(best):
        head = f"# {plan.trials} trials each by {plan.metric}, on seeds that are not these; see trials.csv.\n"
        study = best_study(plan, [its for its in best if its is not None])
        files["best.toml"] = head + study.to_toml()
    return files


def is_complete(plan: Plan, trials: Sequence[Sequence[Trial]]) -> bool:
    """Return whether every subject has had its budget."""
    return all(sum(trial.state != "running" for trial in its) == plan.trials for its in trials)


def best_config(subject: Subject, best: Trial) -> str:
    """Return the configuration of a trial as ``fedpisa run`` reads it: every key but the seed."""
    import tomli_w

    values = subject.config(best.keys, 0).to_mapping()
    return tomli_w.dumps(nest({key: value for key, value in values.items() if key != "seed"}))


def best_study(plan: Plan, best: Sequence[Trial]) -> Study:
    """Return the study with every variant's best values, point by point where there is a sweep.

    Parameters
    ----------
    plan
        What was tuned.
    best
        The best trial of each of its subjects.
    """
    study = plan.study
    variants = {name: dict(keys) for name, keys in study.variants.items()}
    at = {name: list(study.at.get(name, ())) for name in variants}
    for subject, its in zip(plan.subjects, best, strict=True):
        if subject.point:
            at[subject.variant].append((subject.point, its.keys))
        else:
            variants[subject.variant].update(its.keys)
    return Study(study.name, study.base, study.sweep, variants, study.seeds, at)


def frame(plan: Plan, trials: Sequence[Sequence[Trial]]) -> pd.DataFrame:
    """Return one row per trial: its variant, swept keys and number, how it ended, and the searched keys."""
    import pandas as pd

    rows = [
        {
            "variant": subject.variant,
            **{key: _cell(value) for key, value in subject.point.items()},
            "trial": trial.index,
            "state": trial.state,
            plan.metric: math.nan if trial.metric is None else trial.metric,
            "rounds": trial.rounds,
            "seconds": trial.seconds,
            "error": trial.error,
            **{key: _cell(value) for key, value in trial.keys.items()},
        }
        for subject, its in zip(plan.subjects, trials, strict=True)
        for trial in its
    ]
    columns = ["variant", *plan.study.sweep, "trial", "state", plan.metric, "rounds", "seconds", "error"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def _cell(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else components.show(value)
