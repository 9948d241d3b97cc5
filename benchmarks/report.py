"""Write ``results.json`` as tables into ``README.md`` and as a picture: ``python benchmarks/report.py``."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fedpisa.bench import table  # noqa: E402
from fedpisa.bench.measure import Figure, summary  # noqa: E402
from fedpisa.bench.workloads import WORKLOADS  # noqa: E402

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def write_report(folder: Path) -> None:
    """Write the tables between the marks of a folder's ``README.md``, and ``results.png``."""
    machine, measurements = table.read_json(folder / "results.json")
    figures = summary(measurements)
    readme = folder / "README.md"
    text = readme.read_text() if readme.exists() else f"{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN)
    readme.write_text(head + BEGIN + "\n" + tables(machine, figures) + "\n" + END + rest.split(END)[1])
    draw(figures, folder / "results.png")


def tables(machine: dict[str, str], figures: Sequence[Figure]) -> str:
    """Return all tables in Markdown."""
    about = "; ".join(f"{name}: {value}" for name, value in machine.items())
    parts = [textwrap.fill(f"{about}.", 120)]
    for corner, cell in (
        ("seconds per round", table.seconds),
        ("peak memory, GB", table.memory),
        ("seconds from the shell to the first round", table.startup),
    ):
        parts.append(table.markdown(table.grid(figures, cell, corner)))
    parts.append(table.markdown(ratios(figures)))
    failures = dict.fromkeys(
        f"{f.competitor}, {f.workload} {f.algorithm}: {f.error}" for f in figures if f.error
    )
    return "\n\n".join(parts + [f"Failed: {failure}" for failure in failures])


def ratios(figures: Sequence[Figure]) -> list[list[str]]:
    """Return fedpisa's time by that of others."""
    columns = list(dict.fromkeys((figure.workload, figure.algorithm) for figure in figures))
    names = list(dict.fromkeys(figure.competitor for figure in figures))
    bare = [name for name in names if name.startswith("bare")]
    against = {"the quicker bare loop": bare} | {
        name: [name] for name in names if name not in (*bare, "fedpisa")
    }

    def cell(others: Sequence[str], column: tuple[str, str]) -> str:
        value = table.ratio(figures, "fedpisa", others, *column)
        return table.digits(value) if math.isfinite(value) else ""

    head = ["fedpisa's time by that of", *(" ".join(column) for column in columns)]
    return [
        head,
        *([name, *(cell(others, column) for column in columns)] for name, others in against.items()),
    ]


def draw(figures: Sequence[Figure], file: Path) -> None:
    """Draw the seconds per round, a panel for each workload and algorithm."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    columns = list(dict.fromkeys((f.workload, f.algorithm) for f in figures if math.isfinite(f.seconds)))
    names = list(dict.fromkeys(figure.competitor for figure in figures))
    rows = sorted({algorithm for _, algorithm in columns})
    across = [name for name in WORKLOADS if any(workload == name for workload, _ in columns)]
    size = (3.2 * len(across), 0.35 * len(names) * len(rows) + 0.8 * len(rows) + 0.4)
    picture, panels = plt.subplots(
        len(rows), len(across), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for row, algorithm in enumerate(rows):
        for column, workload in enumerate(across):
            panel = panels[row, column]
            panel.set_title(f"{workload}, {algorithm}", fontsize="medium")
            here = [f for f in figures if (f.workload, f.algorithm) == (workload, algorithm)]
            here = [f for f in here if math.isfinite(f.seconds)]
            panel.set_visible(bool(here))
            for f in here:
                colour = "C0" if f.competitor == "fedpisa" else "0.6"
                error = [[f.seconds - f.low], [f.high - f.seconds]]
                error = [[max(0.0, side[0])] for side in error]
                panel.barh(names.index(f.competitor), f.seconds, xerr=error, color=colour, height=0.7)
            panel.set_xscale("log")
            if here:  # from one power of ten to another: else some panels have no number
                low, high = min(f.low for f in here), max(f.high for f in here)
                panel.set_xlim(
                    10.0 ** math.floor(math.log10(low)), 10.0 ** (math.floor(math.log10(high)) + 1)
                )
            panel.xaxis.set_minor_formatter(NullFormatter())  # else they overlap
            panel.set_yticks(range(len(names)), names)
            panel.set_ylim(len(names) - 0.5, -0.5)
            panel.grid(axis="x", alpha=0.3)
    picture.supxlabel("seconds per round")
    picture.savefig(file, dpi=120)
    plt.close(picture)


if __name__ == "__main__":
    write_report(HERE)
