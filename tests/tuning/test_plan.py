"""Tuning plans: valid settings, and the errors before any training."""

from __future__ import annotations

import itertools
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpisa.cli.main import main
from fedpisa.studies.study import Study
from fedpisa.tuning.metric import Metric, measure
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.space import Choices, Range, parse_space
from tests.tuning.plans import BASE, GRID, SGD, TABLES, plan_of, tables_of, write

# ----------------------------------------------------------------------------------- what may be asked for


def test_the_common_search_goes_to_those_that_have_the_key_and_a_variants_own_goes_before_it() -> None:
    own = {"name": "own", "algorithm": "fedsgd", "search": {"learning_rate": [0.1, 0.2, 0.3, 0.4, 0.5]}}
    sgd, sisa, other = plan_of(variant=[*TABLES["variant"], own]).subjects
    assert sgd.space == {"learning-rate": Range(0.01, 1.0, log=True)}
    assert sisa.space == {"sigma": Choices((0.1, 1, 10)), "local-steps": Range(1, 9, whole=True)}
    assert other.space == {"learning-rate": Choices((0.1, 0.2, 0.3, 0.4, 0.5))}


def test_whole_ends_are_whole_numbers_only_where_the_key_takes_no_others() -> None:
    (sgd,) = plan_of(**SGD, search={"learning-rate": {"low": 1, "high": 2}}).subjects
    assert sgd.space["learning-rate"] == Range(1.0, 2.0)
    assert not math.isfinite(sgd.space["learning-rate"].size)


def test_a_study_reads_the_same_with_and_without_tuning() -> None:
    tables = tables_of()
    bare = {key: value for key, value in tables.items() if key not in ("tune", "search")}
    bare["variant"] = [{k: v for k, v in table.items() if k != "search"} for table in tables["variant"]]
    assert Study.from_mapping(tables) == Study.from_mapping(bare)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"trails": 3}}, r"unknown key 'trails' .*did you mean 'trials'"),
        ({"tune": {"trials": 0}}, r"key 'trials' = 0: must be greater than or equal to 1"),
        (
            {"tune": {"metric": "accuracy"}},
            r"metric = 'accuracy' is not measured on '\w+'.*: take one of ",
        ),
        ({"tune": {"sampler": "best"}}, r"key 'sampler' = 'best': must be 'tpe', 'random' or 'grid'"),
        ({"tune": {"reduction-factor": 1}}, r"key 'reduction-factor' = 1"),
        ({"tune": {"seeds": [1, 7]}}, r"seeds = \[1, 7\] shares \[1\] with the study's"),
        (
            {"search": {"learning-rate": [1, 2, 3, 4, 5], "sigm": [1]}},
            r"\[search\] sigm: key 'sigm' is used by none of the variants",
        ),
        ({"search": {"seed": [1, 2]}}, r"\[search\] seed: key 'seed' cannot be searched"),
        ({"search": {"num-server-rounds": [1, 2]}}, r"key 'num-server-rounds' cannot be searched"),
        ({"search": {"dimension": [1, 2]}}, r"key 'dimension' of dataset 'quadratic' defines the problem"),
        ({"search": {"learning-rate": {"low": 1}}}, r"\[search\] learning-rate: high is missing"),
        ({"search": {"learning-rate": {"low": 1, "high": 1}}}, r"low = 1 must be less than high = 1"),
        ({"search": {"learning-rate": {"low": 0, "high": 1, "log": True}}}, r"low = 0 must be positive"),
        ({"search": {"learning-rate": {"low": 0.0, "high": 1.0, "step": 0.3}}}, r"step = 0.3 does not lead"),
        ({"search": {"learning-rate": {"low": 1, "high": 9, "step": 1, "log": True}}}, r"exclude each other"),
        ({"search": {"learning-rate": {"min": 1}}}, r"unknown 'min'"),
        ({"search": {"learning-rate": 0.1}}, r"0.1 is not a search space"),
        ({"search": {"learning-rate": []}}, r"nothing to choose from"),
        ({"search": {"learning-rate": [1, 1]}}, r"has a value twice"),
        ({"search": {"learning-rate": [1, 1.0]}}, r"has a value twice"),
        *(
            ({"search": {"learning-rate": table}}, message)
            for table, message in [
                ({"low": 10**400, "high": 10**401}, r"low = 10{39}\.\.\. must be between -2\*\*63"),
                ({"low": 1, "high": 2**63}, r"high = 9223372036854775808 must be between"),
                ({"low": 0.1, "high": 1.0, "step": 10**400}, r"step = 10{39}\.\.\. must be between"),
                ({"low": -1e308, "high": 1e308}, r"must be finite, as their difference"),
                ({"low": math.nan, "high": 1.0}, r"must be less than"),
                ({"low": 0.1, "high": math.inf}, r"must be finite"),
                ({"low": 0.1, "high": 1.0, "step": math.inf}, r"step = inf does not lead"),
                ({"low": 0.1, "high": 1.0, "step": math.nan}, r"step = nan does not lead"),
                ({"low": 0.1, "high": 1.0, "step": 1e-300}, r"step = 1e-300 does not lead"),
            ]
        ),
        ({"tune": {"trials": 10**6}}, r"key 'trials' = 1000000: must be less than or equal to 100000"),
        *(
            ({"tune": {"sampler": "grid", "trials": 6}, "search": {"learning-rate": table}, **SGD}, message)
            for table, message in [
                ({"low": 0.1, "high": 1.0, "points": 10**9}, r"a grid of 1000000000 values is too large"),
                ({"low": 0.0, "high": 1.0, "step": 1e-9}, r"a grid of 1000000001 values is too large"),
            ]
        ),
        (
            {
                "tune": {"sampler": "grid", "trials": 6},
                "search": {
                    "learning-rate": {"low": 0.1, "high": 1, "points": 10**4},
                    "local-steps": {"low": 1, "high": 10**4},
                },
                "variant": [{"name": "a", "algorithm": "fedavg"}],
            },
            r"variant 'a': a grid of 100000000 points is too large",
        ),
        (
            {"search": {"learning-rate": {"low": -1, "high": 1}}},
            r"variant 'sgd': search learning-rate: .* = -1",
        ),
        ({"search": {"learning-rate": [0.1, "fast"]}}, r"variant 'sgd': search learning-rate: .* = 'fast'"),
        ({"search": {}}, r"variant 'sgd' has nothing to search"),
        (
            {"search": {"learning-rate": [0.1, 1]}, **SGD},
            r"has 2 configurations to search, fewer than trials = 5",
        ),
        (
            {"sweep": {"learning-rate": [0.1]}, **SGD},
            r"\[search\] learning-rate: key 'learning-rate' is in \[sweep\]",
        ),
        (
            {"variant": [{"name": "a", "algorithm": "fedsgd", "search": {"rho": [1, 2]}}]},
            r"key 'rho' is not used by",
        ),
        ({"variant": [{"name": "a", "algorithm": "fedsgd", "search": 3}]}, r"search of variant 'a' is 3"),
        ({"tune": {"metric": "objective"}}, r"needs exact-diagnostics = true"),
        ({"tune": {"metric": "rounds_to_target"}}, r"needs target-accuracy"),
        ({"tune": {"metric": "test_accuracy"}}, r"'test_accuracy' is not measured on 'quadratic'"),
        (
            {"tune": {"metric": "validation_accuracy"}},
            r"'validation_accuracy' is not measured on 'quadratic'",
        ),
        (
            {"tune": {"metric": "validation_loss"}, "base": {"validation-fraction": 0}},
            r"metric = 'validation_loss' needs validation samples, and validation-fraction = 0: leave that key out",
        ),
        (
            {"tune": {"metric": "validation_loss"}, "base": {"validation-fraction": 1e-9}},
            r"validation-fraction = 1e-09 takes none .*, or take another metric than 'validation_loss'",
        ),
        ({"tune": {"sampler": "grid"}, **SGD}, r"search learning-rate: a grid needs points"),
        ({**GRID, "tune": {"sampler": "grid", "trials": 7}}, r"6 of variant 'sgd' and trials = 7"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(**changes)


def test_grids_of_different_sizes_are_different_budgets() -> None:
    tables = tables_of(**GRID)
    del tables["tune"]["trials"]
    assert Plan.from_mapping(tables).trials == 6
    tables["variant"].append({"name": "b", "algorithm": "fedsgd"})
    with pytest.raises(ValueError, match=r"different budgets: 6 of variant 'sgd', 3 of variant 'b'"):
        Plan.from_mapping(tables)
    del tables["variant"][1]


def test_a_missing_budget_and_a_missing_table_are_said() -> None:
    with pytest.raises(ValueError, match=r"there is no \[tune\] table"):
        Plan.from_mapping({"base": BASE})
    with pytest.raises(ValueError, match=r"needs trials"):
        Plan.from_mapping({**TABLES, "tune": {"metric": "test_loss"}})


def test_the_seeds_of_tuning_are_not_the_studys() -> None:
    tables = tables_of()
    del tables["tune"]["seeds"]
    assert Plan.from_mapping(tables).settings.seeds == (2, 3, 4)
    assert plan_of(tune={"seeds": [5, 6]}).settings.seeds == (5, 6)


def test_the_default_chooses_by_the_validation_loss_and_leaves_the_studys_own_runs_as_they_are() -> None:
    tables = tables_of()
    del tables["tune"]["metric"]
    plan = Plan.from_mapping(tables)
    assert plan.metric.name == "validation_loss"
    for subject in plan.subjects:
        assert subject.config({}, 0).validation_fraction == 0.2
        assert subject.final_config({}, 0).validation_fraction == 0
    tables["base"]["validation-fraction"] = 0.3
    for subject in Plan.from_mapping(tables).subjects:
        assert subject.config({}, 0).validation_fraction == 0.3
        assert subject.final_config({}, 0).validation_fraction == 0.3
    for metric in ("test_loss", "train_loss"):  # what needs no validation samples trains on all
        assert {s.config({}, 0).validation_fraction for s in plan_of(tune={"metric": metric}).subjects} == {0}


def test_no_trial_is_pruned_unless_the_plan_says_so() -> None:
    plan = plan_of()
    assert [plan.settings.rungs(plan.rounds(subject)) for subject in plan.subjects] == [(), ()]
    assert plan_of(tune={"pruner": "halving"}).settings.rungs(90) == (10, 30)


def test_grids_of_ranges() -> None:
    assert parse_space({"low": 1, "high": 100, "log": True, "points": 3}).grid() == pytest.approx(
        (1, 10, 100)
    )
    assert Range(1, 10, step=3, whole=True).grid() == (1, 4, 7, 10)
    assert Range(1, 4, points=3, whole=True).grid() == (1, 2, 4)
    assert Range(0.0, 0.3, step=0.1).grid() == pytest.approx((0, 0.1, 0.2, 0.3))


METRICS = {
    "test_accuracy": 0.4, "best_test_accuracy": 0.5, "test_loss": 2.5, "train_loss": 0.5, "objective": 2.0,
    "rounds_to_target": 1.0, "validation_accuracy": 0.2, "validation_loss": 7.0, "best_test_loss": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_metrics_by_hand(name: str) -> None:
    metric = Metric.named(name)
    columns: dict[str, list[float | None]] = {
        "test_accuracy": [0.1, 0.5, None, 0.4],
        "test_loss": [3.0, 2.0, None, 2.5],
        "train_loss": [3.0, 2.0, 1.0, 0.5],
        "objective": [4.0, 3.0, 2.0, math.nan],
        "validation_accuracy": [0.3, 0.2, None, None],
        "validation_loss": [5.0, 6.0, None, 7.0],
    }
    rows = [{"round": n, **{key: values[n] for key, values in columns.items()}} for n in range(4)]
    assert measure(metric, rows, 3, 0.45) == METRICS[name]
    assert metric.higher_is_better == ("accuracy" in name)
    assert measure(metric, [], 3, 0.45) is None


def test_runs_that_miss_the_target_are_behind_those_that_reach_it_in_the_last_round() -> None:
    runs = [[{"round": 9, "test_accuracy": value}] for value in (0.9, 0.5, 0.4)]
    values = [measure(Metric.named("rounds_to_target"), rows, 9, 0.9) or 0 for rows in runs]
    assert values == sorted(values)
    assert values[0] == 9 < values[1] < values[2]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9), st.floats(0, 100))
def test_less_is_better_up_to_a_target_too(losses: list[float], target: float) -> None:
    metric = Metric.named("rounds_to_target", target="test_loss")
    values = [measure(metric, [{"round": 9, "test_loss": loss}], 9, target) or 0 for loss in losses]
    for (one, loss), (other, more) in itertools.combinations(sorted(zip(values, losses, strict=True)), 2):
        assert one <= other
        assert loss <= more or one == other
    assert all((value == 9) == (loss <= target) for value, loss in zip(values, losses, strict=True))


def test_keys_that_hold_at_a_point_only() -> None:
    at = [{"dirichlet-alpha": 0.1, "sigma": 0.5}, {"dirichlet-alpha": 10, "num-clients": 5, "sigma": 2}]
    study = Study.from_mapping(
        {
            "base": {"sigma": 7},
            "sweep": {"dirichlet-alpha": [0.1, 1, 10], "num-clients": [5, 6]},
            "variant": [{"name": "a", "at": at}, {"name": "b"}],
        }
    )
    got = [(run.variant, *run.point.values(), run.config.options["sigma"]) for run in study.runs()]
    assert got[:6] == [
        ("a", 0.1, 5, 0.5), ("a", 0.1, 6, 0.5), ("a", 1, 5, 7), ("a", 1, 6, 7), ("a", 10, 5, 2), ("a", 10, 6, 7)
    ]  # fmt: skip
    assert {sigma for name, *_, sigma in got if name == "b"} == {7}
    assert Study.from_mapping(tomllib.loads(study.to_toml())) == study


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([{"dirichlet-alpha": 3, "sigma": 1}], r"dirichlet-alpha = 3 is not in the sweep"),
        ([{"sigma": 1}], r"needs a value of the sweep"),
        ([{"dirichlet-alpha": 1}], r"needs a value of the sweep, and keys"),
        ({"sigma": 1}, r"write \[\[variant.at\]\]"),
    ],
)
def test_keys_of_no_point_are_refused(at: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study.from_mapping({"sweep": {"dirichlet-alpha": [1]}, "variant": [{"name": "a", "at": at}]})


def test_without_optuna_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    file = write(tmp_path / "small.toml")
    assert main(["tune", str(file), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip().endswith("run pip install 'fedpisa[tune]'")
    assert not (tmp_path / "out").exists()
