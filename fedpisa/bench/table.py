"""Figures as text for a terminal or in Markdown, and measurements as JSON."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

from fedpisa.bench.measure import Figure, Measurement, cores

Cell = Callable[[Figure], str]


def seconds(figure: Figure) -> str:
    """Return the median seconds of a round and, in brackets, the smallest and largest median of a process.

    Examples
    --------
    >>> seconds(Figure("x", "A", "fedavg", 0.1234, 0.12, 0.13, 1.0, 0, 0, 0.0))
    '0.123 (0.12-0.13)'
    """
    if figure.error:
        return "failed"
    return f"{digits(figure.seconds)} ({digits(figure.low)}-{digits(figure.high)})"


def memory(figure: Figure) -> str:
    """Return the peak memory in GB: resident, and proportional if processes share memory."""
    if figure.error:
        return ""
    resident, proportional = figure.resident / 1e9, figure.proportional / 1e9
    return f"{resident:.2f}" if proportional > 0.9 * resident else f"{resident:.2f} ({proportional:.2f} PSS)"


def startup(figure: Figure) -> str:
    """Return the seconds from the start of the process to the end of its first round."""
    return "" if figure.error else f"{figure.startup:.1f}"


def digits(number: float) -> str:
    """Return a number with three significant digits.

    Examples
    --------
    >>> [digits(number) for number in (0.012345, 1.5, 29.34)]
    ['0.0123', '1.5', '29.3']
    """
    return f"{number:.3g}"


def grid(figures: Sequence[Figure], cell: Cell, corner: str) -> list[list[str]]:
    """Return a table as rows of text, with a row per competitor and a column per job."""
    columns = list(dict.fromkeys((figure.workload, figure.algorithm) for figure in figures))
    names = list(dict.fromkeys(figure.competitor for figure in figures))
    cells = {(f.competitor, f.workload, f.algorithm): cell(f) for f in figures}
    head = [corner, *(f"{workload} {algorithm}" for workload, algorithm in columns)]
    return [head, *([name, *(cells.get((name, *column), "") for column in columns)] for name in names)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as a Markdown table; the first row is the head.

    Examples
    --------
    >>> print(markdown([["s/round", "A"], ["fedpisa", "0.1"]]))
    | s/round | A |
    | --- | --- |
    | fedpisa | 0.1 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def ratio(figures: Sequence[Figure], own: str, others: Sequence[str], workload: str, algorithm: str) -> float:
    """Return the seconds of competitor ``own`` divided by those of the fastest other; NaN if either is missing."""
    good = [f for f in figures if (f.workload, f.algorithm, f.error) == (workload, algorithm, "")]
    seconds = {f.competitor: f.seconds for f in good}
    best = min((seconds[name] for name in others if name in seconds), default=math.nan)
    return seconds.get(own, math.nan) / best


def line(measurement: Measurement) -> str:
    """Return one measurement in a line."""
    m = measurement
    result = m.error or f"{digits(median(m.seconds))} s per round, {m.resident / 1e9:.2f} GB"
    return f"{m.workload} {m.algorithm}, {m.competitor}: {result}"


def write_json(file: Path, measurements: Iterable[Measurement]) -> None:
    """Write measurements, and a description of this machine."""
    results = {"machine": machine(), "measurements": [asdict(m) for m in measurements]}
    file.write_text(json.dumps(results, indent=1) + "\n")


def read_json(file: Path) -> tuple[dict[str, str], list[Measurement]]:
    """Return the machine and the measurements written by `write_json`."""
    results = json.loads(file.read_text())
    measurements = [
        Measurement(**{**values, "seconds": tuple(values["seconds"])}) for values in results["measurements"]
    ]
    return results["machine"], measurements


def machine() -> dict[str, str]:
    """Return a description of this machine and the versions of the packages."""
    return {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("fedpisa", "torch", "flwr", "numpy")},
    }


def _processor() -> str:
    """Return the processor's name and, on Linux, its family and model."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    known = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in known:
        return platform.processor() or platform.machine()
    return f"{known['model name']}, family {known.get('cpu family', '?')}, model {known.get('model', '?')}"
