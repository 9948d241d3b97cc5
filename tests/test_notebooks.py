"""The notebooks run from top to bottom with tiny settings, and their stored outputs are complete."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest

if any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")):
    pytest.skip("nbclient or ipykernel is not installed: the extra 'dev'", allow_module_level=True)

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
TINY = {
    "1-first-steps": "rounds = 3",
    "2-non-iid-study": "rounds, seeds = 3, [0, 1]",
    "3-anatomy-of-pisa": "rounds = identity_rounds = 4",
    "4-your-own-algorithm": "rounds = 3",
    "5-what-duals-do": "rounds = rounds_of_few = rounds_of_quadratic = 4; seeds = [0]",
    "6-a-language-model": "rounds = 5",
    "7-a-federated-gan": "stops = [4, 8]",
    "8-reinforcement-learning": "rounds_of_bandit, periods = 3, 2",
}
"""The settings that replace the cell tagged "parameters"."""
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def texts(cells: list[Any]) -> str:
    """Return the text that the cells printed."""
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(o.get("text", "") + str(o.get("data", {}).get("text/plain", "")) for o in outputs)


def test_every_notebook_has_its_tiny_settings() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(TINY)


@each
@pytest.mark.slow
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem.startswith("8"):
        pytest.importorskip("mujoco", reason="the extra control is not installed")
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = TINY[path.stem]
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *inherited]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "work").mkdir()
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path / "work"}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [o for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    if path.stem.startswith("3"):
        identities = re.findall(r"largest relative difference in 4 rounds: (\S+)", texts(cells))
        assert len(identities) == 2
        assert all(float(number) < 1e-13 for number in identities)


@each
def test_it_is_stored_with_the_outputs_of_a_full_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not re.search(
        r"(?<![\w.])/(tmp|root|home|work|usr|Users)/|Warning", path.read_text(encoding="utf-8")
    )


@each
def test_what_is_stored_beside_the_cells_says_nothing_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert [cell.id for cell in notebook.cells] == [f"cell-{n:02d}" for n in range(len(notebook.cells))]
    assert all(cell.metadata in ({}, {"tags": ["parameters"]}) for cell in notebook.cells)
    assert path.stat().st_size < 300_000


def test_pisa_finds_the_best_action_in_the_stored_run() -> None:
    (control,) = [path for path in NOTEBOOKS if path.stem.startswith("8")]
    (distance,) = re.findall(r"pisa: action \S+, from the best one (\S+)", texts(code_cells(control)))
    assert float(distance) < 1e-12


def test_the_identities_of_the_anatomy_hold_to_rounding() -> None:
    (anatomy,) = [path for path in NOTEBOOKS if path.stem.startswith("3")]
    numbers = re.findall(r"largest relative difference in 20 rounds: (\S+)", texts(code_cells(anatomy)))
    assert len(numbers) == 2
    assert all(float(number) < 1e-13 for number in numbers)
