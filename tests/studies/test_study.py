"""A study file: its runs, its errors, and its directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.runs.places import directory_for
from fedpisa.runs.results import RunDirectory
from fedpisa.storage.files import LONGEST
from fedpisa.studies.study import Study, StudyRun, load_study, read_study

TOML = """
seeds = [3, 5]
[base]
dataset = "digits"
num_server_rounds = 5
[sweep]
dirichlet-alpha = [0.1, 10]
fraction-train = [0.5, 1.0]
[[variant]]
name = "a b"
algorithm = "fedavg"
learning-rate = 0.3
[[variant]]
name = "sisa"
algorithm = "sisa"
num-server-rounds = 7
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "mine.toml").write_text(TOML)
    return read_study(tmp_path / "mine.toml")


def test_runs_are_the_product_of_variants_points_and_seeds(study: Study) -> None:
    runs = study.runs()
    assert study.name == "mine"
    assert [(run.variant, *run.point.values(), run.seed) for run in runs] == [
        (variant, alpha, fraction, seed)
        for variant in ("a b", "sisa")
        for alpha in (0.1, 10)
        for fraction in (0.5, 1.0)
        for seed in (3, 5)
    ]
    first, last = runs[0].config, runs[-1].config
    assert (first.algorithm, first.seed, first.num_server_rounds, first.fraction_train) == (
        "fedavg",
        3,
        5,
        0.5,
    )
    assert (first.options["learning-rate"], first.options["dirichlet-alpha"]) == (0.3, 0.1)
    assert (last.algorithm, last.seed, last.num_server_rounds, last.fraction_train) == ("sisa", 5, 7, 1.0)
    assert str(runs[0].path) == "runs/a-b/dirichlet-alpha=0.1,fraction-train=0.5/seed-3"
    assert len({run.path for run in runs}) == 16


def test_without_sweep_variants_and_seeds_there_is_one_run() -> None:
    (run,) = Study.from_mapping({"base": {"algorithm": "fedavg"}}).runs()
    assert (run.variant, dict(run.point), run.seed, str(run.path)) == ("base", {}, 0, "runs/base/all/seed-0")


def test_names_that_fall_together_as_folders_are_kept_apart() -> None:
    tables = {"variant": [{"name": "a b"}, {"name": "a-b"}, {"name": "A b"}]}
    assert len({str(run.path).lower() for run in Study.from_mapping(tables).runs()}) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bas": {}}, r"unknown key 'bas' in the study; did you mean 'base'\?"),
        ({"algorithm": "sisa"}, r"the runs' own keys are in \[base\]"),
        ({"base": 3}, r"\[base\] is 3"),
        ({"base": {"seed": 1}}, r"\[base\] sets seed: .*seeds = "),
        ({"sweep": {"seed": [1]}}, r"\[sweep\] sets seed"),
        ({"sweep": {"sigma": 0.1}}, r"\[sweep\] sigma = 0.1 is not a list"),
        ({"sweep": {"sigma": []}}, r"is not a list of values"),
        ({"sweep": {"sigma": [1, 1]}}, r"has a value twice"),
        ({"sweep": {"sigma": [1, 1.0]}}, r"has a value twice"),
        ({"sweep": {f"k{i}": list(range(40)) for i in range(9)}}, r"the study has 262144000000000 runs"),
        ({"seeds": list(range(100_001))}, r"the study has 100001 runs: leave at most 100000"),
        ({"seeds": "x" * 10_000}, r"seeds = x{200}\.\.\.: write"),
        ({"base": {"sigma": 1}, "sweep": {"sigma": [1, 2]}}, r"'sigma' is in \[base\] and in \[sweep\]"),
        ({"variant": [{"name": "x", "rho": 1}], "sweep": {"rho": [1]}}, r"in variant 'x' and in \[sweep\]"),
        ({"variant": {"name": "x"}}, r"write \[\[variant\]\]"),
        ({"variant": [{"algorithm": "sisa"}]}, r"number 1 has no name"),
        ({"variant": [{"name": "x"}, {"name": "x"}]}, r"two variants are called 'x'"),
        ({"base": {"num-clients": 3, "num_clients": 4}}, r"'num-clients' is given twice"),
        ({"seeds": 3}, r"seeds = 3: write a list"),
        ({"seeds": []}, r"seeds = \[\]"),
        ({"seeds": [1, 1]}, r"distinct"),
        ({"seeds": [True]}, r"whole numbers"),
        ({"seeds": [-1]}, r"whole numbers from 0"),
        ({"name": 3}, r"name = 3 is not a name"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Study.from_mapping(values)
    assert "\n" not in str(caught.value)


def test_a_bad_key_names_variant_and_point() -> None:
    study = Study.from_mapping(
        {"sweep": {"sigma": [1.0, 2.0]}, "variant": [{"name": "s"}, {"name": "avg", "algorithm": "fedavg"}]}
    )
    with pytest.raises(ValueError, match=r"variant 'avg', sigma=1.0, seed=0: .*'sigma'"):
        [run.config for run in study.runs()]


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        read_study(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("seeds = 3")
    with pytest.raises(ValueError, match=r"bad\.toml: seeds = 3"):
        read_study(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match=r"has no study\.toml"):
        load_study(tmp_path)


def write(directory: Path, run: StudyRun, accuracies: list[float]) -> None:
    files = RunDirectory.create(directory / run.path, config=run.config, info={}, partition=[np.arange(2)])
    for number, accuracy in enumerate(accuracies):
        files.append({"round": number, "test_accuracy": accuracy})


def test_a_directory_is_read_as_results_and_as_a_frame(study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(TOML)
    runs = study.runs()
    write(tmp_path, runs[9], [0.1, 0.5])
    write(tmp_path, runs[2], [0.1])
    results = fedpisa.load_study(tmp_path)
    assert [(one.variant, dict(one.point), one.seed) for one in results] == [
        ("a b", {"dirichlet-alpha": 0.1, "fraction-train": 1.0}, 3),
        ("sisa", {"dirichlet-alpha": 0.1, "fraction-train": 0.5}, 5),
    ]
    assert results[0].result.config == runs[2].config
    table = study.frame(tmp_path)
    assert table.columns[:5].tolist() == ["variant", "dirichlet-alpha", "fraction-train", "seed", "status"]
    assert table["test_accuracy"].tolist() == [0.1, 0.1, 0.5]
    assert table["variant"].tolist() == ["a b", "sisa", "sisa"]
    assert study.frame(tmp_path / "empty").empty


def test_many_points_are_named_in_a_moment() -> None:
    study = Study.from_mapping({"sweep": {"sigma": list(range(300)), "rho": list(range(300))}})
    began = time.perf_counter()
    paths = {run.path for run in study.runs()}
    assert len(paths) == 90_000
    assert time.perf_counter() - began < 60


def test_long_names_are_different_folders() -> None:
    """Long names give different folders, although a file's name has at most 255 bytes."""
    names = ["m" * 400, "m" * 400 + "x", "é" * 200, "short"]
    sweep = {"drop-columns": [["a" * 300], ["a" * 300, "b"]]}
    base = {"dataset": "file", "data-file": "nowhere.csv", "model": "linear"}
    tables = {"name": "n/" * 300, "base": base, "sweep": sweep, "variant": [{"name": name} for name in names]}
    study = Study.from_mapping(tables)
    paths = [run.path for run in study.runs()]
    assert len(set(paths)) == len(names) * 2
    assert max(len(part.encode()) for path in paths for part in path.parts) <= LONGEST
    assert paths[-1].parts[1] == "short"
    assert len(study.folder.encode()) <= LONGEST
    assert "/" not in study.folder


def test_a_run_with_a_long_name_has_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = "m" * 150
    (tmp_path / f"{module}.py").write_text("from fedpisa.strategies.fedavg import FedAvg as Mine\n")
    directory = directory_for(RunConfig(algorithm=f"{module}:Mine"))
    directory.mkdir(parents=True)
    assert len(directory.name) <= LONGEST
    assert directory_for(RunConfig(algorithm=f"{module}:Mine")).name == f"{directory.name}-2"
