"""The section on tuning: its numbers, its cautions, and files that are old, damaged or hostile."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpisa.cli.main import main
from fedpisa.report import tunings, write_report
from fedpisa.studies.study import Study
from tests.report.test_page import HOSTILE, Page

WriteRun = Callable[..., Path]
HEAD = (
    *("variant", "dirichlet-alpha", "trial", "state", "validation_loss", "validation_accuracy", "rounds"),
    *("gradients", "seconds", "error", "learning-rate", "local-steps", "sigma"),
)
ROWS: Sequence[Sequence[object]] = (
    ("fedavg", 0.1, 0, "finished", 0.5, 0.8, 30, 1000, 1.5, "", 0.01, 2.0, ""),
    ("fedavg", 0.1, 1, "finished", 0.2, 0.9, 30, 2000, 2.5, "", 0.25, 4.0, ""),
    ("fedavg", 0.1, 2, "pruned", 0.1, "", 10, 500, 0.5, "", 0.5, 1.0, ""),
    ("fedavg", 0.1, 3, "diverged", "inf", "", 3, 100, 0.25, "", 3.0, 9.0, ""),
    ("fedavg", 0.1, 4, "finished", 0.3, 0.7, 30, 1000, 1.0, "", 0.1, 3.0, ""),
    ("fedavg", 10.0, 0, "failed", "", "", 0, 0, 0.125, "OSError: full", 0.1, 3.0, ""),
    ("sisa", 0.1, 0, "finished", 0.25, 0.85, 30, 4000, 4.0, "", "", 5.0, 0.5),
    ("sisa", 0.1, 1, "finished", 0.25, 0.86, 30, 4000, 4.0, "", "", 5.0, 5.0),
    ("sisa", 0.1, 2, "running", "", "", 7, 4000, 4.0, "", "", 5.0, 7.0),
)
SUMMARY = (
    ("variant", "dirichlet-alpha", "trials", "extensions", "seeds", "at_edge"),
    ("fedavg", 0.1, 5, 1, "3, 4, 5", "learning-rate, local-steps"),
    ("sisa", 0.1, 2, 1, "3, 4, 5", ""),
)


def write_csv(file: Path, rows: Sequence[Sequence[object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


def write_tuning(
    directory: Path, rows: Sequence[Sequence[object]] = ROWS, head: Sequence[str] = HEAD, summary: bool = True
) -> Path:
    write_csv(directory / "trials.csv", [head, *rows])
    if summary:
        write_csv(directory / "summary.csv", SUMMARY)
    return directory


def without(*names: str) -> tuple[list[str], list[list[object]]]:
    """Return the head and the rows without some columns."""
    kept = [place for place, name in enumerate(HEAD) if name not in names]
    return [HEAD[place] for place in kept], [[row[place] for place in kept] for row in ROWS]


def text_of(write_run: WriteRun, directory: Path, **options: Any) -> str:
    run = write_run("run", **options)
    return Page(write_report([run, directory], directory.parent / "page.html").page).text


def test_the_numbers_are_those_of_a_tuning(write_run: WriteRun, tmp_path: Path) -> None:
    """Compute each number from the files of a real tuning, by another library."""
    pytest.importorskip("optuna", reason="needs the extra tune")
    from fedpisa.tuning.plan import Plan
    from fedpisa.tuning.tune import tune

    base = {"num-clients": 4, "num-server-rounds": 3, "batch-size": "full", "partitioner": "label-dirichlet"}
    tables = {
        "base": {"dataset": "digits", "model": "logistic", **base},
        "sweep": {"dirichlet-alpha": [0.5, 5.0]},
        "tune": {"trials": 4, "pruner": "halving", "seeds": [7, 8]},
        "search": {"learning-rate": {"low": 0.01, "high": 5, "log": True}, "local-steps": [1, 3]},
        "variant": [
            {"name": "fedavg", "algorithm": "fedavg"},
            {"name": "sisa", "algorithm": "sisa", "search": {"sigma": {"low": 0.1, "high": 1}}},
        ],
    }
    tune(Plan.from_mapping(tables), tmp_path / "tuned", extend=1)
    run = write_run("run")
    written = write_report([run, tmp_path / "tuned"], tmp_path / "page.html")
    table = pd.read_csv(tmp_path / "page-tables" / "tuning.csv")
    trials, summary = (pd.read_csv(tmp_path / "tuned" / f"{name}.csv") for name in ("trials", "summary"))
    assert len(table) == len(summary) == 4
    for row in table.itertuples():
        mine = trials[(trials.variant == row.variant) & (trials["dirichlet-alpha"] == row._2)]
        finished = mine[mine.state == "finished"]
        best = finished.loc[finished.validation_loss.idxmin()]
        (about,) = summary[
            (summary.variant == row.variant) & (summary["dirichlet-alpha"] == row._2)
        ].itertuples()
        assert row.metric == "validation_loss"
        assert (row.trials, row.finished, row.pruned) == (
            len(mine),
            len(finished),
            (mine.state == "pruned").sum(),
        )
        for name in ("rounds", "gradients", "seconds"):
            assert (
                getattr(row, name) == pytest.approx(mine[name].sum()) == pytest.approx(getattr(about, name))
            )
        assert row.best == best.validation_loss == about.validation_loss
        assert row.median == pytest.approx(finished.validation_loss.median())
        assert row.validation_accuracy_of_best == best.validation_accuracy
        assert row.extensions == about.extensions
        assert str(row.at_edge) == str(about.at_edge)
        place = {name: column for column, name in enumerate(table.columns, 1)}
        for key in ("learning-rate", "local-steps", "sigma"):
            value = row[place[f"best_{key}"]]
            assert value == best[key] or (pd.isna(value) and pd.isna(best[key]))
        text = Page(written.page).text
        assert f"{best.validation_loss:.4g}" in text
        assert f"{mine.gradients.sum():,.0f}" in text
    assert "mean over the seeds 7, 8" in text
    rounds = int(trials.rounds.sum())
    assert f"All trials together have {rounds:,} rounds, the runs of this report 4." in text
    assert (tmp_path / "page-tables" / "tuning.tex").read_text().count("fedavg") == 2


def test_the_picture_has_a_panel_for_each_numerical_key(tmp_path: Path) -> None:
    rows = [[*row, one] for row, one in zip(ROWS, ("full", 3, 3, 3, 3, 3, 1, 2, 3), strict=True)]
    (one,), warnings = tunings.find([write_tuning(tmp_path / "tuned", rows, [*HEAD, "batch-size"])])
    assert warnings == []
    drawn = tunings.picture(one)
    assert [metric["id"] for metric in drawn["metrics"]] == ["metric", "accuracy"]
    assert [metric["percent"] for metric in drawn["metrics"]] == [False, True]
    assert drawn["points"] == ["dirichlet-alpha=0.1", "dirichlet-alpha=10"]
    # SISA's local steps are all equal, and FedAvg's batch size is no number in a trial.
    panels = {(panel["variant"], panel["key"]): panel["trials"] for panel in drawn["panels"]}
    assert list(panels) == [
        *(("fedavg", "learning-rate"), ("fedavg", "local-steps"), ("sisa", "sigma"), ("sisa", "batch-size"))
    ]
    rates = panels["fedavg", "learning-rate"]
    assert [(t["x"], t["metric"], t["accuracy"], t["state"], t["point"], t["best"]) for t in rates] == [
        (0.01, 0.5, 0.8, "finished", 0, False),
        (0.25, 0.2, 0.9, "finished", 0, True),
        (0.5, 0.1, None, "pruned", 0, False),
        (3.0, None, None, "diverged", 0, False),
        (0.1, 0.3, 0.7, "finished", 0, False),
        (0.1, None, None, "failed", 1, False),
    ]
    assert rates[1]["values"] == "learning-rate=0.25, local-steps=4, batch-size=3"
    assert rates[1]["cost"] == "30 rounds, 2,000 gradients"


def test_the_section(write_run: WriteRun, tmp_path: Path) -> None:
    text = text_of(write_run, write_tuning(tmp_path / "tuned"))
    for part in (
        "fedavg dirichlet-alpha=0.1 5 (1 pruned, 1 diverged) 103 4,600 6 0.2 0.3 90.00% learning-rate, local-steps 1",
        "fedavg dirichlet-alpha=10 1 (1 failed) 0 0 0 – – – – – –",
        "sisa dirichlet-alpha=0.1 2 60 8,000 8 0.25 0.25 85.00% no 1 local-steps=5, sigma=0.5",
        "All trials together have 163 rounds, the runs of this report 4.",
        "best validation loss on validation samples, which are training samples that the clients do not see",
    ):
        assert part in text, part
    page = Page(write_report([tmp_path / "runs"], tmp_path / "page.html").page)
    assert "Tuning" not in page.text
    assert page.data["tunings"] == []


def test_files_of_earlier_versions_lack_columns(write_run: WriteRun, tmp_path: Path) -> None:
    head, rows = without("validation_accuracy", "gradients", "dirichlet-alpha")
    text = text_of(write_run, write_tuning(tmp_path / "tuned", rows[:5], head, summary=False))
    assert "fedavg 5 (1 pruned, 1 diverged) 103 – 6 0.2 0.3 – – learning-rate=0.25, local-steps=4" in text
    assert "accuracy of the best" not in text
    assert "cannot be read" not in text


@pytest.mark.parametrize(
    ("metric", "best", "shown"),
    [("validation_accuracy", 0.5, "50.00% 30.00%"), ("rounds_to_target", 0.2, "0.2 0.3")],
)
def test_the_best_is_the_largest_accuracy_and_the_smallest_of_all_else(
    write_run: WriteRun, tmp_path: Path, metric: str, best: float, shown: str
) -> None:
    head, rows = without("validation_accuracy", "dirichlet-alpha")
    head = [metric if name == "validation_loss" else name for name in head]
    directory = write_tuning(tmp_path / "tuned", rows[:5], head, summary=False)
    ((one,), _) = tunings.find([directory])
    found = one.tuned[0].best
    assert found is not None
    assert found.metric == best
    assert shown in text_of(write_run, directory)


@pytest.mark.parametrize(
    ("metric", "seed", "keys", "said"),
    [
        ("validation_loss", 0, {"learning-rate": 0.25, "local-steps": 4}, []),
        ("validation_loss", 0, {"learning-rate": 0.3, "local-steps": 4}, ["no run has the best values"]),
        ("validation_loss", 0, {"local-steps": 4}, ["no run has the best values"]),
        ("validation_loss", 4, {"learning-rate": 0.25, "local-steps": 4}, ["by runs of seed 4"]),
        ("test_loss", 0, {"learning-rate": 0.25, "local-steps": 4}, ["chosen on the test set, by test_loss"]),
    ],
)
def test_what_makes_a_comparison_unfair_is_said_first(
    write_run: WriteRun, tmp_path: Path, metric: str, seed: int, keys: Mapping[str, object], said: list[str]
) -> None:
    head = [metric if name == "validation_loss" else name for name in HEAD]
    directory = write_tuning(tmp_path / "tuned", ROWS[:5], head)
    found = text_of(write_run, directory, keys={"dirichlet-alpha": 0.1, "seed": seed, **keys})
    cautions = found.partition("Read with care")[2].partition("Mean final")[0]
    for words in ("no run has the best values", "by runs of seed", "chosen on the test set"):
        assert (words in cautions) == any(words in one for one in said), words
    assert all(one in cautions for one in said)


def test_a_study_of_the_best_values_has_them(write_run: WriteRun, tmp_path: Path) -> None:
    """A variant with another name than its algorithm's is found by the study's name for it."""
    tables = {"variant": [{"name": "mine", "algorithm": "fedavg", "momentum": 0.5}]}
    (planned,) = Study.from_mapping(tables).runs()
    run = write_run(f"study/{planned.path}", keys=planned.keys)
    (run.parents[3] / "study.toml").write_text(tomli_w.dumps(tables))
    for momentum, said in ((0.5, False), (0.25, True)):
        rows = [["mine", 0, "finished", 1.0, 3, 1.0, "", momentum]]
        head = ["variant", "trial", "state", "train_loss", "rounds", "seconds", "error", "momentum"]
        directory = write_tuning(tmp_path / "tuned", rows, head, summary=False)
        page = Page(write_report([run.parents[3], directory], tmp_path / "page.html").page)
        assert ("no run has the best values" in page.text) == said


DAMAGED: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "it has no trial"),
    "no rows": (",".join(HEAD).encode(), "it has no trial"),
    "not text": (b"\xff\xfe\x00\x01", "can't decode byte 0xff"),
    "another table": (b"a,b\n1,2\n", "its head has the columns a, b, not those of a tuning"),
    "no metric": (b"variant,trial,state\nx,0,finished\n", "not those of a tuning"),
    "another metric": (b"variant,trial,state,beauty\nx,0,finished,1\n", "'beauty', not a metric"),
    "cut": (b"variant,trial,state,train_loss\nx,0,fini", "row 2 has another number of cells than the head"),
    "long row": (b"variant,trial,state,train_loss\nx,0,finished,1,2,3\n", "row 2 has another number of cells"),
    "a word": (b"variant,trial,state,train_loss\nx,0,finished,much\n", "row 2: train_loss is 'much', not a number"),
    "a state": (b"variant,trial,state,train_loss\nx,0,lost,1\n", "row 2: the state is 'lost', not one of running"),
    "negative": (
        b"variant,trial,state,train_loss,rounds\nx,0,finished,1,-3\n",
        "row 2: rounds is -3: it must be finite and not negative",
    ),
    "infinite": (b"variant,trial,state,train_loss,seconds\nx,0,finished,1,1e999\n", "seconds is inf"),
    "open quote": (b'variant,trial,state,train_loss\n"x,0,finished,1\n', "unexpected end of data"),
    "huge cell": (b"variant,trial,state,train_loss\n" + b"x" * 200_000 + b",0,finished,1\n", "field larger than"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["trials.csv", "summary.csv"])
def test_a_damaged_file_is_a_warning_of_one_line(
    write_run: WriteRun, tmp_path: Path, damage: str, name: str
) -> None:
    content, said = DAMAGED[damage]
    directory = write_tuning(tmp_path / "tuned")
    (directory / name).write_bytes(content)
    found, warnings = tunings.find([directory])
    if name == "trials.csv":
        assert found == []
        (warning,) = warnings
        assert warning.startswith(f"{directory / name} cannot be read: ")
        assert said in warning
    else:  # the trials are there
        assert len(found) == 1
        assert len(warnings) <= 1
    assert "\n" not in "".join(warnings)
    text = text_of(write_run, directory)
    assert all(" ".join(warning.split()) in text for warning in warnings)


@given(cut=st.integers(0, 900), garbage=st.binary(max_size=30), skip=st.integers(0, 60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_ends_the_report(tmp_path: Path, cut: int, garbage: bytes, skip: int) -> None:
    directory = write_tuning(tmp_path / "tuned")
    for name in ("trials.csv", "summary.csv"):
        file = directory / name
        content = file.read_bytes()
        file.write_bytes(content[:cut] + garbage + content[cut + skip :])
    found, warnings = tunings.find([directory])
    assert len(found) + len(warnings) >= 1
    for one in found:
        tunings.picture(one)
        assert all(isinstance(tuned.values, str) and tuned.median != "" for tuned in one.tuned)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    directory = write_tuning(tmp_path / "tuned")
    (directory / "trials.csv").rename(tmp_path / "elsewhere.csv")
    (directory / "trials.csv").symlink_to(tmp_path / "elsewhere.csv")
    found, (warning,) = tunings.find([directory])
    assert found == []
    assert "link" in warning


def test_names_stay_text(write_run: WriteRun, tmp_path: Path) -> None:
    """A name is never markup, and a module that a value names is not imported."""
    module = tmp_path / "planted_by_tuning.py"
    module.write_text("raise SystemExit")
    sys.path.insert(0, str(tmp_path))
    rows = [[HOSTILE, *row[1:-1], "planted_by_tuning:x"] for row in ROWS]
    try:
        run = write_run("run")
        file = write_report([run, write_tuning(tmp_path / "tuned", rows)], tmp_path / "page.html").page
    finally:
        sys.path.remove(str(tmp_path))
    page = Page(file)
    assert "img" not in {tag for tag, _, _ in page.attributes}
    assert HOSTILE in page.text
    assert "sigma=planted_by_tuning:x" in page.text
    assert "planted_by_tuning" not in sys.modules


def test_the_command_needs_a_run(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tuning(tmp_path / "tuned" / "digits")
    write_run("a")
    assert main(["report", "tuned/digits"]) == 2
    said = capsys.readouterr().err
    assert "there is only a tuning in tuned/digits, no run: name the directory of its study too" in said
    assert main(["report", "runs", "tuned/digits"]) == 0
    one = Page(Path("report.html")).data["tunings"]
    assert main(["report", "."]) == 0  # at any depth
    assert Page(Path("report.html")).data["tunings"] == one
    (tmp_path / "other").mkdir()
    assert main(["report", "runs", "other"]) == 2
    assert "there is no run in other" in capsys.readouterr().err
