"""Runs, grouped by split and variant.

A *split* is a learning problem: the keys of the data set, the partitioner and the model, ``num-clients``,
``fraction-train`` and ``validation-fraction``. A *variant* is an algorithm with its keys; variants of the same name are
labelled with the keys that differ between them on a split. The runs of one variant on one split form a *group*: they
differ only in their seeds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, final

from fedpisa import components, families
from fedpisa.families import READ_ONLY, permitted
from fedpisa.runs.results import Result, load_result
from fedpisa.runs.run_files import RunReader
from fedpisa.storage.files import refuse_link
from fedpisa.studies.splits import BOOKKEEPING, FAMILIES, SETTING, split_keys
from fedpisa.studies.study import STUDY_FILE, read_study

WRAPPERS = ("server-strategy", "differential-privacy")
"""Keys that change the algorithm unless they are ``none``."""


@final
@dataclass(frozen=True, eq=False)
class Run:
    """A run without its model.

    Parameters
    ----------
    directory
        The run's directory.
    result
        The result, without the parameters.
    info
        Content of ``run.json``: versions, machine, times.
    name
        The variant's name in the run's study; without a study, the algorithm.
    """

    directory: Path
    result: Result
    info: Mapping[str, Any]
    name: str

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.result.config.seed

    @property
    def status(self) -> str:
        """The run's status, such as ``finished``."""
        return self.result.status

    @property
    def last_round(self) -> int:
        """Number of the last round."""
        return self.result.last_round

    @cached_property
    def keys(self) -> dict[str, object]:
        """All keys of the configuration."""
        return self.result.config.to_mapping()

    @cached_property
    def split_keys(self) -> dict[str, object]:
        """The keys of the split: data, partition, model and clients."""
        return split_keys(self.result.config)

    @cached_property
    def variant_keys(self) -> dict[str, object]:
        """The keys of the variant: the algorithm and how it trains."""
        left_out = BOOKKEEPING | self.split_keys.keys()
        return {name: value for name, value in self.keys.items() if name not in left_out}


@final
@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one variant on one split.

    Parameters
    ----------
    split, variant
        Indices of the split and of the variant in the collection.
    finished
        Finished runs by seed; the statistics use these only.
    others
        Runs that diverged, were interrupted, failed or are still running.
    repeats
        Finished runs whose seed is already in ``finished``; they are not counted.
    """

    split: int
    variant: int
    finished: Mapping[int, Run]
    others: Sequence[Run]
    repeats: Sequence[Run]

    @property
    def runs(self) -> list[Run]:
        """All runs of the group."""
        return [*self.finished.values(), *self.others, *self.repeats]

    @property
    def is_reference(self) -> bool:
        """Whether the group only gives scale, such as ``centralised``: it has no rank and is in no test."""
        return any(run.result.reference for run in self.runs)

    @property
    def drawn(self) -> list[Run]:
        """The runs whose curves are drawn: the finished ones or, if there are none, the others."""
        return list(self.finished.values()) or list(self.others)

    @property
    def note(self) -> str:
        """Counts of the runs that did not finish, such as ``1 diverged``."""
        statuses = [run.status for run in self.others]
        words = {"running": "unfinished"}
        return ", ".join(
            f"{statuses.count(status)} {words.get(status, status)}" for status in dict.fromkeys(statuses)
        )


@final
@dataclass(frozen=True, eq=False)
class Collection:
    """All runs of a report.

    Parameters
    ----------
    groups
        Groups, ordered by split and then by variant.
    splits, variants
        Labels, in order of appearance.
    unreadable
        Directories and study files that cannot be read, with the reason.
    common
        Keys other than ``seed`` with the same value in all runs.
    differing
        Keys other than ``seed`` with different values.
    missing
        Runs of studies that have not started.
    """

    groups: Sequence[Group]
    splits: Sequence[str]
    variants: Sequence[str]
    unreadable: Mapping[Path, str]
    common: Mapping[str, object]
    differing: Sequence[str]
    missing: Sequence[str] = ()

    @property
    def runs(self) -> list[Run]:
        """All readable runs."""
        return [run for group in self.groups for run in group.runs]

    @property
    def references(self) -> set[int]:
        """The variants that are references."""
        return {group.variant for group in self.groups if group.is_reference}

    def majority_share(self, split: int) -> float | None:
        """Return the mean share of the most frequent class in the test sets; ``None`` if the runs did not store it."""
        runs = [run for group in self.of_split(split) for run in group.runs]
        shares = [run.result.majority_share for run in runs if run.result.majority_share is not None]
        return math.fsum(shares) / len(shares) if shares else None

    def of_split(self, split: int) -> list[Group]:
        """Return a split's groups."""
        return [group for group in self.groups if group.split == split]


def _find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run directories in some directories, at any depth and without duplicates."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not os.path.isdir(path):
            raise ValueError(
                f"{path} is not a directory: give a run's directory, or a directory that contains runs"
            )
        inside = sorted(file.parent for file in path.rglob("config.toml"))
        if not inside and not any(path.rglob("trials.csv")):
            raise ValueError(
                f"there is no run in {path}, no config.toml at any depth: give another directory"
            )
        for directory in inside:
            found.setdefault(directory.resolve(), directory)
    return list(found.values())


def collect(paths: Iterable[str | Path]) -> Collection:
    """Read runs and group them.

    Parameters
    ----------
    paths
        Directories of runs, or directories that contain runs at any depth, such as a study's.

    Raises
    ------
    ValueError
        If there is no readable run.
    """
    paths = list(paths)
    directories = _find_runs(paths)
    if not directories:
        raise ValueError(f"there is only a tuning in {paths[0]}, no run: name the directory of its study too")
    names, missing, unreadable = _studies(directories, [Path(path).resolve() for path in paths])
    runs: list[Run] = []
    for directory in directories:
        try:
            runs.append(_load(directory, names.get(directory.resolve())))
        except (ValueError, OSError) as error:
            # The cause alone: the directory is reported beside it.
            unreadable[directory] = " ".join(str(error.__cause__ or error).split())
    if not runs:
        reasons = "; ".join(unreadable.values())
        raise ValueError(f"no run can be read: {reasons}: give the directory of a complete run")
    return _arrange(runs, unreadable, missing)


def _studies(
    directories: Iterable[Path], paths: Sequence[Path]
) -> tuple[dict[Path, str], list[str], dict[Path, str]]:
    """Return variant names by run directory, the runs that have not started, and unreadable studies."""
    names: dict[Path, str] = {}
    missing: list[str] = []
    unreadable: dict[Path, str] = {}
    # A study's run is in runs/<variant>/<point>/seed-<seed>.
    above = [place.parents[3] for directory in directories if len((place := directory.resolve()).parents) > 3]
    for root in dict.fromkeys(above):
        file = root / STUDY_FILE
        if not file.is_file():
            continue
        try:
            planned = read_study(refuse_link(file)).runs()
        except ValueError as error:
            unreadable[file] = " ".join(str(error).split())
            continue
        names |= {(root / run.path): run.variant for run in planned}
        # A report on a part of a study does not list the rest as missing.
        if any(path == root or path in root.parents for path in paths):
            missing += [str(run) for run in planned if not (root / run.path / "run.json").is_file()]
    return names, missing, unreadable


def _load(directory: Path, variant: str | None) -> Run:
    result = load_result(directory)
    info = RunReader(directory).info
    # The parameters of many runs would fill the memory; `clients` reads them again, one by one.
    light = replace(result, parameters={})
    return Run(directory, light, info, result.config.algorithm if variant is None else variant)


def _arrange(runs: Sequence[Run], unreadable: Mapping[Path, str], missing: Sequence[str]) -> Collection:
    """Group runs, and label splits and variants by the keys in which they differ."""
    by_split: dict[str, list[Run]] = {}
    for run in runs:
        by_split.setdefault(_frozen(run.split_keys), []).append(run)
    splits = list(by_split)
    split_labels = _split_labels([by_split[split][0].split_keys for split in splits])

    telling = {name: _telling(name, list(by_split.values())) for name in {run.name: None for run in runs}}
    labels = {id(run): _variant_label(run, telling[run.name]) for run in runs}
    # References come last, so that the others keep their colours.
    variants = list(
        dict.fromkeys(labels[id(run)] for run in sorted(runs, key=lambda run: bool(run.result.reference)))
    )

    groups = []
    for number, split in enumerate(splits):
        for place, variant in enumerate(variants):
            members = [run for run in by_split[split] if labels[id(run)] == variant]
            if members:
                groups.append(_group(number, place, members))
    keys = [run.keys for run in runs]
    differing = [name for name in _varying(keys) if name != "seed"]
    common = {name: value for name, value in keys[0].items() if name not in {"seed", *differing}}
    return Collection(groups, split_labels, variants, dict(unreadable), common, differing, missing)


def _group(split: int, variant: int, members: Iterable[Run]) -> Group:
    finished: dict[int, Run] = {}
    others, repeats = [], []
    for run in members:
        if run.status != "finished":
            others.append(run)
        elif run.seed in finished:
            repeats.append(run)
        else:
            finished[run.seed] = run
    return Group(split, variant, dict(sorted(finished.items())), others, repeats)


def _frozen(keys: Mapping[str, object]) -> str:
    return json.dumps(keys, sort_keys=True, default=str)


def _telling(name: str, splits: Sequence[Sequence[Run]]) -> list[str]:
    """Return the keys that distinguish the variants of a name: those whose value changes within a split.

    A key that changes only between splits, such as a learning rate tuned for each, does not make another variant.
    """
    named = [[run for run in members if run.name == name] for members in splits]
    for strict in (False, True):
        keys = [_varying([run.variant_keys for run in members], strict) for members in named]
        found = list(dict.fromkeys(chain(*keys)))
        if all(
            len({_variant_label(run, found) for run in members})
            == len({_frozen(run.variant_keys) for run in members})
            for members in named
        ):
            break
    return found


def _varying(mappings: Sequence[Mapping[str, object]], strict: bool = True) -> list[str]:
    """Return the keys with different values, in order of appearance.

    Unless ``strict``, mappings without the key are ignored: the keys of a preconditioner need no label beside its name.
    """
    names = {name: None for mapping in mappings for name in mapping}
    return [
        name
        for name in names
        if len({_frozen({"": one.get(name)}) for one in mappings if strict or name in one}) > 1
    ]


def _variant_label(run: Run, telling: Sequence[str]) -> str:
    named = run.name != run.result.config.algorithm  # named by its study
    wrapped = [name for name in WRAPPERS if not named and run.keys.get(name, "none") != "none"]
    shown = [name for name in dict.fromkeys([*wrapped, *telling]) if name in run.variant_keys]
    labels = [_assignment(name, run.variant_keys[name]) for name in shown]
    label = f"{run.name} ({', '.join(labels)})" if labels else run.name
    return f"reference: {label}" if run.result.reference else label


def _split_labels(splits: Sequence[Mapping[str, object]]) -> list[str]:
    """Return labels with the keys in which the splits differ; a single split gets its main keys."""
    for strict in (False, True):
        shown = (
            set(_varying(splits, strict)) if len(splits) > 1 else {"dataset", "partitioner", "num-clients"}
        )
        labels = []
        for split in splits:
            # A partitioner's first key is its main one: show it with the partitioner.
            with permitted(READ_ONLY):
                partitioner = families.find("partitioner", str(split["partitioner"]))
                main = list(families.keys_of(partitioner, split))[:1] if "partitioner" in shown else []
            names = sorted(split, key=lambda name: SETTING.index(name) if name in SETTING else len(SETTING))
            labels.append(", ".join(_assignment(k, split[k]) for k in names if k in shown or k in main))
        if len(set(labels)) == len(labels):
            break
    return labels


def _assignment(name: str, value: object) -> str:
    if name in FAMILIES:
        return str(value)
    if name == "num-clients":
        return f"{value} clients"
    return f"{name}={text_of(value)}"


def text_of(value: object) -> str:
    """Return a key's value as text, strings without quotes."""
    return value if isinstance(value, str) else components.show(value)


def total_bytes(result: Result) -> float:
    """Return the bytes of all rounds, both directions."""
    return result.total("bytes_up") + result.total("bytes_down")
