"""Runs put in order: which are seeds of one curve, which curves belong in one picture.

A *split* is what is learned and how it lies with the clients: the keys of the data set, the partitioner and the
model, the number of clients and of those that take part. A *variant* is the rest: the algorithm, and those of its
keys that tell it from others of its name on the same split. What one split and one variant share, apart from
``seed``, is a *group*.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from fedpisa import components, families
from fedpisa.runs.results import Result, load_result
from fedpisa.studies.study import STUDY_FILE, read_study

FAMILIES = ("dataset", "partitioner", "model")
"""Whose components' keys, with their names, make a split."""
SETTING = (*FAMILIES, "num-clients", "fraction-train")
BOOKKEEPING = frozenset(
    {
        "seed",
        "data-dir",
        "eval-every",
        "target-accuracy",
        "exact-diagnostics",
        "per-client",
        "checkpoint-every",
    }
)
"""Keys that change what is measured or kept, and not what is trained."""
WRAPPERS = ("server-strategy", "differential-privacy")
"""Keys that make another algorithm of the one that is named, unless they are ``none``."""


@final
@dataclass(frozen=True, eq=False)
class Run:
    """One run's directory, less its model.

    Parameters
    ----------
    directory
        Where it is.
    result
        What was loaded, without the parameters.
    info
        ``run.json``: versions, machine, times.
    name
        The variant's name in the study that the run is part of, or else its algorithm.
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
        """How it ended."""
        return self.result.status

    @cached_property
    def keys(self) -> dict[str, object]:
        """All keys of the configuration."""
        return self.result.config.to_mapping()

    @cached_property
    def split_keys(self) -> dict[str, object]:
        """The keys that say what is learned, and by whom."""
        names = set(SETTING)
        for family in FAMILIES:
            if family in self.keys:
                component = families.find(family, str(self.keys[family]))
                names |= set(families.keys_of(component, self.keys))
        return {name: value for name, value in self.keys.items() if name in names - BOOKKEEPING}

    @cached_property
    def variant_keys(self) -> dict[str, object]:
        """The keys that say how."""
        left_out = BOOKKEEPING | self.split_keys.keys()
        return {name: value for name, value in self.keys.items() if name not in left_out}


@final
@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one variant on one split.

    Parameters
    ----------
    split, variant
        Their numbers among the collection's.
    finished
        Finished runs by seed; the statistics are of these.
    others
        Runs that diverged, were interrupted, failed or still go on.
    repeats
        Further finished runs of a seed that is in ``finished`` already; they count once.
    """

    split: int
    variant: int
    finished: Mapping[int, Run]
    others: Sequence[Run]
    repeats: Sequence[Run]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [*self.finished.values(), *self.others, *self.repeats]

    @property
    def drawn(self) -> list[Run]:
        """Those whose curves are drawn: the finished ones, or, where there is none, the others."""
        return list(self.finished.values()) or list(self.others)

    @property
    def note(self) -> str:
        """What is to be said wherever the group is named, such as ``1 diverged``."""
        statuses = [run.status for run in self.others]
        words = {"running": "unfinished"}
        return ", ".join(
            f"{statuses.count(status)} {words.get(status, status)}" for status in dict.fromkeys(statuses)
        )


@final
@dataclass(frozen=True, eq=False)
class Collection:
    """Everything that a report is about.

    Parameters
    ----------
    groups
        By split, then by variant.
    splits, variants
        Their labels, in order of appearance.
    unreadable
        Directories that hold a configuration and no readable run, with the reason.
    common
        The keys, besides ``seed``, that have the same value in all runs.
    differing
        The others.
    missing
        Runs of studies that have not begun.
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
        """All runs that could be read."""
        return [run for group in self.groups for run in group.runs]

    def of_split(self, split: int) -> list[Group]:
        """Return a split's groups."""
        return [group for group in self.groups if group.split == split]


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run directories among and below some directories, each once.

    Raises
    ------
    ValueError
        If a path is no directory, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path} is not a directory: name a run's directory, or one that holds runs")
        inside = sorted(file.parent for file in path.rglob("config.toml"))
        if not inside:
            raise ValueError(
                f"there is no run in {path}, no config.toml at any depth: name another directory"
            )
        for directory in inside:
            found.setdefault(directory.resolve(), directory)
    return list(found.values())


def collect(paths: Iterable[str | Path]) -> Collection:
    """Read the runs and put them in order.

    Parameters
    ----------
    paths
        Directories of runs, or of folders that hold some at any depth, such as a study's.

    Raises
    ------
    ValueError
        If there is no readable run.
    """
    paths = list(paths)
    directories = find_runs(paths)
    names, missing, unreadable = _studies(directories, [Path(path).resolve() for path in paths])
    runs: list[Run] = []
    for directory in directories:
        try:
            runs.append(_load(directory, names.get(directory.resolve())))
        except (ValueError, OSError) as error:
            # The cause says what is wrong with the run; that it is this run is said beside it.
            unreadable[directory] = " ".join(str(error.__cause__ or error).split())
    if not runs:
        reasons = "; ".join(unreadable.values())
        raise ValueError(f"no run can be read, so there is nothing to report: {reasons}")
    return arrange(runs, unreadable, missing)


def _studies(
    directories: Iterable[Path], asked: Sequence[Path]
) -> tuple[dict[Path, str], list[str], dict[Path, str]]:
    """Return the variants' names by run directory, the runs that have not begun, and studies that cannot be read."""
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
            planned = read_study(file).runs()
        except ValueError as error:
            unreadable[file] = " ".join(str(error).split())
            continue
        names |= {(root / run.path): run.variant for run in planned}
        # Who asks for a part of a study does not miss the rest.
        if any(path == root or path in root.parents for path in asked):
            missing += [str(run) for run in planned if not (root / run.path / "run.json").is_file()]
    return names, missing, unreadable


def _load(directory: Path, variant: str | None) -> Run:
    result = load_result(directory)
    info = json.loads((directory / "run.json").read_bytes())
    # The parameters of many runs would fill the memory: who needs them reads them again, one by one.
    light = Result(result.config, result.rows, {}, result.partition, result.status, directory)
    return Run(directory, light, info, result.config.algorithm if variant is None else variant)


def arrange(runs: Sequence[Run], unreadable: Mapping[Path, str], missing: Sequence[str] = ()) -> Collection:
    """Group runs, and name splits and variants by what tells them apart."""
    by_split: dict[str, list[Run]] = {}
    for run in runs:
        by_split.setdefault(_frozen(run.split_keys), []).append(run)
    splits = list(by_split)
    split_labels = _split_labels([by_split[split][0].split_keys for split in splits])

    telling = {name: _telling(name, list(by_split.values())) for name in {run.name: None for run in runs}}
    labels = {id(run): _variant_label(run, telling[run.name]) for run in runs}
    variants = list(dict.fromkeys(labels[id(run)] for run in runs))

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
    """Return the keys that tell a name's variants apart: those whose value changes within a split.

    A key that changes only from split to split, such as a learning rate tuned for each, makes no other variant.
    """
    named = [[run for run in members if run.name == name] for members in splits]
    for strict in (False, True):
        keys = [_varying([run.variant_keys for run in members], strict) for members in named]
        found = list(dict.fromkeys(key for own in keys for key in own))
        if all(
            len({_variant_label(run, found) for run in members})
            == len({_frozen(run.variant_keys) for run in members})
            for members in named
        ):
            break
    return found


def _varying(mappings: Sequence[Mapping[str, object]], strict: bool = True) -> list[str]:
    """Return the keys that do not have one value in all mappings, in order of appearance.

    Not strictly, a key that a mapping lacks is no difference: that a preconditioner's own keys go with its name
    need not be said.
    """
    names = {name: None for mapping in mappings for name in mapping}
    return [
        name
        for name in names
        if len({_frozen({"": one.get(name)}) for one in mappings if strict or name in one}) > 1
    ]


def _variant_label(run: Run, telling: Sequence[str]) -> str:
    named = run.name != run.result.config.algorithm  # by its study, which knows what it is
    wrapped = [name for name in WRAPPERS if not named and run.keys.get(name, "none") != "none"]
    shown = [name for name in dict.fromkeys([*wrapped, *telling]) if name in run.variant_keys]
    own = [_assignment(name, run.variant_keys[name]) for name in shown]
    return f"{run.name} ({', '.join(own)})" if own else run.name


def _split_labels(splits: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what tells the splits apart, or what the only one is."""
    for strict in (False, True):
        shown = (
            set(_varying(splits, strict)) if len(splits) > 1 else {"dataset", "partitioner", "num-clients"}
        )
        labels = []
        for split in splits:
            # The first key of a partitioner is the one it is about: name it with the partitioner.
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
    return f"{name}={value if isinstance(value, str) else components.show(value)}"
