"""Jobs are measured in separate processes: seconds, memory, and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedpisa.bench import measure, table, workloads
from fedpisa.bench.measure import Competitor, Measurement, alternate, summary
from fedpisa.bench.memory import INTERVAL, PeakMemory, in_use, tree
from fedpisa.bench.workloads import WORKLOADS, Job, Workload, images
from fedpisa.cli.main import main

TINY = Workload("tiny", clients=4, samples=6, per_round=2, batch=3, model="logistic")
MEGABYTES = 200

LOOP = """
import sys, time
from fedpisa.bench.protocol import job, report
def rounds():
    while True:
        time.sleep(0.01)
        yield
report(job(), rounds())
"""
CHILD = f"kept = b'x' * ({MEGABYTES} * 10**6); print('there', flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def competitor(name: str, code: str) -> Competitor:
    return Competitor(name, (sys.executable, "-c", code), threads=1)


def test_the_issues_workloads() -> None:
    facts = {
        name: (w.clients, w.samples, w.per_round, w.batch, w.steps, w.model) for name, w in WORKLOADS.items()
    }
    assert {name: own for name, own in facts.items() if name in "ABCD"} == {
        "A": (100, 600, 10, 32, 19, "mlp"),
        "B": (100, 600, 10, 32, 19, "leaf-cnn"),
        "C": (1000, 60, 100, 20, 3, "logistic"),
        "D": (10_000, 20, 1000, 20, 1, "logistic"),
    }


def test_a_workload_without_its_extra_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "find_spec", lambda package: None)
    asked = [Job(WORKLOADS[name]) for name in "LVR"]
    monkeypatch.setattr(measure, "measure", lambda competitor, job: job.workload.name)
    assert list(alternate([competitor("a", "")], asked, repeats=1)) == ["L", "V"]
    assert measure.lacking(asked) == [
        "R needs the extra language; run pip install 'fedpisa[language]'",
    ]


def test_competitors_have_their_models() -> None:
    images_alone = Competitor("x", (), threads=1, models=("mlp",))
    assert [images_alone.takes(Job(WORKLOADS[name])) for name in "AL"] == [True, False]


def test_clients_have_equal_shares() -> None:
    data = images(seed=0, num_clients=3, samples_per_client=5)
    assert data.groups is not None
    assert data.groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.shape == (1, 28, 28)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedavg", "sisa"])
def test_fedpisa_does_a_job(algorithm: Any) -> None:
    one = measure.measure(measure.fedpisa(threads=1), Job(TINY, algorithm, rounds=2, warm_up=1))
    assert one.error == ""
    assert len(one.seconds) == 2
    assert 0 < max(one.seconds) < one.startup
    assert one.evaluation > 0
    assert one.resident > 50e6  # an interpreter with torch


def test_competitors_take_turns() -> None:
    two = [competitor("a", LOOP), competitor("b", LOOP)]
    measured = list(alternate(two, [Job(TINY, rounds=3, warm_up=1)], repeats=2))
    assert [one.competitor for one in measured] == ["a", "b", "a", "b"]
    assert all(len(one.seconds) == 3 and min(one.seconds) >= 0.01 for one in measured)


def test_a_slow_one_does_less_and_a_failure_is_told() -> None:
    slow = Competitor("slow", (sys.executable, "-c", LOOP), threads=1, most_rounds=1)
    assert len(measure.measure(slow, Job(TINY, rounds=5)).seconds) == 1
    failed = measure.measure(competitor("bad", "raise SystemError('no luck')"), Job(TINY))
    assert failed.error == "exit code 1: SystemError: no luck"
    assert table.seconds(summary([failed])[0]) == "failed"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")
def test_memory_of_a_grandchild_counts() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        with PeakMemory(process.pid) as memory:
            assert process.stdout.readline() == "there\n"
            now, pids = in_use(process.pid), [one.pid for one in tree(process.pid)]
            time.sleep(3 * INTERVAL)  # the last sample may precede the process's peak
            process.communicate("\n")
    assert len(pids) == 2
    assert os.getpid() not in pids
    for one in (now, memory.peak):
        # The interpreters need memory too.
        assert 0.95 * MEGABYTES * 1e6 < one.proportional <= one.resident < (MEGABYTES + 60) * 1e6
    assert in_use(process.pid) == (0, 0)


def test_threads_are_the_competitors() -> None:
    assert Competitor("x", (), threads=3).environment["OMP_NUM_THREADS"] == "3"


def test_results_come_back(tmp_path: Path) -> None:
    measured = [
        Measurement("a", "C", "sisa", (0.5, 0.25), 0.1, 3.0, 10, 9),
        Measurement("b", "C", "sisa", (1.0,)),
    ]
    table.write_json(tmp_path / "results.json", measured)
    facts, again = table.read_json(tmp_path / "results.json")
    assert again == measured
    assert {"cores", "processor", "torch"} <= facts.keys()
    figures = summary(again)
    assert table.ratio(figures, "a", ["b"], "C", "sisa") == 0.375
    assert table.grid(figures, table.seconds, "s")[0] == ["s", "C sisa"]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def play(competitor: Competitor, job: Job) -> Measurement:
        asked.append((competitor.name, job.workload.name, job.algorithm, job.rounds, job.warm_up))
        return Measurement(competitor.name, job.workload.name, job.algorithm, (0.25,), 0.1, 2.0, 10**9, 10**9)

    monkeypatch.setattr(measure, "measure", play)
    out = tmp_path / "bench.json"
    assert main(["bench", "C", "D", "--quick", "--out", str(out)]) == 0
    assert asked == [("fedpisa", name, kind, 3, 1) for name in "CD" for kind in ("fedavg", "sisa")]
    assert "0.25" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["measurements"]) == 4
    assert main(["bench", "Z"]) == 2
    assert "there is no workload 'Z'" in capsys.readouterr().err
