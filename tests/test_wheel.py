"""The wheel contains the whole package, and type checkers see its annotations."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

if any(importlib.util.find_spec(name) is None for name in ("hatchling", "mypy")):
    pytest.skip("hatchling or mypy is not installed: the extra 'dev'", allow_module_level=True)

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_is_complete_and_typed(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    ours = {
        path.relative_to(ROOT)
        for path in (ROOT / "fedpisa").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {
        path.relative_to(packages) for path in (packages / "fedpisa").rglob("*") if path.is_file()
    } == ours
    # The dependencies are not installed there, so mypy sees only our annotations.
    (tmp_path / "use.py").write_text("import fedpisa\n\nreveal_type(fedpisa.run)\n")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
    }
    mypy = [
        sys.executable,
        "-P",
        "-m",
        "mypy",
        "--python-executable",
        str(tmp_path / "venv/bin/python"),
        "use.py",
    ]
    shown = subprocess.run(mypy, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert 'Revealed type is "def (config: ' in shown, shown
    assert "-> fedpisa.runs.results.Result" in shown, shown
