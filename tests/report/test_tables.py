"""Tables of numbers in CSV and LaTeX."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedpisa.report import clients, findings, tables
from fedpisa.report.runs import collect
from fedpisa.report.statistics import estimate
from fedpisa.tasks.measures import ACCURACY

WriteRun = Callable[..., Path]

FINALS = {"fedavg": [0.80, 0.81, 0.83], "sisa": [0.90, 0.92, 0.94]}


@pytest.fixture
def found(write_run: WriteRun, tmp_path: Path) -> findings.Findings:
    for alpha in (0.1, 1.0):
        for algorithm, values in FINALS.items():
            for seed, value in enumerate(values):
                keys = {"algorithm": algorithm, "seed": seed, "dirichlet-alpha": alpha}
                write_run(f"{algorithm}-{alpha}-{seed}", value, keys=keys)
    return findings.find(collect([tmp_path]))


def test_csv_has_the_numbers_unrounded(found: findings.Findings, tmp_path: Path) -> None:
    csv, _ = tables.accuracy(found).write(tmp_path)
    frame = pd.read_csv(csv)
    row = frame[(frame["algorithm"] == "sisa") & (frame["split"] == "dirichlet-alpha=0.1")].iloc[0]
    expected = estimate(FINALS["sisa"], share=True)
    assert expected is not None
    assert (row["final_n"], row["final_mean"], row["final_sd"]) == pytest.approx(
        (3, expected.mean, expected.sd)
    )
    assert row["final_high"] == pytest.approx(expected.high)


def test_overview_has_a_row_per_algorithm_and_the_best_bold(found: findings.Findings) -> None:
    table = tables.overview(found)
    assert table.head == ["algorithm", "dirichlet-alpha=0.1", "dirichlet-alpha=1.0", "mean of the splits"]
    assert [list(row) for row in table.rows] == [
        ["sisa", "92.00 ± 2.00", "92.00 ± 2.00", "92.00"],
        ["fedavg", "81.33 ± 1.53", "81.33 ± 1.53", "81.33"],
    ]
    assert table.strong == {(0, 1), (0, 2)}


def test_latex_is_a_booktabs_tabular(found: findings.Findings) -> None:
    text = tables.overview(found).to_latex()
    assert r"sisa & \textbf{92.00 $\pm$ 2.00} & \textbf{92.00 $\pm$ 2.00} & 92.00 \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert text.isascii()
    for table in (tables.accuracy(found), tables.significance(found), tables.cost(found), tables.runs(found)):
        body = table.to_latex().split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        assert len(body) == len(table.rows)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.head) - 1}


def test_latex_escapes_names(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a")
    named = dataclasses.replace(collect([tmp_path]), variants=[r"a_b&c%$#"])
    text = tables.accuracy(findings.find(named)).to_latex()
    assert r"a\_b\&c\%\$\#" in text


def test_every_pair_and_the_pooled_ones(found: findings.Findings) -> None:
    frame = tables.significance(found).frame
    assert frame["split"].tolist() == ["dirichlet-alpha=0.1", "dirichlet-alpha=1.0", "all splits"]
    assert frame["difference_n"].tolist() == [3, 3, 3]
    # Differences 0.10, 0.11 and 0.11, their deviation 0.0058.
    assert frame["seeds_for_a_point"].tolist() == [5, 5, 5]
    assert set(frame["verdict"]) == {"significant"}


def test_every_run_is_listed(found: findings.Findings, write_run: WriteRun, tmp_path: Path) -> None:
    write_run("wild", keys={"seed": 9}, status="diverged")
    (write_run("broken") / "run.json").unlink()
    frame = tables.runs(findings.find(collect([tmp_path]))).frame
    assert len(frame) == 14
    assert sorted(set(frame["status"].str.split(":").str[0])) == ["diverged", "finished", "unreadable"]
    assert frame["bytes"].max() == 12e6


def test_fairness_in_closed_form(found: findings.Findings) -> None:
    group = found.by_split[0].outcomes[0].group
    values = {0: np.array([0.2, 0.4, 0.6]), 1: np.array([0.4, 0.6, 0.8])}
    table = tables.fairness(found, [clients.Fairness(group, values, "samples", ACCURACY)])
    row = next(row for row in table.rows if row[:2] == ["dirichlet-alpha=0.1", "sisa"])
    # The means are 0.4 and 0.6, the worst clients 0.2 and 0.4, and the variances over clients 0.04.
    assert row[2:] == ["2", "50.00 ± 14.14", "30.00 ± 14.14", "20.00 ± 0.00", "400.0 ± 0.0"]
    assert clients.worst(np.arange(20) / 20, ACCURACY) == pytest.approx(0.025)


def test_a_single_seed_has_no_deviation(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", 0.9)
    (row,) = tables.accuracy(findings.find(collect([tmp_path]))).rows
    assert row[2:] == ["1", "90.00", "–", "90.00", "–"]


def test_the_best_round_by_validation_stands_between_final_and_best(
    write_run: WriteRun, tmp_path: Path
) -> None:
    losses = {"validation_loss": [2.0, 1.0, 3.0, 4.0]}
    write_run("validated", 0.8, columns=losses, keys={"validation-fraction": 0.2})
    write_run("old", 0.8, keys={"validation-fraction": 0.2, "algorithm": "sisa"})
    found = findings.find(collect([tmp_path]))
    table = tables.accuracy(found)
    titles = ["final", "95% interval", "best by validation", "95% interval", "best by test (optimistic)"]
    assert table.head[3:8] == titles
    by_name = {row[1]: list(row[3:8]) for row in table.rows}
    assert by_name == {
        "fedavg": ["80.00", "–", "40.00", "–", "80.00"],
        "sisa": ["80.00", "–", "–", "–", "80.00"],
    }
    assert table.frame["selected_mean"].dropna().tolist() == [pytest.approx(0.4)]
    assert table.to_latex().isascii()
    assert tables.runs(found).head[5:8] == ["final", "best by validation", "best by test (optimistic)"]


def test_a_report_without_validation_has_no_such_column(found: findings.Findings) -> None:
    for table in (tables.accuracy(found), tables.runs(found)):
        assert "best by test (optimistic)" in table.head
        assert "best by validation" not in table.head
        assert not [name for name in table.frame if name.startswith("selected")]
