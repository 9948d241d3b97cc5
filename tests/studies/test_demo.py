"""The demonstration is a fair comparison: one problem, values from one tuning, the same budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpisa.studies.demo import LABELS, demo_study
from fedpisa.studies.study import Study
from fedpisa.tuning.plan import Plan, read_plan

PLAN = Path(__file__).parents[2] / "experiments" / "tune_demo.toml"


@pytest.fixture(scope="module")
def study() -> Study:
    return demo_study(5)


@pytest.fixture(scope="module")
def plan() -> Plan:
    pytest.importorskip("optuna")
    return read_plan(PLAN)


def test_all_variants_share_the_problem_and_the_rounds(study: Study) -> None:
    configs = [run.config for run in study.runs() if run.seed == 0]
    shared = (
        "dataset",
        "model",
        "num_clients",
        "partitioner",
        "num_server_rounds",
        "dtype",
        "fraction_train",
    )
    for name in shared:
        assert len({getattr(config, name) for config in configs}) == 1, name
    for key in ("labels-per-client", "batch-size"):
        assert len({config.options[key] for config in configs}) == 1, key
    l2 = {config.options.get("weight-decay") or config.options["lambda"] for config in configs}
    assert l2 == {1e-4}
    assert all(config.validation_fraction == 0 for config in configs)


def test_the_values_come_from_the_plan(study: Study, plan: Plan) -> None:
    """Each variant has the plan's fixed keys, and a value of every searched key."""
    assert set(study.variants) == set(LABELS) == {subject.variant for subject in plan.subjects}
    assert {**plan.study.base, "exact-diagnostics": True} == study.base
    for subject in plan.subjects:
        found, fixed = study.variants[subject.variant], plan.study.variants[subject.variant]
        assert set(found) == {*fixed, *subject.space}
        assert {key: found[key] for key in fixed} == fixed


def test_no_seed_of_the_demonstration_chose_a_value(plan: Plan) -> None:
    assert not set(demo_study(100).seeds) & set(plan.settings.seeds)
    for seeds in (0, 101):
        with pytest.raises(ValueError, match="seeds = "):
            demo_study(seeds)


def test_every_variant_has_the_same_number_of_trials(plan: Plan) -> None:
    assert len({plan.budget(subject) for subject in plan.subjects}) == 1
    assert plan.settings.pruner == "none"
    assert plan.metric.name == "validation_loss"
