"""Figures as text: for a terminal, and in Markdown."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import psutil

from fedpisa.bench.measure import Figure, Measurement, cores

Cell = Callable[[Figure], str]


def seconds(figure: Figure) -> str:
    """Return the median seconds of a round and, in brackets, the extreme medians of the processes.

    Examples
    --------
    >>> seconds(Figure("x", "A", "fedavg", 0.1234, 0.12, 0.13, 1.0, 0, 0, 0.0))
    '0.123 (0.12-0.13)'
    """
    if figure.error:
        return "failed"
    return f"{digits(figure.seconds)} ({digits(figure.low)}-{digits(figure.high)})"


def memory(figure: Figure) -> str:
    """Return the peak memory in GB: resident, and proportional where processes share some."""
    if figure.error:
        return ""
    resident, proportional = figure.resident / 1e9, figure.proportional / 1e9
    return f"{resident:.2f}" if proportional > 0.9 * resident else f"{resident:.2f} ({proportional:.2f} PSS)"


def startup(figure: Figure) -> str:
    """Return the seconds from the start of the process to the end of its first round."""
    return "" if figure.error else f"{figure.startup:.1f}"


def digits(number: float) -> str:
    """Return a number with three digits.

    Examples
    --------
    >>> [digits(number) for number in (0.012345, 1.5, 29.34)]
    ['0.0123', '1.5', '29.3']
    """
    return f"{number:.3g}"


def grid(figures: Sequence[Figure], cell: Cell, corner: str) -> list[list[str]]:
    """Return a table as rows of text: a competitor in each row, a job in each column."""
    columns = list(dict.fromkeys((figure.workload, figure.algorithm) for figure in figures))
    names = list(dict.fromkeys(figure.competitor for figure in figures))
    cells = {(f.competitor, f.workload, f.algorithm): cell(f) for f in figures}
    head = [corner, *(f"{workload} {algorithm}" for workload, algorithm in columns)]
    return [head, *([name, *(cells.get((name, *column), "") for column in columns)] for name in names)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, the first one the head, as a Markdown table.

    Examples
    --------
    >>> print(markdown([["s/round", "A"], ["fedpisa", "0.1"]]))
    | s/round | A |
    | --- | --- |
    | fedpisa | 0.1 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def ratio(figures: Sequence[Figure], one: str, others: Sequence[str], workload: str, algorithm: str) -> float:
    """Return how long ``one`` takes by the quickest of the others; NaN where either is missing."""
    times = {f.competitor: f.seconds for f in figures if (f.workload, f.algorithm) == (workload, algorithm)}
    best = min((times[name] for name in others if math.isfinite(times.get(name, math.nan))), default=math.nan)
    return times.get(one, math.nan) / best


def line(one: Measurement) -> str:
    """Return one measurement in a line."""
    said = one.error or f"{digits(median(one.seconds))} s per round, {one.resident / 1e9:.2f} GB"
    return f"{one.workload} {one.algorithm}, {one.competitor}: {said}"


def write_json(file: Path, measurements: Iterable[Measurement]) -> None:
    """Write measurements, and the machine that they were taken on."""
    results = {"machine": machine(), "measurements": [asdict(one) for one in measurements]}
    file.write_text(json.dumps(results, indent=1) + "\n")


def read_json(file: Path) -> tuple[dict[str, str], list[Measurement]]:
    """Return the machine and the measurements of `write_json`."""
    results = json.loads(file.read_text())
    measurements = [
        Measurement(**{**values, "seconds": tuple(values["seconds"])}) for values in results["measurements"]
    ]
    return results["machine"], measurements


def machine() -> dict[str, str]:
    """Return what the numbers were taken on."""
    from importlib.metadata import version

    return {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("fedpisa", "torch", "flwr", "numpy")},
    }


def _processor() -> str:
    """Return the processor's name, and its family and model where the system says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        known.setdefault(name.strip(), value.strip())
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']}, family {known.get('cpu family', '?')}, model {known.get('model', '?')}"
