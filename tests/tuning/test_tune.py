"""Tuning: study files, the budget, and that interruptions neither lose nor repeat trials."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedpisa.cli.main import main
from fedpisa.config.run import RunConfig, load_config
from fedpisa.simulation.parts import build_model, load_dataset
from fedpisa.studies.study import read_study
from fedpisa.tuning.plan import Plan, Settings, read_plan
from tests.tuning.plans import BASE, GRID, SGD, plan_of, write

# --------------------------------------------------------------------------------------- what is carried out

optuna = pytest.importorskip("optuna", reason="needs the extra tune")


def values_of(standings: Any) -> list[Any]:
    return [(t.index, dict(t.keys), t.state, t.metric, t.rounds) for one in standings for t in one.trials]


def tune(*arguments: Any, **options: Any) -> Any:
    from fedpisa.tuning.tune import tune as run_tuning

    return run_tuning(*arguments, **options)


def test_every_subject_gets_the_same_budget_and_the_same_call_does_nothing_more(tmp_path: Path) -> None:
    plan = plan_of(sweep={"condition": [2.0, 6.0]})
    told: list[Any] = []
    standings = tune(plan, tmp_path, on_progress=told.append)
    assert [(one.subject.variant, one.subject.point["condition"], len(one.trials)) for one in standings] == [
        ("sgd", 2, 5), ("sgd", 6, 5), ("sisa", 2, 5), ("sisa", 6, 5)
    ]  # fmt: skip
    assert all(sorted(t.index for t in one.trials) == list(range(5)) for one in standings)
    # The reported rounds are the trained ones.
    trained = {(one.subject, one.index): one.rounds for one in told}
    assert sum(trained.values()) == sum(one.rounds for one in standings)
    again: list[Any] = []
    assert values_of(tune(plan, tmp_path, on_progress=again.append)) == values_of(standings)
    assert len(again) == 20
    assert all(one.before for one in again)
    assert not (tmp_path / "workers").exists()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_trials_are_those_of_the_seed(tmp_path: Path, sampler: str) -> None:
    first, second, other = (
        values_of(
            tune(plan_of(tune={"sampler": sampler, "seed": seed, "trials": 7}, **SGD), tmp_path / str(number))
        )
        for number, seed in enumerate((3, 3, 4))
    )
    assert first == second
    assert len({str(keys) for _, keys, *_ in first}) == 7
    assert [keys for _, keys, *_ in first] != [keys for _, keys, *_ in other]


def test_more_trials_may_be_asked_for_and_fewer_not(tmp_path: Path) -> None:
    short = values_of(tune(plan_of(tune={"sampler": "random"}, **SGD), tmp_path))
    longer = values_of(tune(plan_of(tune={"sampler": "random", "trials": 8}, **SGD), tmp_path))
    assert len(longer) == 8
    assert longer[:5] == short
    with pytest.raises(ValueError, match=r"has 8 trials .* more than trials = 5"):
        tune(plan_of(tune={"sampler": "random"}, **SGD), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"num-server-rounds": 8}}, "num-server-rounds was 9 and is now 8"),
        ({"search": {"learning-rate": {"low": 0.1, "high": 1}}}, "search learning-rate was Range"),
        ({"tune": {"pruner": "halving"}}, r"\[tune\] pruner was 'none' and is now 'halving'"),
    ],
)
def test_another_plan_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    tune(plan_of(tune={"trials": 1}, **SGD), tmp_path)
    with pytest.raises(ValueError, match=message):
        tune(plan_of(**{**SGD, "tune": {"trials": 1, **changes.pop("tune", {})}, **changes}), tmp_path)


def test_a_grid_is_visited_exactly(tmp_path: Path) -> None:
    (standing,) = tune(plan_of(**GRID), tmp_path)
    assert [(t.keys["learning-rate"], t.keys["momentum"]) for t in standing.trials] == [
        (rate, momentum) for rate in (0.1, 0.3, 1) for momentum in (0, 0.5)
    ]
    assert {t.state for t in standing.trials} == {"finished"}


def test_choices_that_are_lists_come_back_as_lists(tmp_path: Path) -> None:
    base = {"dataset": "digits", "partitioner": "iid", "model": "mlp", "num-server-rounds": 1}
    tables: dict[str, Any] = {
        "tune": {"sampler": "grid"},
        "base": base,
        "search": {"widths": [[4], [4, 3]], "bias": [True, False]},
    }
    tables["search"].pop("bias")
    (standing,) = tune(Plan.from_mapping(tables), tmp_path)
    assert [t.keys["widths"] for t in standing.trials] == [[4], [4, 3]]
    assert load_config(tmp_path / "best/base/all.toml").options["widths"] == standing.best.keys["widths"]


def test_gradient_descent_is_tuned_to_its_best_step(tmp_path: Path) -> None:
    base = {"dimension": 6, "condition": 20.0, "num-server-rounds": 60, "eval-every": 60}
    tables = {**SGD, "base": base, "search": {"learning-rate": {"low": 0.05, "high": 5, "log": True}}}
    (standing,) = tune(plan_of(**tables, tune={"trials": 25}), tmp_path)
    # The best step in closed form: F(w_R) - F* = 1/2 sum_k h_k (1 - eta h_k)^2R c_k^2 along the Hessian's eigenvectors.
    config = RunConfig.from_mapping({**BASE, **base, "algorithm": "fedsgd", "seed": 2})
    data = load_dataset(config)
    inputs = np.asarray(data.x_train, dtype=np.float64)
    curvature, directions = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    initial = next(build_model(config, data).parameters()).detach().numpy().ravel()
    away = directions.T @ (initial - np.asarray(data.ground_truth["optimum"]))
    steps = np.geomspace(0.05, 5, 20_001)
    losses = (curvature * (1 - steps[:, None] * curvature) ** 120 * away**2).sum(axis=1)
    best = steps[losses.argmin()]
    assert best == pytest.approx(2 / (curvature[0] + curvature[-1]), rel=0.1)
    assert standing.best.keys["learning-rate"] == pytest.approx(best, rel=0.1)
    by_step = sorted((t.keys["learning-rate"], t.metric) for t in standing.trials)
    assert standing.best.metric < min(by_step[0][1], by_step[-1][1])


def test_pruned_trials_stop_at_a_rung(tmp_path: Path) -> None:
    plan = plan_of(**SGD, tune={"trials": 12, "seeds": [7, 8], "pruner": "halving"})
    (standing,) = tune(plan, tmp_path)
    rungs = Settings(pruner="halving").rungs(18)
    assert rungs == (2, 6)
    assert standing.counts["pruned"] > 3
    for trial in standing.trials:
        assert trial.rounds == 18 if trial.state == "finished" else trial.rounds in rungs
    assert standing.best.metric == min(t.metric for t in standing.trials if t.state == "finished")


def test_a_trial_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    from fedpisa.runs.runner import run

    (standing,) = tune(plan_of(**SGD, tune={"trials": 1, "seeds": [7, 8]}), tmp_path)
    losses = [run(standing.subject.config(standing.best.keys, seed)).last("test_loss") for seed in (7, 8)]
    assert standing.best.metric == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_trial_that_fails_is_reported_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "small.toml", **GRID)
    from fedpisa.runs import simulation

    built = simulation.Simulation.__init__

    def break_some(self: Any, config: RunConfig, *others: Any, **options: Any) -> None:
        if config.options["momentum"]:
            raise RuntimeError("no such\nluck")
        built(self, config, *others, **options)

    monkeypatch.setattr(simulation.Simulation, "__init__", break_some)
    assert main(["tune", str(file), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("failed: variant 'sgd', trial") == 3
    assert "RuntimeError: no such luck" in shown.err
    trials = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert trials.state.tolist() == ["finished", "failed"] * 3
    assert (tmp_path / "out" / "best.toml").exists()


def test_when_all_trials_of_a_variant_fail_there_is_no_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"num-server-rounds": 40}
    search = {"learning-rate": [1e200, 1e201]}
    file = write(
        tmp_path / "small.toml",
        **{**GRID, "base": base, "search": search, "tune": {"sampler": "grid", "trials": 4}},
    )
    assert main(["tune", str(file), "--out", str(tmp_path / "out")]) == 1
    assert "no trial reached the end of variant 'sgd'" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "out" / "trials.csv").state) == {"diverged"}
    assert not (tmp_path / "out" / "best.toml").exists()


# ------------------------------------------------------------------------------------------- what is written


def test_the_best_values_are_files_for_run_and_compare(tmp_path: Path) -> None:
    plan = plan_of(sweep={"condition": [2.0, 6.0]}, tune={"trials": 3})
    standings = tune(plan, tmp_path)
    for one in standings:
        toml = load_config(tmp_path / "best" / f"{one.subject.path}.toml")
        assert toml == one.subject.config(one.best.keys, 0)
        assert "seed =" not in (tmp_path / "best" / f"{one.subject.path}.toml").read_text()
    best = read_study(tmp_path / "best.toml")
    assert (best.name, tuple(best.seeds), dict(best.sweep)) == ("small", (0, 1), {"condition": [2.0, 6.0]})
    runs = {(run.variant, run.point["condition"], run.seed): run.config for run in best.runs()}
    assert len(runs) == 8
    for one in standings:
        for seed in (0, 1):
            wanted = one.subject.config(one.best.keys, seed)
            assert runs[one.subject.variant, one.subject.point["condition"], seed] == wanted


def test_without_a_sweep_the_best_values_are_the_variants_own(tmp_path: Path) -> None:
    (standing,) = tune(plan_of(**SGD, tune={"trials": 2}), tmp_path)
    best = read_study(tmp_path / "best.toml")
    assert best.at == {"sgd": []} or not best.at
    assert best.variants["sgd"]["learning-rate"] == standing.best.keys["learning-rate"]


def test_the_picture_has_a_panel_for_each_key_of_each_variant(tmp_path: Path) -> None:
    from fedpisa.tuning.picture import plot_trials

    plan = plan_of(tune={"trials": 6})
    standings = tune(plan, tmp_path)
    assert (tmp_path / "trials.png").stat().st_size > 10_000
    figure = plot_trials(plan, [one.trials for one in standings])
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in visible] == ["learning-rate", "sigma", "local-steps"]
    assert [ax.get_xscale() for ax in visible] == ["log", "log", "linear"]
    for ax, one in zip((visible[0], visible[1]), standings, strict=True):
        drawn = sum(len(line.get_xdata()) for line in ax.lines)
        assert drawn == len(one.trials) + 1  # and the ring


# --------------------------------------------------------------------------------------------- interruptions


def stop_at(calls: int, act: Callable[[], None]) -> Callable[[Any], None]:
    """Return a listener that acts after the first round of the n-th trial."""
    seen = 0

    def listen(progress: Any) -> None:
        nonlocal seen
        seen += progress.state == "running" and progress.rounds == 1
        if seen == calls:
            seen += 1
            act()

    return listen


def fail() -> None:
    raise RuntimeError("stop here")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_tuning_has_the_trials_of_one_that_was_not_interrupted(
    tmp_path: Path, sampler: str
) -> None:
    plan = plan_of(tune={"sampler": sampler})
    whole = values_of(tune(plan, tmp_path / "whole"))
    for calls in (1, 2, 4):
        with pytest.raises(RuntimeError, match="stop here"):
            tune(plan, tmp_path / "cut", on_progress=stop_at(calls, fail))
    assert values_of(tune(plan, tmp_path / "cut")) == whole


def test_ctrl_c_ends_the_round_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedpisa.tuning import console

    file = write(tmp_path / "small.toml")
    listen = stop_at(3, lambda: signal.raise_signal(signal.SIGINT))
    shown = console.TuneConsole.__call__

    def listen_too(self: Any, progress: Any) -> None:
        shown(self, progress)
        listen(progress)

    monkeypatch.setattr(console.TuneConsole, "__call__", listen_too)
    out = tmp_path / "out"
    assert main(["tune", str(file), "--out", str(out)]) == 130
    assert "the same command continues" in capsys.readouterr().err
    ended = pd.read_csv(out / "trials.csv")
    assert 2 <= len(ended) < 10
    assert "running" not in set(ended.state)
    assert not (out / "best.toml").exists()
    assert main(["tune", str(file), "--out", str(out)]) == 0
    assert len(pd.read_csv(out / "trials.csv")) == 10
    assert (out / "best.toml").exists()


LONG: Mapping[str, Any] = {"tune": {"sampler": "random"}, "base": {"num-server-rounds": 25}}
"""Independent trials, each long enough to be running when a signal arrives."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the trials of an uninterrupted tuning; their keys do not depend on the number of rounds."""
    found = tune(plan_of(**{**LONG, "base": {"num-server-rounds": 1}}), tmp_path_factory.mktemp("alone"))
    return [(t.index, t.keys) for one in found for t in one.trials]


def assert_each_trial_ended_once(plan: Plan, out: Path, undisturbed: list[Any]) -> None:
    """Finish a tuning; assert that it has the given trials, each with one end in the database."""
    found = tune(plan, out)
    assert [(t.index, t.keys) for one in found for t in one.trials] == undisturbed
    assert {t.state for one in found for t in one.trials} <= {"finished", "pruned"}
    for trials in stored(plan, out):
        ends = [t.user_attrs["claim"]["index"] for t in trials if "end" in t.user_attrs]
        assert sorted(ends) == list(range(plan.trials))
        assert not any(t.state == optuna.trial.TrialState.RUNNING for t in trials)
    assert len(pd.read_csv(out / "trials.csv")) == plan.trials * len(plan.subjects)
    assert (out / "best.toml").exists()


def stored(plan: Plan, out: Path) -> list[Any]:
    """Return all trials of each subject in the database, including lost ones."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / 'tune.db'}")
    return [optuna.load_study(study_name=str(s.path), storage=storage).get_trials() for s in plan.subjects]


def teller(wanted: Callable[[Any], bool]) -> tuple[Callable[[Any], None], Callable[[int], None]]:
    """Return a child's listener that reports some progress, and a function that waits for reports."""
    ours, theirs = os.pipe()

    def listen(progress: Any) -> None:
        if wanted(progress):
            os.write(theirs, b".")

    def wait(count: int) -> None:
        for _ in range(count):
            assert os.read(ours, 1)

    return listen, wait


@pytest.mark.slow
def test_two_processes_share_the_budget_and_a_killed_one_loses_nothing(
    tmp_path: Path, in_child: Any, ended: Any, undisturbed: list[Any]
) -> None:
    plan, out = plan_of(**LONG), tmp_path / "out"
    listen, wait = teller(lambda progress: progress.state != "running" and not progress.before)
    victim = in_child(lambda: tune(plan, out, on_progress=listen))
    wait(3)  # it has ended three trials and starts or trains the next
    others = [in_child(lambda: tune(plan, out) and 0) for _ in range(2)]
    os.kill(victim, signal.SIGKILL)
    assert ended(victim) == -signal.SIGKILL
    assert [ended(other) for other in others] == [0, 0]
    assert (out / "best.toml").exists()  # the last process has written it
    assert_each_trial_ended_once(plan, out, undisturbed)


@pytest.mark.slow
def test_jobs_begin_the_trials_of_workers_that_were_killed_again(
    tmp_path: Path, in_child: Any, ended: Any, undisturbed: list[Any]
) -> None:
    def kill_all() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    plan, out = plan_of(**LONG), tmp_path / "out"
    assert ended(in_child(lambda: tune(plan, out, jobs=2, on_progress=stop_at(1, kill_all)))) == 0
    assert sum(map(len, stored(plan, out))) > 10  # some trials were lost
    assert_each_trial_ended_once(plan, out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "group"), [(2, True), (15, True), (15, False)], ids=str)
def test_a_signal_ends_all_workers_after_their_round(
    signum: int,
    group: bool,
    tmp_path: Path,
    in_child: Any,
    ended: Any,
    undisturbed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fedpisa.tuning.console import TuneConsole

    file, out = write(tmp_path / "small.toml", **LONG), tmp_path / "out"
    listen, wait = teller(lambda progress: progress.state == "running" and progress.rounds == 1)
    shown = TuneConsole.__call__
    monkeypatch.setattr(TuneConsole, "__call__", lambda self, one: (shown(self, one), listen(one)))
    command = ["tune", str(file), "--out", str(out), "--jobs", "2"]
    errors = tmp_path / "errors"
    child = in_child(lambda: main(command), errors)
    wait(2)
    (os.killpg if group else os.kill)(child, signum)
    assert ended(child) == 128 + signum
    with pytest.raises(ProcessLookupError):  # no process is left, not even a zombie
        os.killpg(child, 0)
    *said, last = [line for line in errors.read_text().splitlines() if line]
    assert last == f"interrupted: the trials so far are kept in {out}, the same command continues"
    assert "ending this round; once more ends at once" in said
    assert all(line.startswith(("ending this round", "[ ", "[10/")) for line in said)
    assert len(pd.read_csv(out / "trials.csv")) < 10
    assert not (out / "best.toml").exists()
    for its in stored(read_plan(file), out):  # no trial is lost: unfinished trials are given back
        assert all({"end", "given up"} & {*t.user_attrs} for t in its)
    assert_each_trial_ended_once(read_plan(file), out, undisturbed)


@pytest.mark.slow
def test_ctrl_c_on_processes_that_are_begun_anew(tmp_path: Path, undisturbed: list[Any]) -> None:
    """Ctrl-C in a terminal interrupts the command's processes without a traceback."""
    file, out = write(tmp_path / "small.toml", **LONG), tmp_path / "out"
    command = [sys.executable, "-m", "fedpisa", "tune", str(file), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "[ 1/10] variant" in first
    os.killpg(process.pid, signal.SIGINT)
    shown, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert shown == ""  # the pipe closes only after all processes have ended
    assert_each_trial_ended_once(read_plan(file), out, undisturbed)


def test_a_signal_after_the_last_trial_interrupts_nothing(tmp_path: Path) -> None:
    plan = plan_of(**SGD, tune={"trials": 2})

    def listen(progress: Any) -> None:
        if (progress.index, progress.state) == (1, "finished"):
            signal.raise_signal(signal.SIGTERM)

    (standing,) = tune(plan, tmp_path, on_progress=listen)
    assert len(standing.trials) == 2
    assert (tmp_path / "best.toml").exists()


def test_processes_that_find_nothing_left_are_no_error(
    tmp_path: Path, in_child: Any, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the last trial while the workers of ``jobs`` start."""
    from fedpisa.tuning.trials import Trials

    plan = plan_of(**SGD, tune={"trials": 1})
    module = import_module("fedpisa.tuning.tune")
    share_out = module._share_out

    def quicker() -> int:

        def late(*arguments: Any) -> int | None:
            with Trials(plan, tmp_path) as other:
                claim = other.claim()
                assert claim is not None
                other.disconnect()
                try:
                    return share_out(*arguments)
                finally:
                    claim.end("finished", 0.5, 9, 0.1, "")

        monkeypatch.setattr(module, "_share_out", late)
        return len(module.tune(plan, tmp_path, jobs=2)[0].trials) - 1

    errors = tmp_path / "errors"
    assert ended(in_child(quicker, errors)) == 0
    assert errors.read_text() == ""


# ------------------------------------------------------------------------------------- disks and folders


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_loses_nothing(
    jobs: int, tmp_path: Path, in_child: Any, ended: Any, undisturbed: list[Any]
) -> None:
    """The operating system refuses to write the database: first all of it, then the trials."""
    pruned = {**LONG["tune"], "pruner": "halving"}  # its reports fill the database
    file, out = write(tmp_path / "small.toml", **{**LONG, "tune": pruned}), tmp_path / "out"
    counts = []
    for room in (100, 270_000, 300_000):

        def limited(room: int = room) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            return main(["tune", str(file), "--out", str(out), "--jobs", str(jobs)])

        errors = tmp_path / f"errors-{room}"
        assert ended(in_child(limited, errors)) == 2
        *said, last = errors.read_text().splitlines()
        assert last.startswith("error: tune.db cannot be used: disk I/O error")
        assert all(line.startswith("[ ") for line in said)
        counts.append(len(said))
    assert counts[0] == 0 < sum(counts) < 10
    assert_each_trial_ended_once(read_plan(file), out, undisturbed)


@pytest.mark.parametrize("name", ["trials.csv", "summary.csv", "trials.png", "best.toml"])
def test_what_could_not_be_written_is_written_by_the_same_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path / "small.toml", **SGD, tune={"trials": 2}), tmp_path / "out"
    command, real = ["tune", str(file), "--out", str(out)], Path.open
    assert main(command) == 0
    before = {
        path: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".csv", ".toml", ".png")
    }
    names = {"trials.csv", "summary.csv", "trials.png", "best.toml", "all.toml"}
    assert names == {path.name for path in before}

    def full(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if name in path.name and mode == "wb":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, mode, *more, **options)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        assert main(command) == 2
    assert capsys.readouterr().err == f"error: {out / name}: No space left on device\n"
    assert {path: path.read_bytes() for path in before} == before
    (out / name).unlink()
    assert main(command) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedpisa.tuning import trials

    file, out = write(tmp_path / "small.toml", **SGD), tmp_path / "out"

    def mkdir(path: Path, *more: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        assert main(["tune", str(file), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out}: Permission denied\n"
    listen = stop_at(2, fail)
    with pytest.raises(RuntimeError, match="stop here"):
        tune(read_plan(file), out, on_progress=listen)
    before = values_of(tune(plan_of(**SGD), tmp_path / "whole"))

    def read_only(database: Path) -> Any:
        return sqlite3.connect(f"file:{database}?mode=ro", uri=True, check_same_thread=False)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(trials, "connect", read_only)
        assert main(["tune", str(file), "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: tune.db cannot be used: attempt to write a readonly database"
    ]
    assert values_of(tune(read_plan(file), out)) == before


def test_a_study_edited_under_a_half_finished_tuning_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path / "small.toml", **SGD), tmp_path / "out"
    command = ["tune", str(file), "--out", str(out)]
    with pytest.raises(RuntimeError, match="stop here"):
        tune(read_plan(file), out, on_progress=stop_at(2, fail))
    for changes, reason in (
        ({"base": {"num-clients": 4}}, "num-clients was 3 and is now 4"),
        ({"search": {"learning-rate": [1, 2, 3, 4, 5]}}, "search learning-rate was Range"),
        ({"tune": {"metric": "train_loss"}}, "[tune] metric was 'test_loss' and is now 'train_loss'"),
    ):
        for jobs in ("1", "2"):
            write(file, **{**SGD, **changes})
            assert main([*command, "--jobs", jobs]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: the trials of variant 'sgd' in ")
            assert reason in line
    write(file, **SGD)
    assert main(command) == 0
    assert values_of(tune(read_plan(file), out)) == values_of(tune(plan_of(**SGD), tmp_path / "whole"))


def test_a_trial_whose_process_always_ends_is_given_up(tmp_path: Path) -> None:
    from fedpisa.tuning.trials import ATTEMPTS, Trials

    plan = plan_of(**SGD, tune={"trials": 2})
    for _ in range(ATTEMPTS):
        with Trials(plan, tmp_path) as trials:
            claim = trials.claim()
            assert claim is not None
            assert claim.index == 0
    with Trials(plan, tmp_path) as trials:
        claim = trials.claim()
        assert claim is not None
        assert claim.index == 1
        lost, running = trials.of(plan.subjects[0])
        assert (lost.state, running.state) == ("failed", "running")
        assert "ended 3 times" in lost.error


def test_a_trial_of_a_process_that_works_is_left_to_it(tmp_path: Path) -> None:
    from fedpisa.tuning.trials import Trials

    plan = plan_of(**SGD, tune={"trials": 3})
    with Trials(plan, tmp_path) as mine, Trials(plan, tmp_path) as theirs:
        given = [each.claim() for each in (mine, theirs, mine, theirs)]
        assert [claim and claim.index for claim in given] == [0, 1, 2, None]
        assert len({str(claim.keys) for claim in given if claim}) == 3


def test_a_database_that_is_none_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "small.toml")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tune.db").write_bytes(b"no database " * 100)
    assert main(["tune", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "tune.db is damaged, it is no SQLite database" in capsys.readouterr().err
