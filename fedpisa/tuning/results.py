"""Files that tuning writes: all trials, a picture of them, and the best values as TOML."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from fedpisa import components
from fedpisa.config.run import nest, override
from fedpisa.storage.csv_file import to_csv
from fedpisa.storage.files import inside, refuse_link, replace_file
from fedpisa.studies.study import Study
from fedpisa.tuning.picture import plot_trials
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.standing import Standing, is_complete
from fedpisa.tuning.subject import Subject
from fedpisa.tuning.trial import Trial

if TYPE_CHECKING:
    import pandas as pd


def write_results(plan: Plan, standings: Sequence[Standing], directory: Path) -> None:
    """Write all trials and a summary, and after the last trial the best values.

    The files are ``trials.csv``, ``summary.csv``, ``trials.png``, ``best/`` and ``best.toml``.

    Parameters
    ----------
    plan
        The plan.
    standings
        Outcome of each subject.
    directory
        Folder to write to.
    """
    replace_file(directory / "trials.csv", to_csv(_trials(plan, standings)))
    replace_file(directory / "summary.csv", to_csv(_summary(plan, standings)))
    if any(trial.metric is not None for one in standings for trial in one.trials):
        plot_trials(plan, [one.trials for one in standings], directory / "trials.png")
    files = _best_files(plan, standings) if is_complete(plan, standings) else {}
    for name, content in files.items():
        file = inside(directory, PurePath(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content.encode())
    written = (
        Path(folder) / name for folder, _, names in os.walk(refuse_link(directory / "best")) for name in names
    )
    for file in [directory / "best.toml", *(file for file in written if file.suffix == ".toml")]:
        if str(file.relative_to(directory)) not in files:
            file.unlink(missing_ok=True)


def _best_files(plan: Plan, standings: Sequence[Standing]) -> dict[str, str]:
    """Return the files with the best values; ``best.toml`` needs a best trial of every subject."""
    files = {
        str(Path("best") / f"{one.subject.path}.toml"): _best_config(one.subject, one.best)
        for one in standings
        if one.best is not None
    }
    if len(files) == len(standings):
        trials = " or ".join(map(str, sorted({len(one.trials) for one in standings})))
        head = f"# {trials} trials each by {plan.metric}, on other seeds than these; see summary.csv.\n"
        study = _best_study(plan, [one.best for one in standings if one.best is not None])
        files["best.toml"] = head + study.to_toml()
    return files


def _best_config(subject: Subject, best: Trial) -> str:
    """Return the study's configuration with a trial's values for ``fedpisa run``: all keys except the seed."""
    import tomli_w

    values = subject.final_config(best.keys, 0).to_mapping()
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


def _summary(plan: Plan, standings: Sequence[Standing]) -> pd.DataFrame:
    """Return a row per subject: what tuning cost, what it found, and what makes that doubtful."""
    import pandas as pd

    rows = []
    for one in standings:
        swapped, pairs = one.swapped
        rows.append(
            {
                "variant": one.subject.variant,
                **{key: _cell(value) for key, value in one.subject.point.items()},
                "trials": len(one.trials) - one.counts["running"],
                **{state: one.counts[state] for state in ("finished", "pruned", "diverged", "failed")},
                "extensions": plan.extensions,
                "rounds": one.rounds,
                "gradients": one.gradients,
                "seconds": one.seconds,
                "higher_is_better": plan.metric.higher_is_better,
                "seeds": ", ".join(map(str, plan.settings.seeds)),
                plan.metric.name: None if one.best is None else one.best.metric,
                f"median_{plan.metric}": one.median,
                "at_edge": ", ".join(edge.key for edge in one.edges),
                "swapped_pairs": swapped,
                "pairs": pairs,
            }
        )
    return pd.DataFrame(rows)


def _trials(plan: Plan, standings: Sequence[Standing]) -> pd.DataFrame:
    """Return a row per trial: variant, swept keys, index, state and searched keys."""
    import pandas as pd

    measured = plan.metric.name != "validation_accuracy" and any(
        trial.accuracy is not None for one in standings for trial in one.trials
    )
    rows = [
        {
            "variant": one.subject.variant,
            **{key: _cell(value) for key, value in one.subject.point.items()},
            "trial": trial.index,
            "state": trial.state,
            plan.metric.name: math.nan if trial.metric is None else trial.metric,
            **({"validation_accuracy": trial.accuracy} if measured else {}),
            "rounds": trial.rounds,
            "gradients": trial.gradients,
            "seconds": trial.seconds,
            "error": trial.error,
            **{key: _cell(value) for key, value in trial.keys.items()},
        }
        for one in standings
        for trial in one.trials
    ]
    columns = [
        "variant", *plan.study.sweep, "trial", "state", plan.metric.name, "rounds", "gradients", "seconds", "error"
    ]  # fmt: skip
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def _cell(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else components.show(value)
