"""Measure fedpisa and its competitors, and write the results into ``README.md``: ``python benchmarks/run.py``."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
# A competitor's interpreter need not have fedpisa installed: it only reads the workloads.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, str(HERE.parent))

from report import write_report  # noqa: E402

from fedpisa.bench import table  # noqa: E402
from fedpisa.bench.measure import Competitor, alternate, cores, fedpisa, jobs, lacking  # noqa: E402

IMAGE_MODELS = ("mlp", "leaf-cnn", "logistic")


def competitors(with_ray: str | None, with_fedjax: str | None) -> list[Competitor]:
    """Return who takes part; ``None`` leaves one out."""

    def script(name: str, python: str = sys.executable) -> tuple[str, ...]:
        return (python, str(HERE / "competitors" / name))

    found = [
        fedpisa(),
        *(
            Competitor(f"bare PyTorch loop, {number} thread{'s' * (number > 1)}", script("bare.py"), number)
            for number in sorted({1, cores()}, reverse=True)
        ),
        Competitor("one large batch", script("large_batch.py"), cores()),
    ]
    if with_fedjax:
        fedjax = script("fedjax_loop.py", with_fedjax)
        found.append(Competitor("fedjax", fedjax, cores(), ("fedavg",), models=IMAGE_MODELS))
    if with_ray:
        ray = script("flower_ray.py", with_ray)
        found.append(Competitor("Flower, Ray", ray, 1, ("fedavg",), models=IMAGE_MODELS, most_rounds=3))
    return found


def main() -> None:
    """Measure what the command line asks for."""
    ray_here = sys.executable if find_spec("ray") else None
    fedjax_here = sys.executable if find_spec("fedjax") else None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", help="A B C D M L G V R; by default all")
    parser.add_argument("--algorithm", action="append", choices=("fedavg", "sisa"), help="by default both")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument(
        "--rounds", type=int, help="rounds that are timed; by default 20, 4 for B, 5 for L G V R"
    )
    parser.add_argument("--quick", action="store_true", help="one process of each kind, three rounds")
    parser.add_argument(
        "--ray", metavar="PYTHON", default=ray_here, help="an interpreter that has Flower and Ray"
    )
    parser.add_argument(
        "--fedjax", metavar="PYTHON", default=fedjax_here, help="an interpreter that has fedjax"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where results.json, results.png, README.md are"
    )
    asked = parser.parse_args()
    todo = jobs(
        asked.workloads,
        asked.algorithm or ("fedavg", "sisa"),
        3 if asked.quick else asked.rounds,
        1 if asked.quick else 3,
    )
    measurements = []
    for reason in lacking(todo):
        print(f"left out: {reason}", flush=True)
    for one in alternate(competitors(asked.ray, asked.fedjax), todo, 1 if asked.quick else asked.repeats):
        measurements.append(one)
        print(table.line(one), flush=True)
        # Written as they come: a run of an hour that is cut short leaves what it has.
        table.write_json(asked.out / "results.json", measurements)
    write_report(asked.out)


if __name__ == "__main__":
    main()
