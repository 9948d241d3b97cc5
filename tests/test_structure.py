"""The layout's rules: imports between packages, no cycles, no loose files, no long files."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = (
    *(
        "components",
        "storage",
        "control",
        "datasets",
        "models",
        "tasks",
        "clients",
        "strategies",
        "flower",
        "server",
    ),
    *("families", "plots", "config", "simulation", "runs", "apps", "deployment", "studies", "tuning"),
    *("report", "bench", "cli"),
)
"""Bottom up: a package imports only packages that precede it."""
BELOW_ALL, ABOVE_ALL = {"rng", "typing"}, {"__init__", "__main__", "authoring"}
APART = {"config": ("strategies", "datasets", "models"), "tasks": ("simulation",), "clients": ("simulation",)}
"""Packages that a package must not import, for a reason other than the order."""
LONGEST = {"fedpisa": 300, "tests": 500}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in (ROOT / "fedpisa").rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """Return the modules that a module imports, including lazy imports and those for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name != "fedpisa"} - {module}


IMPORTS = {module: imports_of(module) for module in MODULES}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def code_lines(path: Path) -> int:
    """Count the lines of code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_packages_import_only_those_below_them() -> None:
    rank = {name: position for position, name in enumerate(ORDER)}
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if package_of(module) in rank
        for name in sorted(names)
        if package_of(name) in ABOVE_ALL | BELOW_ALL - BELOW_ALL
        or (package_of(name) in rank and rank[package_of(name)] > rank[package_of(module)])
        or package_of(name) in APART.get(package_of(module), ())
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_modules() -> None:
    # A module always imports its package's __init__, which is therefore no arrow.
    arrows = {m: {n for n in names if not m.startswith(f"{n}.")} for m, names in IMPORTS.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_every_file_has_a_place_and_a_length_to_read() -> None:
    places = {
        path.name for path in (ROOT / "fedpisa").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert places == set(ORDER)
    loose = sorted(path.stem for path in (ROOT / "fedpisa").glob("*.py"))
    assert len(loose) <= 5, loose
    long = [
        f"{path.relative_to(ROOT)}: {code_lines(path)} lines of code"
        for folder, most in LONGEST.items()
        for path in (ROOT / folder).rglob("*.py")
        if code_lines(path) > most
    ]
    assert not long, "\n".join(long)


if __name__ == "__main__":
    counts = dict.fromkeys((*ORDER, *BELOW_ALL, *ABOVE_ALL), 0)
    for module, path in MODULES.items():
        counts[package_of(module)] = counts.get(package_of(module), 0) + code_lines(path)
    edges = {(package_of(a), package_of(b)) for a, names in IMPORTS.items() for b in names} - {
        (package, package) for package in counts
    }
    print(*(f"{package:12} {count:6}" for package, count in counts.items()), sep="\n")
    print(f"lines of code {sum(counts.values())}, edges {len(edges)}")


def test_a_run_loads_no_library_that_it_does_without() -> None:
    """They take a fifth of a gigabyte and seconds to load."""
    keys = {"dataset": "synthetic", "num-clients": 2, "num-server-rounds": 1, "algorithm": "fedavg"}
    script = (
        "import sys, fedpisa\n"
        "from fedpisa.config.run import RunConfig\n"
        "from fedpisa.runs.simulation import Simulation\n"
        f"[*Simulation(RunConfig.from_mapping({keys})).rows()]\n"
        "print(*{'pandas', 'matplotlib', 'torchvision', 'gymnasium', 'transformers'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
