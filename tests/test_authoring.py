"""Authors need one import line, and documented paths work after modules have moved."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fedpisa
from fedpisa import authoring

ROOT = Path(__file__).parents[1]
MOVED = {
    "diagnostics": ("FullObjective", "tasks.full_objective"),
    "layout": ("ParamLayout", "tasks.layout"),
    "runner": ("Simulation", "runs.runner"),
    "streams": ("generator", "rng"),
    "tracking": ("TensorBoard", "runs.tracking"),
}


def described(module: str) -> set[str]:
    """Return the names of a module that have a docstring, inside them or below their assignment."""
    found = set()
    for node, below in pairwise([*ast.parse(inspect.getsource(import_module(module))).body, ast.Pass()]):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            found.add(node.name)
        elif isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_name_is_described_where_it_is_defined() -> None:
    imports = [n for n in ast.parse(inspect.getsource(authoring)).body if isinstance(n, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    assert set(homes) == set(authoring.__all__)
    assert [name for name, home in homes.items() if name not in described(home)] == []


@pytest.mark.parametrize(
    "path",
    [
        "docs/preconditioner.md",
        "tests/contracts/test_plugin.py",
        "experiments/notebooks/4-your-own-algorithm.ipynb",
    ],
)
def test_examples_of_own_parts_need_nothing_else(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8").replace('"""', "'''")
    parts = re.findall(r"from __future__ import annotations.*?@final", text, re.S)
    lines = re.findall(r"from (fedpisa\S*) import", parts[-1].rpartition("from __future__")[2])
    assert lines == ["fedpisa.authoring"]


@pytest.mark.parametrize("old", MOVED)
def test_a_path_that_was_documented_still_works(old: str) -> None:
    name, new = MOVED[old]
    scope: dict[str, Any] = {}
    with pytest.warns(
        DeprecationWarning, match=rf"^fedpisa\.{old} is now fedpisa\.{new}: import {name} from there$"
    ):
        exec(f"import fedpisa.{old}\nfrom fedpisa.{old} import {name}", scope)
    assert scope[name] is getattr(import_module(f"fedpisa.{new}"), name)
    with pytest.warns(DeprecationWarning, match="is now"):
        assert getattr(getattr(fedpisa, old), name) is scope[name]


def test_a_path_that_was_documented_has_only_what_the_new_one_has() -> None:
    with (
        pytest.warns(DeprecationWarning, match="is now"),
        pytest.raises(ImportError, match="cannot import name 'Layout'"),
    ):
        exec("from fedpisa.layout import Layout")


def test_importing_the_package_imports_none_of_it() -> None:
    code = "import sys, fedpisa; print({'torch', 'flwr', 'fedpisa.authoring'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"
