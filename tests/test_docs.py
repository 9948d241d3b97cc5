"""The generated pages match the docstrings, and the costs that they state are measured."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedpisa.components import inspect_component
from fedpisa.config.run import RunConfig, run_keys
from fedpisa.families import available
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.stacked.grid import VmapGrid

DOCS = Path(__file__).parents[1] / "docs"
N = 3


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fedpisa_docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load()
COSTS: dict[str, Mapping[str, str]] = {
    name: generate.costs_of(component) for name, component in available("algorithm").items()
}


@pytest.mark.parametrize("name", generate.PAGES)
def test_the_pages_are_up_to_date(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == generate.PAGES[name](), "run: python docs/generate.py"


def test_every_key_of_a_run_is_on_the_page_of_keys() -> None:
    page = generate.keys_page()
    assert [name for name in run_keys() if f"| `{name}` |" not in page] == []
    assert {"optimizer-options", "`dirichlet-alpha`", "`connect-timeout`"} <= {
        *re.findall(r"`[\w-]+`|optimizer-options", page)
    }


def test_every_algorithm_preconditioner_and_key_is_on_it() -> None:
    page = generate.page()
    for name, component in available("algorithm").items():
        (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", page, re.M | re.S)
        assert all(f"| `{key.name}` |" in section for key, _ in generate.own_keys(component))
    for name in available("preconditioner"):
        assert f"\n### {name}\n" in page
    assert "``" not in page


def test_every_algorithm_has_its_costs_in_the_table() -> None:
    assert [name for name, costs in COSTS.items() if not costs] == []


@pytest.mark.parametrize("name", generate.PAGES)
def test_links_on_them_lead_somewhere(name: str) -> None:
    page = generate.PAGES[name]()
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", page, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors
    assert all((DOCS / name).exists() for name in re.findall(r"\]\(([^#)]*)\)", page))


class Silent:
    """Without a line of costs.

    References
    ----------
    Nobody.
    """


def test_headings_in_docstrings_are_underlined_on_the_next_line() -> None:
    package = Path(inspect_component.__code__.co_filename).parents[1]
    wrong = [
        f"{path.name}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s+[A-Z]\w+ -{4,}", line)
    ]
    assert wrong == []


def test_a_missing_line_of_costs_leaves_a_gap() -> None:
    assert generate.costs_of(inspect_component("algorithm", "silent", Silent)) == {}
    assert generate.sections(Silent) == {"": "Without a line of costs.", "References": "Nobody."}


def vectors(text: str) -> int:
    """Return the value of a formula such as ``2 N + 1``."""
    total = 0
    for term in text.split("+"):
        number, clients = re.fullmatch(r"\s*(\d*)\s*(N?)\s*", term).groups()  # type: ignore[union-attr]
        total += int(number or 1) * (N if clients else 1)
    return total


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_what_a_round_moves_and_keeps(name: str) -> None:
    """The page states the vectors that two rounds with every client move and keep.

    Scalars are not counted.
    """
    federation = Federation(RunConfig(algorithm=name, num_clients=N, model="logistic", dtype="float64"))
    grid = VmapGrid(federation.task, federation.algorithm.local_update, federation.data, 0)
    strategy = federation.strategy()
    finished: Any = list(rounds(strategy, grid, federation.initial_model(), 2))[-1]
    size = federation.task.layout.size

    def length(arrays: Mapping[str, torch.Tensor]) -> float:
        return sum(value.numel() for value in arrays.values()) // size

    state, server = grid.state(0) or {}, strategy.server
    assert server is not None
    measured = {
        "up": finished.bytes_up // (8 * grid.num_clients * size),
        "down": finished.bytes_down // (8 * grid.num_clients * size),
        "client": length(state),
        "server": length(server),
    }
    assert measured == {column: vectors(COSTS[name][column]) for column in measured}
