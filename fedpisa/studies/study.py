"""A study: its runs, their directories and their results.

A study file has a base configuration, keys to sweep, named variants and seeds::

    seeds = [0, 1, 2]                # [0] by default

    [base]                           # flat keys, as for one run
    dataset = "digits"

    [sweep]                          # every combination of these
    dirichlet-alpha = [0.1, 10]

    [[variant]]                      # flat keys that differ from the base
    name = "sisa"
    algorithm = "sisa"

    [[variant.at]]                   # keys that depend on the point
    dirichlet-alpha = 0.1            # swept keys, all or some, select the points;
    sigma = 0.5                      # the other keys hold there

Only `fedpisa.tuning` uses the tables ``[tune]`` and ``[search]`` and a variant's ``search``.

The study's directory has ``study.toml`` and the runs' directories ``runs/<variant>/<point>/seed-<seed>``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, final

from fedpisa import components
from fedpisa.config.run import RunConfig, flatten, nest, other_names, override, read_toml
from fedpisa.families import Permission, permitted
from fedpisa.runs.results import Result, load_result
from fedpisa.storage.files import inside, refuse_link, shortened
from fedpisa.tasks.measures import LOSS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from fedpisa.plots import Abscissa, Band

STUDY_FILE: Final = "study.toml"
_TABLES: Final = ("name", "seeds", "base", "sweep", "variant")
MOST_RUNS: Final = 100_000
"""The largest number of runs of a study."""
_TUNING: Final = ("tune", "search")


@final
@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Parameters
    ----------
    variant
        Name of the variant.
    point
        Values of the swept keys.
    seed
        Seed of the run.
    keys
        All keys: the base's, the variant's, the point's and the seed.
    path
        Directory of the run, relative to the study's directory.
    permission
        Modules that the keys may name; ``None`` if they come from Python.
    """

    variant: str
    point: Mapping[str, object]
    seed: int
    keys: Mapping[str, object]
    path: PurePosixPath
    permission: Permission | None = field(default=None, compare=False, repr=False)

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration.

        Raises
        ------
        ValueError
            If a key or value is invalid; the error names the variant and the point.
        """
        try:
            with permitted(self.permission):
                return RunConfig.from_mapping(self.keys)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from error

    @cached_property
    def stored(self) -> RunConfig:
        """The run's configuration to compare with one that was read from a result; nothing is imported."""
        return RunConfig.from_mapping(self.keys, stored=True)

    def __str__(self) -> str:
        return f"variant {self.variant!r}, {', '.join([*_assignments(self.point), f'seed={self.seed}'])}"


@final
@dataclass(frozen=True)
class StudyResult:
    """The result of a run of a study.

    Parameters
    ----------
    variant
        Name of the variant.
    point
        Values of the swept keys.
    seed
        Seed of the run.
    result
        Result of the run, with any status.
    """

    variant: str
    point: Mapping[str, object]
    seed: int
    result: Result


@final
@dataclass(frozen=True)
class Study:
    """A set of runs: each variant at each point of the sweep, with each seed.

    Parameters
    ----------
    name
        Name of the study.
    base
        Keys of all runs.
    sweep
        Values of each swept key; the points are all combinations.
    variants
        Keys of each variant that differ from the base, by name.
    seeds
        Seeds of the runs.
    at
        Keys of a variant that hold at some points only: pairs of the swept values and the keys.
    permission
        Modules that the keys may name; ``None`` if they come from Python.

    Examples
    --------
    >>> study = Study.from_mapping(
    ...     {
    ...         "seeds": [0, 1],
    ...         "base": {"num-server-rounds": 5},
    ...         "sweep": {"dirichlet-alpha": [0.1, 10]},
    ...         "variant": [{"name": "a", "algorithm": "fedavg"}, {"name": "b"}],
    ...     }
    ... )
    >>> runs = study.runs()
    >>> len(runs), str(runs[0].path), runs[0].config.algorithm
    (8, 'runs/a/dirichlet-alpha=0.1/seed-0', 'fedavg')
    """

    name: str
    base: Mapping[str, object]
    sweep: Mapping[str, Sequence[object]]
    variants: Mapping[str, Mapping[str, object]]
    seeds: Sequence[int]
    at: Mapping[str, Sequence[tuple[Mapping[str, object], Mapping[str, object]]]] = field(
        default_factory=dict
    )
    permission: Permission | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], name: str = "study") -> Study:
        """Return the study of a study file's tables.

        Parameters
        ----------
        values
            Content of the file.
        name
            Name of the study if the file has none.

        Raises
        ------
        ValueError
            If a table has the wrong form, or a key is set in two tables that exclude each other.
        """
        for key in values:
            if key not in (*_TABLES, *_TUNING):
                raise ValueError(
                    f"unknown key {key!r} in the study{components.nearest(key, _TABLES)}: a study has "
                    f"{', '.join(_TABLES)}, and the runs' own keys are in [base], [sweep] and [[variant]]"
                )
        base = _table(values.get("base", {}), "[base]")
        sweep: dict[str, list[object]] = {}
        for key, listed in _table(values.get("sweep", {}), "[sweep]").items():
            if not isinstance(listed, list) or not listed:
                raise ValueError(f"[sweep] {key} = {listed!r} is not a list of values: write {key} = [...]")
            if not components.are_distinct(listed):
                raise ValueError(f"[sweep] {key} = {listed!r} has a value twice: list each once")
            sweep[key] = listed
        variants = _variants(values.get("variant", []))
        at = {
            name: _places(name, tables, sweep)
            for name, keys in variants.items()
            if (tables := keys.pop("at", None))
        }
        for table, keys in (("[base]", base), *((f"variant {n!r}", keys) for n, keys in variants.items())):
            for key in keys:
                if key in sweep:
                    raise ValueError(f"key {key!r} is in {table} and in [sweep]: leave it in one of them")
        for variant, keys in variants.items():
            for old, new in other_names({**base, **keys}, sweep).items():
                raise ValueError(
                    f"variant {variant!r}: {old!r} and {new!r} of [sweep] are the same key: remove {old!r}"
                )
        study_name = values.get("name", name)
        if not isinstance(study_name, str) or not study_name.strip():
            raise ValueError(f"name = {study_name!r} is not a name: write a string")
        seeds = _seeds(values.get("seeds", [0]))
        size = math.prod(map(len, (variants, seeds, *sweep.values())))
        if size > MOST_RUNS:
            raise ValueError(f"the study has {size} runs: leave at most {MOST_RUNS}, in several studies")
        return cls(study_name, base, sweep, variants, seeds, at)

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return shortened(re.sub(r"[^\w .=,+-]+", "-", self.name).strip(" .")) or "study"

    def points(self) -> list[dict[str, object]]:
        """Return all combinations of the swept values; without a sweep, one empty point."""
        return [dict(zip(self.sweep, chosen, strict=True)) for chosen in product(*self.sweep.values())]

    def runs(self) -> list[StudyRun]:
        """Return all runs, ordered by variant, point and seed."""
        points = self.points()
        names = dict(zip(self.variants, _distinct(map(_slug, self.variants)), strict=True))
        slugs = _distinct(_slug(",".join(_assignments(point))) for point in points)
        return [
            StudyRun(
                variant,
                point,
                seed,
                override(self.base, keys, point, self._keys_at(variant, point), {"seed": seed}),
                PurePosixPath("runs", names[variant], slug, f"seed-{seed}"),
                self.permission,
            )
            for variant, keys in self.variants.items()
            for point, slug in zip(points, slugs, strict=True)
            for seed in self.seeds
        ]

    def _keys_at(self, variant: str, point: Mapping[str, object]) -> dict[str, object]:
        """Return the keys of a variant that hold at a point; they override its other keys."""
        places = self.at.get(variant, ())
        return {k: v for where, keys in places if where.items() <= point.items() for k, v in keys.items()}

    def to_toml(self) -> str:
        """Return the study as TOML for `read_study`."""
        import tomli_w

        variants: list[dict[str, object]] = []
        for name, keys in self.variants.items():
            places = [nest({**where, **changed}) for where, changed in self.at.get(name, ())]
            variants.append({"name": name, **nest(keys), **({"at": places} if places else {})})
        tables = {"base": nest(self.base), "sweep": nest(self.sweep), "variant": variants}
        return tomli_w.dumps({"name": self.name, "seeds": list(self.seeds), **tables})

    def results(self, directory: str | os.PathLike[str]) -> list[StudyResult]:
        """Return the results of all started runs, with any status.

        A run that cannot be read is left out, with a warning.
        """
        results = []
        for run in self.runs():
            path = inside(Path(directory), run.path)
            try:
                if (path / "run.json").exists():
                    results.append(StudyResult(run.variant, run.point, run.seed, load_result(path)))
            except ValueError as error:
                components.LOG.warning("%s", error)
        return results

    def frame(self, directory: str | os.PathLike[str]) -> pd.DataFrame:
        """Return the rounds of all runs in one table; see `frame`."""
        return frame(self.results(directory))

    def plot(
        self,
        directory: str | os.PathLike[str],
        x: Abscissa | str | Sequence[Abscissa | str] = "rounds",
        y: str | Sequence[str] | None = None,
        path: str | Path | None = None,
        *,
        band: Band = "deviation",
        labels: Mapping[str, str] | None = None,
        width: float | None = None,
        font_size: float = 9.0,
    ) -> Figure:
        """Draw mean and band over the seeds: a line per variant, a panel per split.

        Swept keys of data, partition, model and clients make panels. Other swept keys make lines.

        Parameters
        ----------
        directory
            The study's directory.
        x, y, path, band, labels, width, font_size
            As in `fedpisa.plots.plot_study`.

        Returns
        -------
        matplotlib.figure.Figure
            The figure, which a notebook shows. pyplot does not know it.

        Raises
        ------
        ValueError
            If no run of the study has started, or a parameter is invalid.
        """
        from fedpisa.plots import plot_study
        from fedpisa.studies.splits import split_keys

        results = self.results(directory)
        if not results:
            raise ValueError(
                f"nothing to plot: no run of the study in {directory} has started: run fedpisa compare first"
            )
        names = {key for one in results for key in split_keys(one.result.config)}
        targets = {one.result.target for one in results}
        measures = results[0].result.measures
        return plot_study(
            frame(results),
            [key for key in self.sweep if key in names],
            ["variant", *(key for key in self.sweep if key not in names)],
            x,
            y,
            path,
            band=band,
            labels=labels,
            references={one.variant for one in results if one.result.reference},
            width=width,
            font_size=font_size,
            target=targets.pop() if len(targets) == 1 else None,
            measures=measures if all(one.result.measures == measures for one in results) else (LOSS,),
        )


def read_study(file: str | os.PathLike[str], *, allow: Iterable[str] = ()) -> Study:
    """Return the study of a file; its default name is that of the file, or of the directory of a ``study.toml``.

    Parameters
    ----------
    file
        The file.
    allow
        Modules that it may name, besides those in its folder and in the current one. None is imported yet.

    Raises
    ------
    ValueError
        If the file does not exist, or is not a study.
    """
    path = Path(file)
    name = path.resolve().parent.name if path.name == STUDY_FILE else path.stem
    try:
        study = Study.from_mapping(flatten(read_toml(path)), name=name or path.stem)
        return replace(study, permission=Permission.of_file(path, allow))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_study(directory: str | os.PathLike[str]) -> list[StudyResult]:
    """Return the results of a study's started runs, in the study's order.

    Parameters
    ----------
    directory
        Directory that ``fedpisa compare`` wrote; it has a ``study.toml``.

    Raises
    ------
    ValueError
        If the directory is not a study's.
    """
    file = Path(directory) / STUDY_FILE
    if not os.path.isfile(file):
        raise ValueError(
            f"{directory} is not a study's directory, it has no {STUDY_FILE}: "
            "give a directory that fedpisa compare wrote"
        )
    return read_study(refuse_link(file)).results(directory)


def frame(results: Sequence[StudyResult]) -> pd.DataFrame:
    """Return the rounds of all runs in one table; each row has the run's variant, swept keys, seed and status."""
    import pandas as pd

    parts = [
        one.result.history.assign(
            variant=one.variant,
            **{key: _cell(value) for key, value in one.point.items()},
            seed=one.seed,
            status=one.result.status,
        )
        for one in results
    ]
    first = ["variant", *dict.fromkeys(key for one in results for key in one.point), "seed", "status"]
    if not parts:
        return pd.DataFrame(columns=first)
    table = pd.concat(parts, ignore_index=True)
    return table[[*first, *(column for column in table.columns if column not in first)]]


def _table(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}: write a table of keys")
    table = flatten(value)
    if "seed" in table:
        raise ValueError(f"{name} sets seed: list the study's seeds at the top, seeds = [0, 1, 2]")
    return table


def _variants(tables: object) -> dict[str, dict[str, object]]:
    """Return the keys of each variant by name; a study without variants has one, ``base``."""
    if not isinstance(tables, list):
        raise ValueError("variant is not a list of tables: write [[variant]]")
    variants: dict[str, dict[str, object]] = {}
    for number, value in enumerate(tables, start=1):
        keys = _table(value, f"[[variant]] number {number}")
        name = keys.pop("name", None)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f'[[variant]] number {number} has no name: add name = "..."')
        keys.pop("search", None)
        if name in variants:
            raise ValueError(f"two variants are called {name!r}: give each a different name")
        variants[name] = keys
    return variants or {"base": {}}


def _places(
    variant: str, tables: object, sweep: Mapping[str, Sequence[object]]
) -> list[tuple[dict[str, object], dict[str, object]]]:
    """Return pairs of swept values and the keys that a variant has there."""
    name = f"[[variant.at]] of {variant!r}"
    if not isinstance(tables, list):
        raise ValueError(f"{name} is not a list of tables: write [[variant.at]]")
    places = []
    for value in tables:
        keys = _table(value, name)
        where = {key: keys.pop(key) for key in sweep if key in keys}
        for key, chosen in where.items():
            if chosen not in sweep[key]:
                raise ValueError(f"{name}: {key} = {chosen!r} is not in the sweep, which has {sweep[key]!r}")
        if not where or not keys:
            raise ValueError(
                f"{name} needs a value of the sweep, and keys that hold there: it has {[*where, *keys]}"
            )
        places.append((where, keys))
    return places


def _seeds(value: object) -> tuple[int, ...]:
    if isinstance(value, list) and value and len(set(map(repr, value))) == len(value):
        seeds = [seed for seed in value if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0]
        if len(seeds) == len(value):
            return tuple(seeds)
    raise ValueError(
        f"seeds = {components.printable(value)}: write a list of distinct whole numbers from 0 on, seeds = [0, 1]"
    )


def _assignments(point: Mapping[str, object]) -> Iterator[str]:
    """Yield ``key=value`` of a point, as on the command line."""
    for key, value in point.items():
        yield f"{key}={_cell(value)}"


def _cell(value: object) -> float | str:
    """Return a value for a table: numbers unchanged, other values as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return components.show(value).strip("\"'")


def _slug(text: str) -> str:
    """Return a folder name for a text.

    Examples
    --------
    >>> _slug("dirichlet-alpha=0.1,widths=[64, 32]"), _slug("")
    ('dirichlet-alpha=0.1,widths=64-32', 'all')
    """
    return shortened(re.sub(r", |[^\w.=,+-]+", "-", re.sub(r"[][]", "", text)).strip("-.")) or "all"


def _distinct(names: Iterable[str]) -> list[str]:
    """Return unique names: a repeated name gets a number.

    Examples
    --------
    >>> _distinct(iter(["a", "b", "a"]))
    ['a', 'b', 'a-2']
    """
    taken: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for name in names:
        unique = name
        while unique.lower() in taken:
            numbers[name] = numbers.get(name, 1) + 1
            unique = f"{name}-{numbers[name]}"
        taken[unique.lower()] = unique
    return list(taken.values())
