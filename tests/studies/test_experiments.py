"""Each file of ``experiments`` is valid, and related files differ as stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpisa.config.run import load_config, read_toml
from fedpisa.studies.study import read_study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


RUNS = sorted(path for path in EXPERIMENTS.rglob("*.toml") if "base" not in read_toml(path))
"""Files that describe one run; files of studies have a table [base]."""
STUDIES = sorted(
    path for path in EXPERIMENTS.rglob("*.toml") if path not in RUNS and path.parent.name != "niid_bench"
)
"""Files of studies; those of ``niid_bench`` have their own tests."""


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_run_is_a_configuration(path: Path) -> None:
    assert load_config(path).num_server_rounds > 0


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_study_has_configurations(path: Path) -> None:
    if "adabelief" in path.read_text():
        pytest.importorskip("pytorch_optimizer", reason="needs the extra optimizers")
    assert all(run.config.num_server_rounds > 0 for run in read_study(path).runs())


def test_adult_label1_is_the_public_setting_averaged() -> None:
    """The averaged setting is ``sigma/c, rho, lambda/c``, with the same federation.

    c is the sample-weighted mean number of mini-batches.
    """
    ours, public = (
        load_config(EXPERIMENTS / "paper" / name)
        for name in ("adult-label1.toml", "adult-label1-public.toml")
    )
    sizes = np.array([12360, 3921, 12360, 3920])
    batches = sizes / sizes.sum() @ -(-sizes // 64)
    assert batches == pytest.approx(162.2, abs=0.05)
    assert ours.options["sigma"] == pytest.approx(float(public.options["sigma"]) / batches, rel=1e-3)
    assert ours.options["lambda"] == pytest.approx(float(public.options["lambda"]) / batches, rel=1e-3)
    changed = {name for name in public.options if public.options[name] != ours.options[name]}
    assert changed == {"sigma", "lambda", "gradient-reduction", "bias-correction"}
    assert ours.replace(public.to_mapping()) == public


def test_adult_label1_fedavg_has_the_same_federation_and_budget() -> None:
    ours, fedavg = (
        load_config(EXPERIMENTS / "paper" / name)
        for name in ("adult-label1.toml", "adult-label1-fedavg.toml")
    )
    shared = ("dataset", "model", "num-clients", "partitioner", "labels-per-client", "seed", "batch-size")
    shared += ("num-server-rounds", "fraction-train", "dtype")
    one, other = ours.to_mapping(), fedavg.to_mapping()
    assert {name: one[name] for name in shared} == {name: other[name] for name in shared}
    assert one["batches-per-round"] == "all"
    assert other["local-epochs"] == 1
