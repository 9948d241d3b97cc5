"""Studies: which runs are trained, which are left unchanged, and that interruptions lose nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedpisa.cli.main import main
from fedpisa.runs.process import own_process
from fedpisa.runs.results import load_result
from fedpisa.runs.runner import Simulation
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.storage import files
from fedpisa.studies import comparison, workers
from fedpisa.studies.comparison import compare
from fedpisa.studies.console import StudyConsole, table
from fedpisa.studies.study import Study, StudyResult, load_study
from fedpisa.studies.workers import Progress

TABLES: Mapping[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "base": {
        "model": "logistic",
        "num-clients": 5,
        "fraction-train": 0.5,
        "num-server-rounds": 3,
        "checkpoint-every": 1,
        "target-accuracy": 0.3,
    },
    "sweep": {"dirichlet-alpha": [0.3, 10]},
    "variant": [
        {"name": "avg", "algorithm": "fedavg"},
        {"name": "sisa"},
        {"name": "scaffold", "algorithm": "scaffold", "local-steps": 2},
    ],
}


def study_of(**changes: Any) -> Study:
    tables = {**TABLES, **changes}
    return Study.from_mapping({**tables, "base": {**TABLES["base"], **tables["base"]}})


SHORT = study_of(seeds=[0], sweep={"dirichlet-alpha": [10]})


def contents(directory: Path) -> dict[str, bytes]:
    """Return the contents of a study's files, without measured seconds."""
    found = {}
    for file in sorted(directory.rglob("*")):
        name = str(file.relative_to(directory))
        if file.name == "metrics.jsonl":
            rows = load_result(file.parent).rows
            kept = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
            found[name] = repr(kept).encode()
        elif file.name in ("model.safetensors", "partition.npz", "config.toml", "study.toml", "summary.csv"):
            found[name] = file.read_bytes()
        elif file.name == "run.json":
            found[name] = load_result(file.parent).status.encode()
    return found


def states(stands: list[Progress]) -> list[str]:
    return [progress.state for progress in stands]


def test_every_run_is_done_once(tmp_path: Path) -> None:
    told: list[Progress] = []
    stands = compare(study_of(), tmp_path / "out", on_progress=told.append)
    assert states(stands) == ["finished"] * 12
    assert [progress.number for progress in told[:12]] == list(range(12))
    first_running = [
        p.number for p in told if p.state == "running" and p.server_round == 0 and p.value is None
    ]
    assert first_running == list(range(12))
    results = load_study(tmp_path / "out")
    assert [(one.variant, one.point["dirichlet-alpha"], one.seed) for one in results] == [
        (variant, alpha, seed)
        for variant in ("avg", "sisa", "scaffold")
        for alpha in (0.3, 10)
        for seed in (0, 1)
    ]
    before = {
        file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").rglob("*.jsonl")
    }
    told.clear()
    assert states(compare(study_of(), tmp_path / "out", jobs=2, on_progress=told.append)) == ["finished"] * 12
    assert len(told) == 12
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before

    # One more variant adds only its runs. More rounds resume all runs.
    more = study_of(variant=[*TABLES["variant"], {"name": "prox", "algorithm": "fedprox"}])
    told.clear()
    compare(more, tmp_path / "out", on_progress=told.append)
    assert {progress.number for progress in told if progress.state == "running"} == set(range(12, 16))
    compare(study_of(base={"num-server-rounds": 4}, variant=more_tables(more)), tmp_path / "out")
    assert {len(one.result.rows) for one in load_study(tmp_path / "out")} == {5}


def more_tables(study: Study) -> list[dict[str, object]]:
    return [{"name": name, **keys} for name, keys in study.variants.items()]


def test_all_algorithms_of_a_seed_see_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All algorithms of a seed get the same data, split, initial weights and cohorts.

    Another seed gives others.
    """
    cohorts: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    configure = AlgorithmStrategy.configure_train

    def spy(strategy: AlgorithmStrategy, *arguments: Any) -> Any:
        messages = configure(strategy, *arguments)
        key = (type(strategy.algorithm).__name__, strategy.seed)
        cohorts.setdefault(key, []).append(tuple(message.metadata.dst_node_id for message in messages))
        return messages

    monkeypatch.setattr(AlgorithmStrategy, "configure_train", spy)
    study = study_of(sweep={"dirichlet-alpha": [0.3]}, base={"num-server-rounds": 6, "model": "mlp"})
    compare(study, tmp_path)
    results = {(one.variant, one.seed): one.result for one in load_study(tmp_path)}
    starts = {(run.variant, run.seed): Simulation(run.config).parameters() for run in study.runs()}
    for seed in (0, 1):
        files = {
            (one.directory / "partition.npz").read_bytes() for (_, s), one in results.items() if s == seed
        }
        assert len(files) == 1
        for variant in ("sisa", "scaffold"):
            for name, value in starts["avg", seed].items():
                np.testing.assert_array_equal(value, starts[variant, seed][name])
            assert results[variant, seed].rows[0]["test_loss"] == results["avg", seed].rows[0]["test_loss"]
        assert len({tuple(rounds) for (_, s), rounds in cohorts.items() if s == seed}) == 1
    assert len({tuple(rounds) for rounds in cohorts.values()}) == 2
    assert results["avg", 0].rows[0]["test_loss"] != results["avg", 1].rows[0]["test_loss"]


# ------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"variant": [{"name": "a"}, {"name": "b", "sigmaa": 1}]},
            r"variant 'b', .*=0.3, seed=0: .*sigmaa",
        ),
        ({"variant": [{"name": "a", "algorithm": "sissa"}]}, r"variant 'a'.*sissa.*did you mean 'sisa'"),
        ({"sweep": {"sigma": [1.0, -1.0]}, "variant": [{"name": "s"}]}, r"variant 's', sigma=-1.0, seed=0"),
        ({"base": {"dataset": "a9a", "data-dir": "/nowhere"}}, r"variant 'avg'.*/nowhere"),
        ({"variant": [{"name": "a", "algorithm": "fedsgd", "optimizer": "adam", "beta": 3}]}, r"variant 'a'"),
        (
            {"base": {"validation-fraction": 1e-5}},
            r"variant 'avg'.*takes none of the 1438 .* at least 0.0007",
        ),
        ({"base": {"early-stopping": 2}}, r"variant 'avg'.*early-stopping = 2 needs validation samples"),
    ],
    ids=["key", "name", "value", "data", "option", "no validation sample", "no validation"],
)
def test_what_is_wrong_is_said_before_anything_runs(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(study_of(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_fail_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_of(
        seeds=[0],
        sweep={"dirichlet-alpha": [10]},
        variant=[
            {"name": "wild", "algorithm": "fedavg", "learning-rate": 1e38},
            {"name": "crowd", "algorithm": "fedavg", "num-clients": 1400, "min-partition-size": 10},
            {"name": "avg", "algorithm": "fedavg"},
        ],
    )
    (tmp_path / "mine.toml").write_text(study.to_toml())
    assert main(["compare", "mine.toml"]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[-2].startswith("diverged: variant 'wild', dirichlet-alpha=10, seed=0: loss or parameters")
    assert lines[-1].startswith("failed: variant 'crowd', dirichlet-alpha=10, seed=0: ValueError: ")
    assert "[3/3] variant 'avg', dirichlet-alpha=10, seed=0: finished, 3 rounds" in err
    assert out.splitlines()[-1] == "study: studies/mine"
    assert "0 of 1" in out
    assert load_result("studies/mine/runs/avg/dirichlet-alpha=10/seed-0").status == "finished"
    # Again: the diverged run is skipped, and the failed run is tried.
    assert main(["compare", "mine.toml"]) == 1


def test_a_configuration_edited_under_a_study_is_named(tmp_path: Path) -> None:
    compare(SHORT, tmp_path)
    before = contents(tmp_path)
    point = {"seeds": [0], "sweep": {"dirichlet-alpha": [10]}}
    for change, reason in (
        ({"num-clients": 6}, "num-clients was 5 and is now 6"),
        ({"num-server-rounds": 2}, "num-server-rounds was 3 and is now 2"),
    ):
        with pytest.raises(ValueError, match=r"3 of the 3 runs in .* have another conf") as caught:
            compare(study_of(**point, base=change), tmp_path)
        assert f"({reason}): runs/avg/dirichlet-alpha=10/seed-0, runs/sisa/" in str(caught.value)
    assert contents(tmp_path) == before


def test_a_run_that_another_process_writes_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SHORT.to_toml())
    with files.locked(tmp_path / "out" / SHORT.runs()[1].path):
        assert main(["compare", str(file), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 runs are being written by another process")
    assert len(load_study(tmp_path / "out")) == 2
    assert main(["compare", str(file), "--out", str(tmp_path / "out")]) == 0
    compare(SHORT, tmp_path / "whole")
    assert contents(tmp_path / "out") == {**contents(tmp_path / "whole"), "study.toml": file.read_bytes()}


def test_a_run_begun_elsewhere_in_the_same_moment_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process creates the run between the check for its files and its creation."""
    compare(SHORT, tmp_path)
    task = workers.Task(0, SHORT.runs()[0].keys, str(tmp_path / SHORT.runs()[0].path))
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "config.toml" and exists(path))
    assert workers.run_task(task, lambda progress: None).state == "finished"


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from the second run's second round on, also for the summary."""
    compare(SHORT, tmp_path / "whole")
    file, out, real, full = tmp_path / "small.toml", tmp_path / "out", Path.open, False
    file.write_text(SHORT.to_toml())
    command = ["compare", str(file), "--out", str(out)]
    metrics = out / SHORT.runs()[1].path / "metrics.jsonl"

    def open_if_there_is_room(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        nonlocal full
        if path == metrics and mode == "a" and len(real(path).readlines()) == 2:
            full = True
        if full and mode in ("wb", "a"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, mode, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_if_there_is_room)
        assert main(command) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split()[0].strip(",") for line in lines] == ["finished", "failed", "failed"]
    assert all("No space left on device" in line for line in lines[1:])
    assert last == f"error: {out / 'summary.csv'}: No space left on device"
    assert main(command) == 0
    assert contents(out) == {**contents(tmp_path / "whole"), "study.toml": file.read_bytes()}


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(SHORT.to_toml())

    def mkdir(path: Path, *more: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main(["compare", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'out'}: Permission denied\n"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_study_that_goes_on(
    signum: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compare(SHORT, tmp_path / "whole")
    file = tmp_path / "small.toml"
    file.write_text(SHORT.to_toml())
    rows_of = Simulation.rows

    def interrupted(simulation: Simulation) -> Any:
        for row in rows_of(simulation):
            if row["round"] == 2 and simulation.config.algorithm == "sisa":
                signal.raise_signal(signum)
            yield row

    command = ["compare", str(file), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "rows", interrupted)
        assert main(command) == code
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"interrupted: all rounds so far are kept in {tmp_path / 'out'}, the same command continues"
    )
    found = [(one.variant, one.result.status, len(one.result.rows)) for one in load_study(tmp_path / "out")]
    assert found == [("avg", "finished", 4), ("sisa", "interrupted", 3)]
    assert main(command) == 0
    assert contents(tmp_path / "out") == {**contents(tmp_path / "whole"), "study.toml": file.read_bytes()}


@own_process()
def test_a_signal_that_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    told: list[Progress] = []

    def listen(progress: Progress) -> None:
        told.append(progress)
        if progress.number == 2 and progress.server_round == 2 and progress.state == "running":
            signal.raise_signal(signal.SIGINT)

    assert states(compare(SHORT, tmp_path, on_progress=listen)) == ["finished"] * 3
    assert "stopping" in states(told)


# ----------------------------------------------------------------------------------- what is shown, found


def result_of(accuracies: list[float], target: float | None = None) -> Any:
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.results import Result

    rows = [{"round": number, "test_accuracy": value} for number, value in enumerate(accuracies)]
    return Result(RunConfig(target_accuracy=target), rows, {}, [])


def test_summary_is_mean_and_deviation_over_seeds() -> None:
    results = [
        StudyResult("a", {"mu": 1}, 0, result_of([0.1, 0.6, 0.5], 0.6)),
        StudyResult("a", {"mu": 1}, 1, result_of([0.1, 0.5, 0.7], 0.6)),
        StudyResult("b", {"mu": 1}, 0, result_of([0.1, 0.2], 0.6)),
    ]
    frame = comparison.summary(results)
    assert frame["variant"].tolist() == ["a", "b"]
    one = frame.iloc[0]
    assert one["final_test_accuracy_mean"] == pytest.approx(0.6)
    assert one["final_test_accuracy_std"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert one["best_test_accuracy_mean"] == pytest.approx(0.65)
    assert (one["rounds_to_target_mean"], one["reached"]) == (1.5, 2)
    assert pd.isna(frame.iloc[1]["final_test_accuracy_std"])
    assert frame.iloc[1]["reached"] == 0
    stream = io.StringIO()
    Console(file=stream, width=120).print(table(results))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert lines[1] == ["a", "1", "2", "60.0%", "±", "14.1%", "65.0%", "±", "7.1%", "2", "±", "1"]
    assert lines[2] == ["b", "1", "1", "20.0%", "20.0%", "never"]


def test_summary_with_validation_and_runs_of_unequal_length() -> None:
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.results import Result

    def stopped(losses: list[float], accuracies: list[float]) -> Result:
        rows = [
            {"round": n, "validation_loss": loss, "test_accuracy": accuracy}
            for n, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
        ]
        return Result(RunConfig(validation_fraction=0.2, early_stopping=1, num_server_rounds=9), rows, {}, [])

    results = [
        StudyResult("a", {}, 0, stopped([3, 1, 2], [0.1, 0.4, 0.6])),
        StudyResult("a", {}, 1, stopped([3, 2, 1, 2], [0.1, 0.7, 0.6, 0.2])),
        StudyResult("old", {}, 0, result_of([0.1, 0.2])),
    ]
    one, old = comparison.summary(results).to_dict("records")
    assert one["final_test_accuracy_mean"] == pytest.approx(0.4)
    assert one["selected_test_accuracy_mean"] == pytest.approx(0.5)
    assert one["best_test_accuracy_mean"] == pytest.approx(0.65)
    assert (one["rounds_mean"], old["rounds_mean"]) == (2.5, 1)
    assert pd.isna(old["selected_test_accuracy_mean"])
    stream = io.StringIO()
    Console(file=stream, width=140).print(table(results))
    head, first, second = (line.rstrip() for line in stream.getvalue().splitlines())
    assert "final accuracy  best by validation  best by test (optimistic)  rounds" in head
    assert " ".join(first.split()[2:]) == "40.0% ± 28.3% 50.0% ± 14.1% 65.0% ± 7.1% 2 ± 1"
    assert second.split() == ["old", "1", "20.0%", "-", "20.0%", "1"]
    assert not [c for c in comparison.summary(results[2:]) if c.startswith(("selected", "rounds_m"))]


def test_live_table_shows_every_run_or_those_at_work() -> None:
    runs = study_of().runs()
    for height, expected in ((40, 12), (8, 4)):
        stream = io.StringIO()
        terminal = Console(file=stream, force_terminal=True, color_system=None, width=100, height=height)
        console = StudyConsole(runs, terminal)
        with console:
            console(Progress(11, "running", 7, value=0.5))
            console(Progress(3, "failed", message="no"))
            shown = Console(file=stream, width=100)
            stream.truncate(0)
            shown.print(console._table())
        lines = stream.getvalue().splitlines()
        body = [line for line in lines if line.startswith(("avg", "sisa", "scaffold"))]
        assert len(body) >= expected
        assert any(line.split()[-3:] == ["running", "7", "50.0%"] for line in body)
        assert any("failed" in line for line in body)
        assert "1 running, 1 failed, 10 waiting" in stream.getvalue()


# ------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_jobs_do_not_change_results(tmp_path: Path) -> None:
    """Results do not depend on ``jobs``, with new processes as on the command line."""
    compare(SHORT, tmp_path / "whole")
    assert states(compare(SHORT, tmp_path / "out", jobs=2)) == ["finished"] * 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_study_killed_at_random_moments(tmp_path: Path, in_child: Any, ended: Any) -> None:
    """A study survives repeated ``kill -9`` of its process group while two of twelve runs train."""
    study = study_of(base={"num-server-rounds": 8})
    begin = time.perf_counter()
    assert ended(in_child(lambda: compare(study, tmp_path / "whole", jobs=2))) == 0
    duration = time.perf_counter() - begin
    rng = random.Random(4)
    killed, went_on, directory = 0, 0, tmp_path / "cut-0"
    while killed < 25:
        child = in_child(partial(compare, study, directory, jobs=2))
        time.sleep(rng.uniform(0, 0.4 * duration))
        with suppress(ProcessLookupError):  # the child may not have its process group yet
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        killed += code != 0
        if code == 0:  # the study ended before the kill: start another
            assert contents(directory) == contents(tmp_path / "whole")
            went_on += resumed(directory)
            directory = tmp_path / f"cut-{killed}"
    assert ended(in_child(partial(compare, study, directory, jobs=2))) == 0
    assert contents(directory) == contents(tmp_path / "whole")
    assert went_on + resumed(directory) > 0


def resumed(directory: Path) -> int:
    """Return how often runs of a study resumed after round 0."""
    found = [json.loads(file.read_text()).get("resumed", []) for file in directory.rglob("run.json")]
    return sum(part["after_round"] > 0 for parts in found for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "group"), [(2, True), (15, True), (15, False)], ids=str)
def test_a_signal_ends_all_workers_after_their_round(
    signum: int, group: bool, tmp_path: Path, in_child: Any, ended: Any
) -> None:
    """Ctrl-C reaches the whole group, SIGTERM one process or all; no worker handles a signal twice."""
    study = study_of(base={"num-server-rounds": 2000, "checkpoint-every": 0}, seeds=[0])
    child = in_child(lambda: compare(study, tmp_path, jobs=2), errors=tmp_path / "errors")
    for one in study.runs()[:2]:  # either worker may start first
        metrics = tmp_path / one.path / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
    (os.killpg if group else os.kill)(child, signum)
    assert ended(child) == 128 + signum
    with pytest.raises(ProcessLookupError):  # no process is left, not even a zombie
        os.killpg(child, 0)
    assert (tmp_path / "errors").read_text() == ""
    found = load_study(tmp_path)
    assert [one.result.status for one in found] == ["interrupted", "interrupted"]
    for one in found:
        assert one.result.directory is not None
        (file,) = (one.result.directory / "checkpoint").iterdir()
        assert file.name.startswith(f"round-{len(one.result.rows) - 1}-")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_run_only(tmp_path: Path, in_child: Any, ended: Any) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\ndef model(shape, num_outputs):\n    os.kill(os.getpid(), 9)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        variants = [{"name": "dies", "model": "deadly:model"}, {"name": "a"}, {"name": "b"}]
        study = study_of(seeds=[0], sweep={}, variant=variants, base={"num-server-rounds": 2})
        assert ended(in_child(lambda: compare(study, tmp_path / "out", jobs=2))) == 0
    finally:
        sys.path.remove(str(tmp_path))
    assert [one.variant for one in load_study(tmp_path / "out")] == ["a", "b"]
