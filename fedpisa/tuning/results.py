"""Files that tuning writes: all trials, a picture of them, and the best values as TOML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from fedpisa import components
from fedpisa.config.run import nest, override
from fedpisa.storage.csv_file import to_csv
from fedpisa.storage.files import replace_file
from fedpisa.studies.study import Study
from fedpisa.tuning.picture import plot_trials
from fedpisa.tuning.plan import Plan, Subject
from fedpisa.tuning.trials import Trial, best_of

if TYPE_CHECKING:
    import pandas as pd


def write_results(plan: Plan, trials: Sequence[Sequence[Trial]], directory: Path) -> None:
    """Write ``trials.csv`` and ``trials.png``, and after the last trial ``best/`` and ``best.toml``.

    Parameters
    ----------
    plan
        The plan.
    trials
        Trials of each subject.
    directory
        Folder to write to.
    """
    replace_file(directory / "trials.csv", to_csv(_frame(plan, trials)))
    if any(trial.metric is not None for trial in chain(*trials)):
        plot_trials(plan, trials, directory / "trials.png")
    files = _best_files(plan, trials) if is_complete(plan, trials) else {}
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(directory / name, content.encode())
    for file in [directory / "best.toml", *(directory / "best").rglob("*.toml")]:
        if str(file.relative_to(directory)) not in files:
            file.unlink(missing_ok=True)


def _best_files(plan: Plan, trials: Sequence[Sequence[Trial]]) -> dict[str, str]:
    """Return the files with the best values; ``best.toml`` needs a best trial of every subject."""
    best = [best_of(own_trials, plan.metric) for own_trials in trials]
    files = {
        str(Path("best") / f"{subject.path}.toml"): _best_config(subject, trial)
        for subject, trial in zip(plan.subjects, best, strict=True)
        if trial is not None
    }
    if len(files) == len(best):
        head = f"# {plan.trials} trials each by {plan.metric}, on other seeds than these; see trials.csv.\n"
        study = _best_study(plan, [trial for trial in best if trial is not None])
        files["best.toml"] = head + study.to_toml()
    return files


def is_complete(plan: Plan, trials: Sequence[Sequence[Trial]]) -> bool:
    """Return whether all trials have ended."""
    return all(sum(t.state != "running" for t in own_trials) == plan.trials for own_trials in trials)


def _best_config(subject: Subject, best: Trial) -> str:
    """Return the configuration of a trial for ``fedpisa run``: all keys except the seed."""
    import tomli_w

    values = subject.config(best.keys, 0).to_mapping()
    return tomli_w.dumps(nest({key: value for key, value in values.items() if key != "seed"}))


def _best_study(plan: Plan, best: Sequence[Trial]) -> Study:
    """Return the study with each subject's best values, at each point of the sweep."""
    study = plan.study
    variants = {name: dict(keys) for name, keys in study.variants.items()}
    at = {name: list(study.at.get(name, ())) for name in variants}
    for subject, trial in zip(plan.subjects, best, strict=True):
        if subject.point:
            at[subject.variant].append((subject.point, trial.keys))
        else:
            kept = override(subject.keys, trial.keys)
            own = {key: value for key, value in variants[subject.variant].items() if key in kept}
            variants[subject.variant] = own | dict(trial.keys)
    return Study(study.name, study.base, study.sweep, variants, study.seeds, at)


def _frame(plan: Plan, trials: Sequence[Sequence[Trial]]) -> pd.DataFrame:
    """Return a row per trial: variant, swept keys, index, state and searched keys."""
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
        for subject, own_trials in zip(plan.subjects, trials, strict=True)
        for trial in own_trials
    ]
    columns = ["variant", *plan.study.sweep, "trial", "state", plan.metric, "rounds", "seconds", "error"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def _cell(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else components.show(value)
