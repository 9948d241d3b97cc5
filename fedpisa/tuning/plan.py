"""A tuning plan: the tables that a study file adds for tuning.

::

    [tune]
    trials = 20                      # of every variant at every point of the sweep
    metric = "validation_loss"       # of the last round; see fedpisa/tuning/metric.py
    sampler = "tpe"                  # or random, grid
    pruner = "none"                  # or halving

    [search]                         # of all variants that have the key
    learning-rate = {low = 0.001, high = 1, log = true}

    [[variant]]
    name = "sisa"
    algorithm = "sisa"
    search = {sigma = [0.01, 0.1, 1], rho = {low = 1, high = 100, log = true}}
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, final

from pydantic import Field

from fedpisa import components, families
from fedpisa.config.run import flatten, read_toml, run_keys
from fedpisa.datasets.validation import hold_out
from fedpisa.simulation.federation import measures_of
from fedpisa.simulation.parts import load_dataset
from fedpisa.studies.study import Study, StudyRun, read_study
from fedpisa.tuning.metric import ROUNDS, Metric, require_known
from fedpisa.tuning.space import MOST_POINTS, Space, parse_space
from fedpisa.tuning.subject import Subject, fitting
from fedpisa.typing import NonNegativeInt, PositiveInt

VALIDATION_FRACTION: Final = 0.2
"""The trials' ``validation-fraction`` if the metric needs validation samples and the study has none."""
TUNABLE: Final = ("fraction-train", "model")
"""The run's own keys that can be searched; the others define the problem or the budget."""


@final
@dataclass(frozen=True)
class Settings:
    """The table ``[tune]``.

    Parameters
    ----------
    trials
        Trials of every variant at every point of the sweep. A grid has its number of points by default.
    metric
        Metric that ranks the trials, by its mean over the seeds. One of the test set, such as ``test_accuracy``, makes
        the study's test results optimistic.
    sampler
        ``tpe`` (the first third of the trials, at most ten, at random), ``random`` or ``grid``.
    pruner
        ``none``: all trials are trained to the end. ``halving``: asynchronous successive halving, see `rungs`. It costs
        less, and is unfair: where small steps look best in early rounds, it stops the trials that would win.
    seed
        Seed of the sampler.
    seeds
        Seeds of a trial's runs, over which the metric is averaged. They must differ from the study's seeds, so that the
        values are not chosen by the reported runs. The default is three seeds that follow the study's largest.
    min_rounds
        Rounds before the first rung; by default all rounds divided by ``reduction-factor`` squared.
    reduction_factor
        One in ``reduction-factor`` trials continues at each rung.
    """

    trials: Annotated[int, Field(ge=1, le=MOST_POINTS)] | None = None
    metric: str = "validation_loss"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["none", "halving"] = "none"
    seed: NonNegativeInt = 0
    seeds: tuple[NonNegativeInt, ...] = ()
    min_rounds: PositiveInt | None = None
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, rounds: int) -> tuple[int, ...]:
        """Return the rounds after which only the best trials continue.

        The rungs are ``min-rounds`` times the powers of ``reduction-factor`` (Li et al. 2020, ASHA). Rounds are counted
        over all seeds of a trial. A trial continues if it is among the best ``1 / reduction-factor`` of the trials that
        have reached the rung so far.

        Parameters
        ----------
        rounds
            Rounds of a whole trial.

        Examples
        --------
        >>> Settings(pruner="halving").rungs(90), Settings(pruner="halving", min_rounds=4, reduction_factor=2).rungs(20)
        ((10, 30), (4, 8, 16))
        >>> Settings().rungs(90)
        ()
        """
        if self.pruner == "none":
            return ()
        rung = self.min_rounds or math.ceil(rounds / self.reduction_factor**2)
        found = []
        while rung < rounds:
            found.append(rung)
            rung *= self.reduction_factor
        return tuple(found)


@final
@dataclass(frozen=True)
class Plan:
    """A study with its tuning settings and search spaces.

    Parameters
    ----------
    study
        The study.
    settings
        The study's table ``[tune]``, with ``trials`` and ``seeds`` filled in.
    subjects
        Every variant at every point, in the study's order.
    extensions
        How many times search spaces were widened; see `extended`.

    Examples
    --------
    >>> plan = Plan.from_mapping(
    ...     {
    ...         "base": {"algorithm": "fedavg", "num-server-rounds": 9},
    ...         "tune": {"sampler": "grid"},
    ...         "search": {"learning-rate": [0.1, 1], "sigma": [1]},
    ...     }
    ... )
    Traceback (most recent call last):
        ...
    ValueError: [search] sigma: key 'sigma' is used by none of the variants: leave it out
    """

    study: Study
    settings: Settings
    subjects: tuple[Subject, ...]
    metric: Metric
    extensions: int = 0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], name: str = "study") -> Plan:
        """Return the plan of a study file's tables.

        Raises
        ------
        ValueError
            If a table has the wrong form, a variant lacks a searched key or rejects a value of its space, or the
            budgets differ.
        """
        return _make_plan(Study.from_mapping(values, name), values)

    @property
    def trials(self) -> int:
        """Trials of each subject before any extension."""
        assert self.settings.trials is not None
        return self.settings.trials

    def budget(self, subject: Subject) -> int:
        """Return the number of trials of a subject: each extension adds `trials`, up to the size of the space.

        A grid has the number of its points.
        """
        if self.settings.sampler == "grid":
            return len(subject.grid())
        return int(min(self.trials * (1 + self.extensions), subject.size))

    def extended(self, spaces: Sequence[Mapping[str, Space]]) -> Plan:
        """Return the plan with some spaces of each subject widened, and as many trials again of every subject."""
        subjects = (one.widened(wider) for one, wider in zip(self.subjects, spaces, strict=True))
        return replace(self, subjects=tuple(subjects), extensions=self.extensions + 1)

    def rounds(self, subject: Subject) -> int:
        """Return the rounds of a complete trial, over all its seeds."""
        config = subject.config({}, self.settings.seeds[0])
        return config.num_server_rounds * len(self.settings.seeds)

    @cached_property
    def fingerprint(self) -> Mapping[PurePosixPath, Mapping[str, str]]:
        """All settings that determine the trials of each subject, except ``trials``, which may grow."""
        common = {
            f"[tune] {key.replace('_', '-')}": components.show(value)
            for key, value in vars(self.settings).items()
            if key not in ("trials", "seeds")
        } | {"[tune] seeds": components.show(list(self.settings.seeds))}
        return {
            subject.path: {
                **common,
                **{f"search {key}": repr(space) for key, space in subject.space.items()},
                **{
                    key: components.show(value)
                    for key, value in subject.config({}, 0).to_mapping().items()
                    if key != "seed"
                },
            }
            for subject in self.subjects
        }


def read_plan(file: str | os.PathLike[str], *, allow: Iterable[str] = ()) -> Plan:
    """Return the plan of a study file.

    Parameters
    ----------
    file
        The file.
    allow
        Modules that it may name, besides those in its folder and in the current one.

    Raises
    ------
    ValueError
        If the file does not exist, or is not a study that can be tuned; see `Plan.from_mapping`.
    """
    study = read_study(file, allow=allow)
    try:
        return _make_plan(study, read_toml(file))
    except ValueError as error:
        raise ValueError(f"{Path(file)}: {error}") from error


def _make_plan(study: Study, values: Mapping[str, Any]) -> Plan:
    if "tune" not in values:
        raise ValueError("there is no [tune] table: add [tune] with trials = 20, and [search]")
    settings = _settings(values["tune"], study.seeds)
    common = _spaces(values.get("search", {}), "[search]", study)
    own = {
        str(table.get("name")): _spaces(table["search"], f"search of variant {table.get('name')!r}", study)
        for table in values.get("variant", [])
        if "search" in table
    }
    first = [run for run in study.runs() if run.seed == study.seeds[0]]
    subjects = tuple(_subject(run, common, own.get(run.variant, {}), settings.metric) for run in first)
    for key in common:
        if not any(key in subject.space for subject in subjects):
            hint = components.nearest(key, {name for run in first for name in run.config.to_mapping()})
            raise ValueError(
                f"[search] {key}: key {key!r} is used by none of the variants: leave it out{hint}"
            )
    metric = _metric(subjects, settings.metric)
    return Plan(study, replace(settings, trials=_budget(settings, subjects)), subjects, metric)


def _settings(table: object, study_seeds: Sequence[int]) -> Settings:
    if not isinstance(table, Mapping):
        raise ValueError(f"[tune] is {table!r}: write a table of keys")
    keys = {components.kebab(key): value for key, value in table.items()}
    if isinstance(keys.get("metric"), str):
        keys["metric"] = keys["metric"].replace("-", "_")
    component = components.inspect_component("table", "[tune]", Settings, injected=())
    settings = families.build(component, keys)
    assert isinstance(settings, Settings)
    if shared := sorted(set(settings.seeds) & set(study_seeds)):
        raise ValueError(
            f"[tune] seeds = {list(settings.seeds)} shares {shared} with the study's seeds: take other "
            "seeds, so that the reported runs do not choose the values"
        )
    first = max(study_seeds) + 1
    return settings if settings.seeds else replace(settings, seeds=(first, first + 1, first + 2))


def _spaces(table: object, name: str, study: Study) -> dict[str, Space]:
    if not isinstance(table, Mapping):
        raise ValueError(f"{name} is {table!r}: write a table of keys")
    spaces = {}
    for key, space in flatten(table).items():
        if key in study.sweep:
            raise ValueError(f"{name} {key}: key {key!r} is in [sweep]: leave it in one of them")
        if key in run_keys() and key not in TUNABLE:
            raise ValueError(f"{name} {key}: key {key!r} cannot be searched: set it in [base]")
        try:
            spaces[key] = parse_space(space)
        except ValueError as error:
            raise ValueError(f"{name} {key}: {error}") from error
    return spaces


def _subject(run: StudyRun, common: Mapping[str, Space], own: Mapping[str, Space], metric: str) -> Subject:
    config = run.config
    spaces = {key: space for key, space in common.items() if config.accepts(key)} | dict(own)
    if not spaces:
        raise ValueError(
            f"variant {run.variant!r} has nothing to search: add one of its keys to [search], or to its own search"
            f"{''.join(components.nearest(key, config.to_mapping()) for key in common)}"
        )
    keys = {key: value for key, value in run.keys.items() if key != "seed"}
    subject = Subject(run.variant, run.point, run.path.relative_to("runs").parent, keys, {}, run.permission)
    if metric.startswith("validation_") and not config.validation_fraction:
        if "validation-fraction" in keys:
            raise ValueError(
                f"metric = {metric!r} needs validation samples, and validation-fraction = 0: leave that key out, or "
                "take another metric, such as 'train_loss'"
            )
        subject = replace(subject, held_out=VALIDATION_FRACTION)
    for family in ("dataset", "partitioner"):
        component = families.find(family, getattr(config, family))
        for key in spaces:
            if key in families.keys_of(component, config.to_mapping()):
                raise ValueError(
                    f"search {key}: key {key!r} of {component} defines the problem: set it in [base]"
                )
    return replace(subject, space={key: fitting(subject, key, space) for key, space in spaces.items()})


def _budget(settings: Settings, subjects: Sequence[Subject]) -> int:
    """Return the number of trials, the same for every subject."""
    sizes: dict[str, float] = {}
    for subject in subjects:
        sizes[str(subject)] = len(subject.grid()) if settings.sampler == "grid" else subject.size
    if settings.sampler == "grid":
        wanted = set(sizes.values()) | ({settings.trials} if settings.trials else set())
        if len(wanted) > 1:
            listed = ", ".join(f"{size:.0f} of {name}" for name, size in sizes.items())
            given = f" and trials = {settings.trials}" if settings.trials else ""
            raise ValueError(
                f"the grids have different budgets: {listed}{given}: give all grids the same number of points"
            )
        return int(wanted.pop())
    if settings.trials is None:
        raise ValueError("[tune] needs trials, the budget of every variant: add trials = 20")
    for name, size in sizes.items():
        if size < settings.trials:
            raise ValueError(
                f"{name} has {int(size)} configurations to search, fewer than trials = {settings.trials}: lower "
                'trials, widen its search, or take sampler = "grid"'
            )
    return settings.trials


def _metric(subjects: Sequence[Subject], name: str) -> Metric:
    """Return the metric of a name, checked against the data and the tasks of all subjects."""
    found: dict[str, Metric] = {}
    for subject in subjects:
        config = subject.config({}, 0)
        if name == "objective" and not config.exact_diagnostics:
            raise ValueError("metric = 'objective' needs exact-diagnostics = true: add that to [base]")
        if name == ROUNDS and config.target_of("") is None:
            raise ValueError("metric = 'rounds_to_target' needs target-accuracy or target: set it in [base]")
        parts = [families.find("dataset", config.dataset)]
        parts += [families.find("task", config.task)] if config.task else []
        keys = {key for part in parts for key in families.keys_of(part)}
        data = {key: value for key, value in config.to_mapping().items() if key in keys}
        fraction = config.validation_fraction
        of_task = (config.task, config.model if ":" in (config.task or "") else None)
        source = repr((config.dataset, config.data_dir, config.num_clients, fraction, data, of_task))
        if source not in found:
            loaded = load_dataset(config)
            if name.startswith("validation_"):
                try:
                    hold_out(loaded, fraction, config.seed)
                except ValueError as error:
                    raise ValueError(f"{error}, or take another metric than {name!r}") from error
            measures = measures_of(config, loaded)
            target = config.target_of(measures[0].of("test").column)
            require_known(target[0] if name == ROUNDS and target else name, measures, config.dataset)
            found[source] = Metric.named(name, measures, target[0] if target else "")
            if config.task == "gan" and found[source].column in ("validation_loss", "test_loss"):
                raise ValueError(
                    f"metric = {name!r} is the critic's loss, which a poor generator lowers too: set fid-samples, and "
                    "metric = 'validation_fid_own'"
                )
    first, *others = found.values()
    if any(other != first for other in others):
        raise ValueError(f"metric = {name!r} means different things for the variants: give all the same task")
    return first
