"""Grouping runs into curves by seed, and the names of curves and splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from fedpisa.report.runs import Collection, collect
from fedpisa.studies.study import Study

WriteRun = Callable[..., Path]


def shape(found: Collection) -> list[tuple[str, str, list[int]]]:
    return [(found.splits[g.split], found.variants[g.variant], list(g.finished)) for g in found.groups]


def test_seeds_are_grouped_and_splits_told_apart(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (1, 0):
        for algorithm in ("fedavg", "sisa"):
            for alpha in (0.1, 0.5):
                keys = {"algorithm": algorithm, "dirichlet-alpha": alpha, "seed": seed}
                write_run(f"deep/{algorithm}/{alpha}/{seed}", keys=keys)
    found = collect([tmp_path])
    assert shape(found) == [
        (f"dirichlet-alpha={alpha}", algorithm, [0, 1])
        for alpha in (0.1, 0.5)
        for algorithm in ("fedavg", "sisa")
    ]
    assert "dirichlet-alpha" in found.differing
    assert found.common["dataset"] == "digits"
    assert "seed" not in found.common


def test_a_partitioner_is_named_with_the_key_it_is_about(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", keys={"partitioner": "labels-per-client", "labels-per-client": 1})
    write_run("b", keys={"partitioner": "label-dirichlet"})
    write_run("c", keys={"partitioner": "iid", "num-clients": 20})
    assert collect([tmp_path]).splits == [
        "labels-per-client, 3 clients, labels-per-client=1",
        "label-dirichlet, 3 clients, dirichlet-alpha=0.5",
        "iid, 20 clients",
    ]


def test_a_single_split_says_what_it_is(write_run: WriteRun) -> None:
    assert collect([write_run("a")]).splits == ["digits, label-dirichlet, 3 clients, dirichlet-alpha=0.5"]


def test_variants_of_an_algorithm_are_told_apart_by_what_differs_on_a_split(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run("a", keys={"learning-rate": 0.1})
    write_run("b", keys={"learning-rate": 0.2})
    write_run("c", keys={"algorithm": "pisa", "preconditioner": "identity"})
    write_run("d", keys={"algorithm": "pisa", "preconditioner": "adam"})
    assert collect([tmp_path]).variants == [
        "fedavg (learning-rate=0.1)",
        "fedavg (learning-rate=0.2)",
        "pisa (preconditioner=identity)",
        "pisa (preconditioner=adam)",
    ]


def test_a_wrapped_algorithm_is_called_so(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", keys={"server-strategy": "fed-adam"})
    assert collect([tmp_path]).variants == ["fedavg (server-strategy=fed-adam)"]


def test_a_key_tuned_for_each_split_makes_no_other_variant(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", keys={"learning-rate": 0.1, "dirichlet-alpha": 0.1})
    write_run("b", keys={"learning-rate": 0.2, "dirichlet-alpha": 1.0})
    found = collect([tmp_path])
    assert found.variants == ["fedavg"]
    assert "learning-rate" in found.differing


def test_what_is_only_measured_makes_no_difference(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", keys={"eval-every": 1, "seed": 0})
    write_run("b", keys={"eval-every": 2, "exact-diagnostics": True, "target-accuracy": 0.5, "seed": 1})
    assert [list(group.finished) for group in collect([tmp_path]).groups] == [[0, 1]]


def test_a_studys_variants_have_their_names(write_run: WriteRun, tmp_path: Path) -> None:
    study = tmp_path / "runs" / "study"
    variants = [{"name": "slow & sure", "learning-rate": 0.1}, {"name": "fast", "learning-rate": 0.5}]
    tables = {"seeds": [0, 1, 2], "base": {"algorithm": "fedavg"}, "variant": variants}
    for run in Study.from_mapping(tables).runs():
        if run.seed < 2:
            write_run(f"study/{run.path}", keys=run.keys)
    (study / "study.toml").write_text(tomli_w.dumps(tables))
    found = collect([study])
    assert found.variants == ["fast", "slow & sure"]
    assert [list(group.finished) for group in found.groups] == [[0, 1], [0, 1]]
    assert found.missing == ["variant 'slow & sure', seed=2", "variant 'fast', seed=2"]
    assert collect([study / "runs" / "fast"]).missing == []
    (study / "study.toml").write_text("not a study")
    broken = collect([study])
    assert len(broken.variants) == 2
    assert [path.name for path in broken.unreadable] == ["study.toml"]


def test_only_finished_runs_count_and_the_others_are_named(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", keys={"seed": 0})
    write_run("b", keys={"seed": 1}, status="diverged")
    write_run("c", keys={"seed": 2}, status="running")
    write_run("d", keys={"seed": 0})
    (group,) = collect([tmp_path]).groups
    assert list(group.finished) == [0]
    assert group.note == "1 diverged, 1 unfinished"
    assert [run.directory.name for run in group.repeats] == ["d"]
    assert len(group.runs) == 4
    assert [run.directory.name for run in group.drawn] == ["a"]


def test_unreadable_runs_are_kept_with_the_reason(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a")
    (write_run("b") / "run.json").unlink()
    (write_run("c") / "run.json").write_text(json.dumps({"status": "odd"}))
    found = collect([tmp_path])
    assert len(found.runs) == 1
    assert [path.name for path in found.unreadable] == ["b", "c"]
    assert "lacks run.json" in next(iter(found.unreadable.values()))


def test_a_run_named_twice_is_one(write_run: WriteRun, tmp_path: Path) -> None:
    one = write_run("a")
    assert [run.directory for run in collect([tmp_path, one, tmp_path / "runs"]).runs] == [one]


def test_nothing_to_report_is_an_error(write_run: WriteRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no run in .*empty"):
        collect([tmp_path / "empty"])
    (write_run("a") / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run can be read.*lacks run\.json"):
        collect([tmp_path])
