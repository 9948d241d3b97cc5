"""References in a study, its table, its report and its pictures: shown, and neither ranked nor tested."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import fedpisa
from fedpisa.plots import REFERENCE, plot_curves
from fedpisa.report import findings, runs, summary, tables, write_report
from fedpisa.studies.console import table
from fedpisa.studies.study import Study, load_study

ALGORITHMS = ("centralised", "fedavg", "local", "localsgd")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("references") / "study"
    values = {
        "seeds": [0, 1],
        "base": {"model": "logistic", "num-clients": 3, "num-server-rounds": 2},
        "variant": [{"name": name, "algorithm": name} for name in ALGORITHMS],
    }
    fedpisa.compare(Study.from_mapping(values), directory)
    return directory


def test_the_report_lists_them_apart(study: Path) -> None:
    found = findings.find(runs.collect([study]))
    (one,) = found.by_split
    names = found.collection.variants
    assert {names[o.group.variant] for o in one.ranked} == {"fedavg", "localsgd"}
    assert [names[o.group.variant] for o in one.references] == ["reference: centralised", "reference: local"]
    assert len(one.comparisons) == 1
    first = [row[0] for row in tables.overview(found).rows]
    assert first[2:] == ["reference: centralised", "reference: local", "majority class"]
    assert len(tables.accuracy(found).rows) == 4
    assert len(tables.cost(found).rows) == 2
    (answer,) = summary.answers(found)
    (scale,) = (line for line in answer.sentences if line.startswith("For scale"))
    assert re.fullmatch(
        r"For scale: centralised has .*%, local has .*%, [\d.]+% is the majority class\.", scale
    )
    assert not summary.warnings(found)  # all runs of a seed have one split


def test_the_page_draws_them_last(study: Path, tmp_path: Path) -> None:
    page = write_report([study], tmp_path / "report.html").page.read_text()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data = json.loads(text)
    assert data["references"] == [2, 3]
    assert data["variants"][2:] == ["reference: centralised", "reference: local"]


def test_the_table_of_the_study_names_them(study: Path) -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table(load_study(study)))
    lines = captured.get().splitlines()
    assert [line.partition("  ")[0].strip() for line in lines[1:5]] == [
        "fedavg", "localsgd", "reference: centralised", "reference: local",
    ]  # fmt: skip
    assert lines[5].strip().endswith("is the majority class")
    rows = pd.read_csv(study / "summary.csv").set_index("variant")
    assert rows["reference"].fillna(value=False).to_dict() == {
        name: name in ("centralised", "local") for name in ALGORITHMS
    }
    assert rows["majority_share"].between(0.09, 0.12).all()


@pytest.mark.parametrize("x", ["round", "bytes"])
def test_pictures_draw_them_dashed_and_last(study: Path, x: str) -> None:
    histories = {one.variant: one.result.history for one in load_study(study) if one.seed == 0}
    figure = plot_curves(histories, x=x, y="test_accuracy", references=["centralised", "local"])
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["fedavg", "localsgd", "centralised", "local"]
    assert [line.get_color() == REFERENCE["color"] for line in lines] == [False, False, True, True]
    assert all(line.is_dashed() for line in lines[2:])
    last = lines[2].get_ydata()
    assert (len(set(last)) == 1) == (x == "bytes")
    assert last[-1] == histories["centralised"]["test_accuracy"].iloc[-1]
