"""Final values, targets, costs and their wording, on runs worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpisa.report.findings import Findings, find
from fedpisa.report.runs import collect
from fedpisa.report.summary import answers, cautions, warnings

WriteRun = Callable[..., Path]


def study(write_run: WriteRun, finals: dict[str, list[float]], name: str = "", **keys: object) -> None:
    for algorithm, values in finals.items():
        for seed, value in enumerate(values):
            write_run(f"{name}{algorithm}-{seed}", value, keys={"algorithm": algorithm, "seed": seed, **keys})


def text(found: Findings) -> str:
    said = answers(found)
    return " ".join(
        [*warnings(found), *cautions(said), *(s for one in said for s in (one.best, *one.sentences))]
    )


def test_ranking_and_comparison(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.80, 0.81, 0.83], "sisa": [0.90, 0.92, 0.94]})
    found = find(collect([tmp_path]))
    (one,) = found.by_split
    names = [found.collection.variants[outcome.group.variant] for outcome in one.outcomes]
    assert names == ["sisa", "fedavg"]
    (comparison,) = one.comparisons.values()
    assert comparison.difference is not None
    assert comparison.difference.mean == pytest.approx((0.10 + 0.11 + 0.11) / 3)
    assert comparison.significant
    assert (
        "Next is fedavg, 81.33%: +10.67 points on 3 common seeds, significant at 5% (paired t-test, corrected"
        in text(found)
    )
    assert "With 3 seeds no rank test can give p below 0.25" in text(found)


def test_the_others_are_named_or_said_not_to_be_behind(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.80, 0.81, 0.83], "sisa": [0.90, 0.92, 0.94], "fedprox": [0.7, 0.72, 0.73]})
    assert "Significantly behind sisa: fedavg, fedprox." in text(find(collect([tmp_path])))
    study(write_run, {"fedavg": [0.1, 0.9], "sisa": [0.9, 0.1], "fedprox": [0.2, 0.7]}, "b/")
    said = text(find(collect([tmp_path / "runs" / "b"])))
    assert any(f"Significantly behind {name}: none of the others." in said for name in ("fedavg", "sisa"))


def test_only_common_seeds_are_paired(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.8, 0.7], "sisa": [0.9]})
    found = find(collect([tmp_path]))
    (comparison,) = found.by_split[0].comparisons.values()
    assert comparison.difference is not None
    assert (comparison.difference.n, comparison.t_p) == (1, None)
    assert "a test is not possible with 1 common seed." in text(found)
    assert "of a single seed: a deviation and an interval need a second one" in text(found)


def test_costs_to_the_target(write_run: WriteRun, tmp_path: Path) -> None:
    # A run has four equal rounds of 3 MB and 0.5 s. Ending at 0.8 or 0.9, it reaches 0.6 in round 3.
    study(write_run, {"fedavg": [0.8, 0.4], "sisa": [0.9, 0.9]})
    one = find(collect([tmp_path]), 0.6).by_split[0]
    sisa, fedavg = (outcome.cost for outcome in one.outcomes)
    assert sisa is not None
    assert fedavg is not None
    assert (sisa.reached, sisa.of, fedavg.reached, fedavg.of) == (2, 2, 1, 2)
    assert sisa.rounds is not None
    assert sisa.megabytes is not None
    assert sisa.local_steps is not None
    assert sisa.seconds is not None
    spent = (sisa.rounds, sisa.megabytes, sisa.local_steps, sisa.seconds)
    assert [value.mean for value in spent] == [3, 9, 90, 1.5]
    assert one.outcomes[0].megabytes is not None
    assert one.outcomes[0].megabytes.mean == 12


def test_where_the_target_comes_from(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", 0.9, keys={"target-accuracy": 0.7, "seed": 0})
    collection = collect([tmp_path])
    own, asked = find(collection).by_split[0].target, find(collection, 0.5).by_split[0].target
    assert own is not None
    assert asked is not None
    assert (own.value, asked.value) == (0.7, 0.5)
    write_run("b", 0.9, keys={"target-accuracy": 0.6, "seed": 1})
    chosen = find(collect([tmp_path])).by_split[0].target
    assert chosen is not None
    assert chosen.value == 0.85  # 95% of 0.9 is 0.855
    assert "different targets" in chosen.source


def test_a_target_that_nobody_reaches(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.8], "sisa": [0.9]})
    assert "No run reached the target of 99% (as asked for)." in text(find(collect([tmp_path]), 0.99))


def test_runs_that_did_not_finish_are_named_and_not_counted(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.8, 0.82], "sisa": [0.7]})
    write_run("wild", 0.1, keys={"algorithm": "sisa", "seed": 1}, status="diverged")
    write_run("gone", 0.1, keys={"algorithm": "fedprox", "seed": 1}, status="failed")
    found = find(collect([tmp_path]))
    finals = {
        found.collection.variants[o.group.variant]: o.final and o.final.mean
        for o in found.by_split[0].outcomes
    }
    assert finals == {"fedavg": pytest.approx(0.81), "sisa": pytest.approx(0.7), "fedprox": None}
    said = warnings(found)
    assert any(
        "sisa" in line and "1 diverged; its numbers use only the 1 finished run" in line for line in said
    )
    assert any("fedprox" in line and "1 failed" in line for line in said)


def test_pooled_over_splits(write_run: WriteRun, tmp_path: Path) -> None:
    study(
        write_run, {"fedavg": [0.80, 0.81, 0.83], "sisa": [0.90, 0.92, 0.94]}, "x", **{"dirichlet-alpha": 1.0}
    )
    study(
        write_run, {"fedavg": [0.70, 0.71, 0.72], "sisa": [0.72, 0.71, 0.76]}, "y", **{"dirichlet-alpha": 0.1}
    )
    study(write_run, {"fedprox": [0.9]}, "y", **{"dirichlet-alpha": 0.1})
    found = find(collect([tmp_path]))
    assert [found.collection.variants[v] for v in found.means] == ["sisa", "fedavg"]
    (pooled,) = found.pooled.values()
    assert pooled.difference is not None
    assert pooled.difference.n == 3
    by_seed = np.array([0.10 + 0.02, 0.11 + 0, 0.11 + 0.04]) / 2
    assert pooled.difference.mean == pytest.approx(by_seed.mean())
    assert pooled.difference.sd == pytest.approx(by_seed.std(ddof=1))
    overall = answers(found)[0]
    assert (overall.title, overall.best) == ("All splits", "sisa")
    assert "on 3 common seeds, each by its mean over the splits, " in overall.sentences[1]
    assert "Only the 2 algorithms with a finished run on every split are ranked here." in overall.sentences


def test_a_regression_is_ranked_by_its_loss(write_run: WriteRun, tmp_path: Path) -> None:
    for algorithm, rounds in (("fedavg", 2), ("sisa", 4)):
        write_run(algorithm, None, keys={"algorithm": algorithm}, rounds=rounds)
    found = find(collect([tmp_path]))
    (one,) = found.by_split
    assert (one.measure.column, one.target) == ("test_loss", None)
    assert answers(found)[0].best == "sisa"
    assert answers(found)[0].value == "0.4"


def test_equal_results_are_called_equal(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.8, 0.9], "sisa": [0.8, 0.9]})
    assert "Next is sisa, 85.00%: equal." in text(find(collect([tmp_path])))


def test_another_budget_or_version_is_warned_of(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", keys={"num-server-rounds": 4})
    write_run("b", keys={"num-server-rounds": 5}, info={"versions": {"fedpisa": "9"}})
    said = warnings(find(collect([tmp_path])))
    assert any("different budgets" in line for line in said)
    assert any("different versions of fedpisa: 0.1.0, 9" in line for line in said)


def test_runs_of_a_seed_on_other_partitions_are_warned_of(write_run: WriteRun, tmp_path: Path) -> None:
    study(write_run, {"fedavg": [0.8, 0.9], "sisa": [0.8, 0.9]})
    assert warnings(find(collect([tmp_path]))) == []
    parts = [np.array([0]), np.arange(1, 5), np.arange(5, 6)]
    np.savez(tmp_path / "runs" / "sisa-1" / "partition.npz", **{str(i): part for i, part in enumerate(parts)})
    (line,) = warnings(find(collect([tmp_path])))
    assert line.endswith("the runs of seed 1 have different partitions, so they cannot be paired")


def test_runs_that_ended_early_are_named(write_run: WriteRun, tmp_path: Path) -> None:
    keys = {"validation-fraction": 0.2, "early-stopping": 1, "num-server-rounds": 9}
    for seed, rounds in enumerate((3, 5, 9)):
        write_run(f"run-{seed}", 0.8, rounds=rounds, keys={**keys, "seed": seed})
    said = text(find(collect([tmp_path])))
    assert (
        "early-stopping ended 2 runs, after 3 to 5 rounds: their final values have different budgets" in said
    )


def test_all_intervals_of_an_accuracy_stay_within_0_and_100_percent(
    write_run: WriteRun, tmp_path: Path
) -> None:
    losses = {"validation_loss": [4.0, 3.0, 2.0, 1.0]}
    for seed, final in enumerate((0.94, 1.0, 1.0)):
        write_run(f"run-{seed}", final, columns=losses, keys={"validation-fraction": 0.2, "seed": seed})
    (outcome,) = find(collect([tmp_path])).by_split[0].outcomes
    for found in (outcome.final, outcome.selected, outcome.best):
        assert found is not None
        assert found.high is not None
        assert found.mean == pytest.approx(0.98)
        assert found.high < 1 < found.mean + 4.303 * (found.sd or 0) / 3**0.5  # Student's would not
