"""Try random configurations, tables and damaged run directories.

    python tests/fuzz.py --configs 5000 --tables 2000 --directories 500 --seed 0

Each case either works or is refused by a ValueError in one line. Failures are other exceptions, cases
that take longer than a minute, directories that a refused run leaves behind, and models that differ between
the engines. The seed, the kind and the number determine a case: ``--only configs:17`` repeats one.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import logging
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from fedpisa import families
from fedpisa.cli.main import main as command_line
from fedpisa.config.run import RunConfig, load_config
from fedpisa.report import write_report
from fedpisa.runs.results import Result, load_result
from fedpisa.runs.runner import run
from tests.damage import DAMAGES, files_of
from tests.runs.interrupted import cut_short, forget_digests

LIMIT: Final = 60
"""Time limit of a case in seconds."""
LARGE: Final = 1e4
"""Larger parameters diverge, and the engines' rounding errors grow with them."""
KINDS: Final = ("configs", "tables", "directories")
Keys = dict[str, Any]


class FailureError(Exception):
    """A failed case."""


@dataclass
class Fuzz:
    """The cases of one seed.

    Parameters
    ----------
    seed
        The seed.
    folder
        A folder for files.
    verbose
        Whether to print the errors of refused cases.
    """

    seed: int
    folder: Path
    verbose: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.data = self.folder / "data.npz"
        np.savez(self.data, x=rng.normal(size=(40, 4)), y=np.arange(40) % 3)
        self.images = self.folder / "images.npz"
        np.savez(self.images, x=rng.normal(size=(40, 1, 8, 8)), y=np.arange(40) % 3)
        self.numbers = self.folder / "numbers.npz"
        np.savez(self.numbers, x=rng.normal(size=(40, 4)), y=rng.normal(size=40))

    def case(self, kind: str, number: int) -> None:
        """Run one case and count its outcome."""
        rng = random.Random(f"{self.seed} {kind} {number}")
        said = io.StringIO()
        try:
            with within(LIMIT), redirect_stdout(said), redirect_stderr(said):
                outcome = getattr(self, f"_{kind}")(rng, self.folder / f"{kind}-{number}")
        except Exception as error:
            outcome = "FAILED"
            last = traceback.format_exc(limit=-4) if not isinstance(error, FailureError) else str(error)
            self.failures.append(f"{kind}:{number}: {last}")
            print(f"--- {self.failures[-1]}", flush=True)
        finally:
            shutil.rmtree(self.folder / f"{kind}-{number}", ignore_errors=True)
        self.counts[f"{kind} {outcome}"] += 1

    def _refused(self, error: ValueError) -> str:
        require_line(error)
        if self.verbose:
            print(error, file=sys.__stdout__)
        return "refused"

    # ---------------------------------------------------------------------------------- configurations

    def _configs(self, rng: random.Random, place: Path) -> str:
        keys = self.random_keys(rng)
        return self._both_engines(keys, place, stored=rng.random() < 0.2)

    def random_keys(self, rng: random.Random) -> Keys:
        """Return a small run's keys, some of them odd."""
        algorithms = sorted(families.available("algorithm"))
        keys: Keys = {"dtype": "float64", "num-clients": 3, "num-server-rounds": 2, "dataset": "file"}
        keys["algorithm"] = rng.choice(algorithms)
        keys["partitioner"] = rng.choice(
            ["iid", "label-dirichlet", "quantity-dirichlet", "labels-per-client", "shards"]
        )
        keys["data-file"], models = rng.choice(
            [
                (str(self.data), ["logistic", "mlp", "tabular-mlp", None]),
                (str(self.images), ["logistic", "mlp", "simple-cnn"]),
                (str(self.numbers), ["linear", "mlp", None]),
            ]
        )
        if keys["data-file"] == str(self.numbers):
            keys["partitioner"] = "iid"
        if (model := rng.choice(models)) is not None:
            keys["model"] = model
        if keys["algorithm"] in ("pisa",):
            keys["preconditioner"] = rng.choice(sorted(families.available("preconditioner")))
        if keys["algorithm"] == "fedsgd":
            keys["optimizer"] = rng.choice(["sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam", "rprop"])
        known: Mapping[str, object] = load_config(keys).to_mapping()
        for _ in range(rng.choice([0, 1, 1, 2, 3, 4])):
            key = rng.choice(sorted(known))
            keys[key] = odd_value(rng, key, known[key])
        if rng.random() < 0.1:
            keys[
                rng.choice(["rounds", "lr", "sigmaa", "", ".", "a.b.c", "x" * 500, "é", "optimizer-options"])
            ] = 1
        # Keys that would take long, use other machines, or compute on another device.
        for key in ("engine", "device", "ray-address", "data-dir"):
            keys.pop(key, None)
        return keys

    def _both_engines(self, keys: Keys, place: Path, stored: bool = False) -> str:
        found: dict[str, Result | ValueError] = {}
        for engine in ("loop", "auto"):
            out = place / engine if stored else None
            try:
                found[engine] = run({**keys, "engine": engine}, out)
            except ValueError as error:
                require_line(error)
                found[engine] = error
                if out is not None and out.exists():
                    raise FailureError(f"{out} is left behind by {error} with {keys}") from error
            else:
                if out is not None:
                    load_result(out)
        one, other = found["loop"], found["auto"]
        if isinstance(one, ValueError) and isinstance(other, ValueError):
            return self._refused(one)
        if isinstance(one, ValueError) or isinstance(other, ValueError):
            raise FailureError(f"loop gives {one!r} and auto gives {other!r} with {keys}")
        largest = max(size_of(one), size_of(other))
        if one.status != other.status:
            if largest < LARGE:
                raise FailureError(f"loop {one.status} and auto {other.status} with {keys}")
            return "diverged"
        if one.status == "finished" and largest < LARGE:
            for name, value in one.parameters.items():
                if not np.allclose(value, other.parameters[name], rtol=1e-6, atol=1e-8, equal_nan=True):
                    gap = np.abs(value - other.parameters[name]).max()
                    raise FailureError(f"the engines differ by {gap:.2g} in {name} with {keys}")
        return str(one.status)

    # ------------------------------------------------------------------------------------------ tables

    def _tables(self, rng: random.Random, place: Path) -> str:
        place.mkdir()
        keys: Keys = {"dtype": "float64", "num-clients": 3, "num-server-rounds": 2, "partitioner": "iid"}
        keys |= {"algorithm": "fedavg", "engine": "loop"}
        keys |= random_table(rng, place)
        if rng.random() < 0.5 and keys["dataset"] == "file":
            options: Keys = {
                "standardize": True,
                "regression": rng.choice([True, False]),
                "test-fraction": rng.choice([0.01, 0.5, 0.99]),
                "label-column": rng.choice(["label", "a", "nowhere", ""]),
                "group-column": rng.choice(["a", "label"]),
                "drop-columns": rng.choice([["a"], ["a", "b"], ["label"], [""]]),
                "sample-shape": rng.choice([[2, 2], [1], [4], [3, 5]]),
            }
            for key in rng.sample(sorted(options), rng.choice([1, 2])):
                keys[key] = options[key]
        if rng.random() < 0.3:
            return self._both_engines(keys, place / "out")
        from fedpisa.simulation.parts import load_dataset

        try:
            dataset = load_dataset(RunConfig.from_mapping(keys))
        except ValueError as error:
            return self._refused(error)
        if not (np.isfinite(dataset.x_train).all() and np.isfinite(dataset.x_test).all()):
            raise FailureError(f"features are not finite with {keys}")
        return "read"

    # ------------------------------------------------------------------------------------- directories

    def originals(self) -> Path:
        """Make once and return four runs: finished, without digests, unfinished, and extended."""
        whole = self.folder / "whole"
        if not whole.exists():
            keys: Keys = {
                "algorithm": "scaffold",
                "model": "logistic",
                "num-clients": 3,
                "num-server-rounds": 4,
            }
            keys |= {
                "dataset": "file",
                "data-file": str(self.data),
                "partitioner": "iid",
                "checkpoint-every": 2,
            }
            keys |= {"per-client": True}
            run(keys, whole / "finished")
            shutil.copytree(whole / "finished", whole / "old")
            forget_digests(whole / "old")
            cut_short(keys, whole / "unfinished", 3)
            run({**keys, "num-server-rounds": 5}, whole / "longer")
        return whole

    def _directories(self, rng: random.Random, place: Path) -> str:
        whole = self.originals()
        kind = rng.choice(["finished", "old", "unfinished"])
        directory = place / "runs" / "one"
        shutil.copytree(whole / kind, directory)
        shutil.copytree(whole / "finished", place / "runs" / "good")
        names = []
        for file in rng.sample(files_of(directory), rng.choice([1, 1, 1, 2, 3])):
            damage = rng.choice(sorted(DAMAGES))
            names.append(f"{file.name} {damage}")
            if file.is_file():
                DAMAGES[damage](file, rng)
        outcome = "read"
        try:
            result = load_result(directory)
            _ = result.history, repr(result), result.last("test_accuracy"), result.total("bytes_up")
            if result.config.per_client:
                _ = result.clients
        except ValueError as error:
            require_line(error, *(name.split()[0] for name in names))
            outcome = "refused"
        page = write_report([place / "runs"], place / "report.html").page
        if "scaffold" not in page.read_text():
            raise FailureError(f"the report lacks the good run: {names}")
        code = command_line(["plot", str(directory), "--out", str(place / "curves.png")])
        if code not in (0, 1, 2):
            raise FailureError(f"plot ended with {code}: {names}")
        try:
            resumed = run({"num-server-rounds": 5}, resume=directory)
        except ValueError as error:
            require_line(error)
            return outcome
        if not any("config.toml" in name for name in names):
            wanted = load_result(whole / "longer").parameters
            if not all(np.array_equal(value, resumed.parameters[name]) for name, value in wanted.items()):
                raise FailureError(f"the resumed {kind} run has another model: {names}")
        load_result(directory)
        return f"{outcome}, resumed"


# --------------------------------------------------------------------------------------------- values


STRANGE: Final[list[Any]] = [
    0, -1, 1, 2, 0.5, 1.5, 1e-50, 1e39, math.inf, -math.inf, math.nan, 10**30, -(10**30), True, None, date(2020, 1, 1),
    "", "x", "full", "all", "x" * 300, "module:nothing", ":", "a:b:c", "\0", "1e-3",
    [], [1], [0.5, 0.9], [[1]], {}, {"a": 1},
]  # fmt: skip
"""Values that few keys accept."""


def odd_value(rng: random.Random, key: str, now: object) -> Any:
    """Return a value of a key: near the present one, at an end of its range, or of another type."""
    if rng.random() < 0.35:
        return rng.choice(STRANGE)
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return rng.choice([now, 1, 2, 3])
    if isinstance(now, float):
        return rng.choice([now / 2, now * 2, now / 10, now * 10, 0.5, 0.9, 0.0, 1.0])
    families_of_names = {
        "algorithm",
        "partitioner",
        "model",
        "preconditioner",
        "optimizer",
        "schedule",
        "server-strategy",
    }
    families_of_names |= {"differential-privacy", "pace", "availability"}
    if key == "rules":
        name = rng.choice(["bias", "weight", "0", ".", "nothing", "("])
        rule = rng.choice(sorted(families.available("preconditioner")))
        return rng.choice(
            [{name: rule}, {name: {"name": rule, "beta": 0.5}}, {name: {"name": rule}}, {}, {name: 3}]
        )
    if key in families_of_names:
        return rng.choice(sorted(families.available(key)))
    return now


def random_table(rng: random.Random, place: Path) -> Keys:
    """Write a file of samples, often odd, and return the keys that read it."""
    kind = rng.choice(["csv", "csv", "csv", "npz", "npz", "libsvm", "parquet"])
    file = place / f"table.{kind}"
    if kind == "csv":
        content = random_csv(rng).encode(
            rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), errors="replace"
        )
        if rng.random() < 0.1:
            file, content = place / "table.csv.gz", gzip.compress(content)
        file.write_bytes(content)
    elif kind == "npz":
        np.savez(file, **random_arrays(rng))
    elif kind == "parquet":
        random_frame(rng).to_parquet(file)
    else:
        lines = []
        for _ in range(rng.choice([0, 1, 2, 12, 30])):
            label = rng.choice(["0", "1", "-1", "+1", "2.5", "nan", "inf", "x", ""])
            label = label if rng.random() < 0.05 else rng.choice(["0", "1"])
            indices = (
                sorted(rng.sample(range(1, 9), 3))
                if rng.random() < 0.97
                else [rng.choice([0, -1, 2_000_000_000, 10**12])]
            )
            values = [
                rng.choice(["1", "0.5", "-3e2"])
                if rng.random() < 0.98
                else rng.choice(["nan", "inf", "", "a", "1e400"])
                for _ in indices
            ]
            lines.append(" ".join([label, *(f"{i}:{v}" for i, v in zip(indices, values, strict=True))]))
        file.write_text("\n".join(lines) + "\n")
    if rng.random() < 0.15:
        DAMAGES[rng.choice(sorted(DAMAGES))](file, rng)
    return (
        {"dataset": "libsvm", "train-file": str(file)}
        if kind == "libsvm"
        else {"dataset": "file", "data-file": str(file)}
    )


CELLS: Final = (
    "",
    "NA",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 400,
    "x",
    " ",
    "True",
    "1,5",
    '"',
    "'",
    "\0",
    "é",
    "=1+1",
    "2020-01-01",
    "0x10",
    "1_000",
)


HEADERS: Final = [
    ["a", "b", "label"], ["a", "b", "label"], ["label", "a"], ["a", "b"], ["label"], ["a", "a", "label"], [],
    ["", "a", "label"], ["Unnamed: 0", "a", "label"], ["a", "b", "label", ""], ["a" * 5000, "label"],
    ["label", "label"],
]  # fmt: skip


def random_csv(rng: random.Random) -> str:
    """Return the text of a table, often with something wrong."""
    if rng.random() < 0.4:
        rows = (f"{rng.gauss(0, 1):.3f},{rng.gauss(3, 1):.3f},{rng.choice(['yes', 'no'])}" for _ in range(30))
        return "\n".join(["a,b,label", *rows]) + "\n"
    separator = rng.choice([",", ",", ",", ";", "\t", " ", "|"])
    names = rng.choice(HEADERS)
    classes = rng.choice(
        [
            ["0", "1"],
            ["0", "1", "2"],
            ["yes", "no"],
            ["0.0", "1.0"],
            ["0.5", "1.5", "2.25"],
            ["NA", "null"],
            ["", "x"],
            ["1"],
            ["inf", "1.5"],
        ]
    )
    oddness = rng.choice([0, 0, 0.01, 0.2])
    lines = [separator.join(names)] if rng.random() < 0.95 else []
    for _ in range(rng.choice([0, 1, 2, 9, 30, 30, 30])):
        cells = [rng.choice(classes) if name == "label" else f"{rng.gauss(0, 1):.3f}" for name in names]
        cells = [rng.choice(CELLS) if rng.random() < oddness else cell for cell in cells]
        if rng.random() < oddness:
            cells = [*cells, "1"] if rng.random() < 0.5 else cells[:-1]
        lines.append(separator.join(cells))
    return rng.choice(["\n", "\n", "\r\n", "\r"]).join(lines) + rng.choice(["\n", "", "\n\n"])


def random_arrays(rng: random.Random) -> dict[str, Any]:
    """Return arrays of an .npz file, often of odd types and shapes."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    if rng.random() < 0.4:
        return {"x": numbers.normal(size=(40, 4)), "y": np.arange(40) % 3}
    n = rng.choice([0, 1, 2, 9, 40, 40, 40])
    shape = rng.choice([(n, 4), (n, 4), (n, 1, 4, 4), (n,), (n, 0), (n + 1, 4), ()])
    x: Any = numbers.normal(size=shape).astype(
        rng.choice(["f4", "f8", "f2", "i8", "u1", "?", "c8", "U3", "M8[s]", "f4", "f8"])
    )
    kind = rng.choice(["i8", "i8", "u1", "f4", "f8", "?", "U2", "c8", "S2"])
    y: Any = (np.arange(n) % rng.choice([1, 2, 3])).astype(kind)
    if rng.random() < 0.1 and x.dtype.kind == "f" and x.size:
        x.reshape(-1)[0] = rng.choice([np.nan, np.inf, -np.inf])
    if rng.random() < 0.1 and y.dtype.kind == "f" and y.size:
        y[0] = rng.choice([np.nan, np.inf, -1e300])
    if rng.random() < 0.1:
        y = y.reshape(rng.choice([(n, 1), (1, n), (n, 1, 1)]))
    arrays = {rng.choice(["x", "x", "x", "features", "X"]): x, rng.choice(["y", "y", "y", "labels", "Y"]): y}
    extra = {"groups": np.arange(n) % 4, "x_test": x, "y_test": y, "other": np.zeros(3)}
    for name in rng.sample(sorted(extra), rng.choice([0, 0, 1, 2])):
        arrays[name] = extra[name]
    return arrays


def random_frame(rng: random.Random) -> Any:
    """Return a table for a .parquet file."""
    import pandas as pd

    n = rng.choice([0, 1, 30, 30])
    columns: dict[str, Any] = {
        "a": np.linspace(0, 1, n),
        "b": rng.choice(
            [np.arange(n), ["x"] * n, [None] * n, pd.date_range("2020", periods=n), [[1]] * n, [True] * n]
        ),
        "label": rng.choice(
            [
                np.arange(n) % 2,
                ["yes", "no"][: n % 3] * n,
                pd.Categorical(["u"] * n),
                [None] * n,
                np.linspace(0, 1, n),
            ]
        ),
    }
    columns = {name: column if len(column) == n else np.arange(n) % 2 for name, column in columns.items()}
    frame = pd.DataFrame(columns)
    return frame.set_index("a") if rng.random() < 0.2 else frame


# --------------------------------------------------------------------------------------------- checks


def size_of(result: Result) -> float:
    """Return the largest absolute parameter, infinite if one is not finite."""
    largest = max((float(np.abs(value).max(initial=0)) for value in result.parameters.values()), default=0.0)
    return largest if math.isfinite(largest) else math.inf


def require_line(error: ValueError, *names: str) -> None:
    """Check that an error has one short line with one of the names."""
    text = str(error)
    if type(error).__module__.startswith("pydantic") or isinstance(error, UnicodeError):
        raise FailureError(f"{type(error).__name__}: {text}") from error
    if "\n" in text or len(text) > 2000 or not text:
        raise FailureError(
            f"{len(text)} characters, {text.count(chr(10))} line breaks: {text[:300]}"
        ) from error
    if names and not any(name in text for name in names):
        raise FailureError(f"none of {names} in: {text}") from error


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise an error if a block takes longer; end the process if even that has no effect."""

    def stop(signum: int, frame: object) -> None:
        raise FailureError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(5 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print their counts and return 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="time for each kind")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="a single case")
    parser.add_argument("--verbose", action="store_true", help="show why cases are refused")
    options = parser.parse_args(arguments)
    logging.getLogger("fedpisa").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["MPLBACKEND"] = "agg"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(options.seed, Path(folder), verbose=options.verbose)
        if options.only:
            kind, _, number = options.only.partition(":")
            fuzz.case(kind, int(number))
        for kind in KINDS if not options.only else ():
            begin = time.perf_counter()
            for number in range(getattr(options, kind)):
                if time.perf_counter() - begin > options.seconds:
                    break
                fuzz.case(kind, number)
        for outcome, count in sorted(fuzz.counts.items()):
            print(f"{outcome}: {count}")
        print(f"{len(fuzz.failures)} failures")
    torch.set_num_threads(threads)
    return 1 if fuzz.failures else 0


if __name__ == "__main__":
    sys.exit(main())
