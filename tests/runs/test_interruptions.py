"""Runs resume with the same bytes after signals, full disks, read-only folders and ``kill -9``."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedpisa.cli.main import main
from fedpisa.runs.events import Event, RoundFinished, Stopping
from fedpisa.runs.process import own_process
from fedpisa.runs.results import load_result
from fedpisa.runs.runner import Simulation, run
from fedpisa.runs.signals import SIGNALS, Interrupted, ignore_second_signal, postponed
from fedpisa.storage import files
from tests.players import TWO
from tests.runs.interrupted import SMALL, assert_same, checkpoints, cut_short, rows

# -------------------------------------------------------------------------------------------- signals


def signalled(signum: int, server_round: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.row["round"] == server_round:
            signal.raise_signal(signum)

    return listen


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("every", [0, 5])
@own_process()
def test_a_signal_ends_the_run_after_the_round(signum: int, every: int, tmp_path: Path) -> None:
    config = {**SMALL, "checkpoint-every": every}
    run(config, tmp_path / "whole")
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted) as caught:
        run(config, tmp_path / "cut", on_event=signalled(signum, 2))
    assert caught.value.signum == signum
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    result = load_result(tmp_path / "cut")
    assert (result.status, len(result.rows), checkpoints(tmp_path / "cut")) == ("interrupted", 4, [3])
    assert result.parameters
    run(resume=tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")


@own_process()
def test_a_signal_in_the_last_round_changes_nothing(tmp_path: Path) -> None:
    assert run(SMALL, tmp_path / "run", on_event=signalled(signal.SIGTERM, 6)).status == "finished"


@own_process()
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, RoundFinished) and event.row["round"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(SMALL, tmp_path / "cut", on_event=listen)
    assert not isinstance(caught.value, Interrupted)
    assert [event.signum for event in events if isinstance(event, Stopping)] == [signal.SIGINT]
    assert load_result(tmp_path / "cut").status == "interrupted"
    assert checkpoints(tmp_path / "cut") == [2]
    run(resume=tmp_path / "cut")


def test_signals_that_come_together_end_at_once_and_leave_no_trace(
    tmp_path: Path, in_child: Any, ended: Any
) -> None:
    """Two pending signals end the process at once, without an error message.

    Python handles signals one by one. It reports a signal whose handler was removed in the meantime.
    """
    both = {signal.SIGINT, signal.SIGTERM}

    def work() -> None:
        with postponed():
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            for signum in both:
                os.kill(os.getpid(), signum)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)

    child = in_child(work, tmp_path / "errors")
    assert ended(child) == -signal.SIGTERM
    assert (tmp_path / "errors").read_text() == ""


def test_a_worker_heeds_one_signal(in_child: Any, ended: Any) -> None:
    def work() -> int:
        ignore_second_signal()
        with postponed() as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
        return stop.signum or 0

    assert ended(in_child(work)) == signal.SIGTERM


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_exit_codes_of_signals(
    signum: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows_of = Simulation.rows

    def interrupted(simulation: Simulation) -> Any:
        for row in rows_of(simulation):
            if row["round"] == 3:
                signal.raise_signal(signum)
            yield row

    directory = tmp_path / "run"
    keys = " ".join(f"{key}={value}" for key, value in SMALL.items())
    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "rows", interrupted)
        assert main(["run", "-c", keys, "--out", str(directory)]) == code
    err = capfd.readouterr().err
    assert "ending this round and writing a checkpoint; a second signal ends at once" in err
    assert err.splitlines()[-1].endswith(f"go on with: fedpisa run --resume {directory}")
    assert main(["run", "--resume", str(directory)]) == 0
    assert "resuming after round 3" in capfd.readouterr().err


# ------------------------------------------------------------------------------------- disks and processes


def test_two_processes_on_one_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = cut_short(SMALL, tmp_path / "run", 3)
    with files.locked(directory):
        assert main(["run", "--resume", str(directory)]) == 2
    assert capsys.readouterr().err == (
        f"error: {directory} is being written by another process: wait for it, or end it\n"
    )
    with files.locked(tmp_path / "new"), pytest.raises(files.InUseError):
        run(SMALL, tmp_path / "new")
    child = os.fork()
    if child == 0:  # a process that holds the directory and is killed
        with files.locked(directory):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert run(resume=directory).status == "finished"


def lines_of(file: Path) -> int:
    if not os.path.exists(file):
        return 0
    with open(file) as stream:
        return len(stream.readlines())


@pytest.mark.parametrize("name", ["metrics.jsonl", "round-4", "model.safetensors", "run.json"])
def test_a_full_disk_loses_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full when the run writes the named kind of file."""
    run(SMALL, tmp_path / "whole")
    directory, real, full = tmp_path / "cut", Path.open, False

    def listen(file: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        nonlocal full
        writing = file.is_relative_to(directory) and mode in ("w", "wb", "a")
        if writing and name in file.name and lines_of(directory / "metrics.jsonl") >= 4:
            full = True
        if full and writing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a file name, like `write`
        return real(file, mode, *more, **options)

    keys = " ".join(f"{key}={value}" for key, value in SMALL.items())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", listen)
        assert main(["run", "-c", keys, "--out", str(directory)]) == 2
    assert full
    lines = capsys.readouterr().err.splitlines()
    error = [line for line in lines if line.startswith("error: ")]
    assert len(error) == 1
    assert str(directory) in error[0]
    assert error[0].endswith(
        f"No space left on device; the rounds so far are kept, go on with: fedpisa run --resume {directory}"
    )
    assert main(["run", "--resume", str(directory)]) == 0
    assert_same(directory, tmp_path / "whole")


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The operating system refuses to write a checkpoint beyond the limit."""
    directory, config = tmp_path / "cut", {**SMALL, "model": "mlp"}
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))  # the partition has 13 kB, a vector 19 kB
        keys = " ".join(f"{key}={value}" for key, value in config.items())
        os._exit(main(["run", "-c", keys, "--out", str(directory)]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert not list(directory.rglob("*.partial"))
    assert [row["round"] for row in rows(directory)] == [0, 1, 2]
    run(config, tmp_path / "whole")
    run(resume=directory)
    assert_same(directory, tmp_path / "whole")


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mkdir(path: Path, *more: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main(["run", "-c", "model=logistic", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'run'}: Permission denied\n"


# --------------------------------------------------------------------------------------------- kill -9


def go_on_in_child(config: Mapping[str, object], directory: Path) -> int:
    """Start or resume a run in a forked process, because new imports would take seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if (directory / "config.toml").exists():
                run(resume=directory)
            else:
                run(config, directory)
            code = 0
        finally:
            os._exit(code)
    return child


KILLED: list[dict[str, object]] = [
    {"algorithm": "sisa", "engine": "vmap", "absent": "drop"},
    {"algorithm": "scaffold", "engine": "vmap", "checkpoint-every": 3},
    {"algorithm": "fedsgd", "engine": "vmap", "optimizer": "adam", "fraction-train": 1.0},
    {"algorithm": "feddyn", "engine": "loop"},
    {"algorithm": "sisa", "engine": "vmap", "absent": "fresh"},
    {"algorithm": "pisa", "engine": "loop", "preconditioner": "adam", "checkpoint-every": 2},
    {**TWO.keys, "algorithm": "sisa", "engine": "loop", "absent": "fresh"},
]


@pytest.mark.slow
@pytest.mark.parametrize("config", KILLED, ids=lambda config: "-".join(map(str, config.values())))
def test_killed_at_random_moments(
    config: Mapping[str, object], tmp_path: Path, in_child: Any, ended: Any
) -> None:
    """Each run survives five ``kill -9`` at random moments.

    A sixth kill in the middle makes sure that at least one run resumes from a checkpoint.
    """
    config = {**SMALL, "fraction-train": 0.4, "num-server-rounds": 25, "checkpoint-every": 1, **config}
    begin = time.perf_counter()
    os.waitpid(go_on_in_child(config, tmp_path / "whole"), 0)
    duration = time.perf_counter() - begin
    rng = random.Random(str(config))
    killed, directory = 0, tmp_path / "cut-0"
    while killed < 5:
        child = go_on_in_child(config, directory)
        time.sleep(rng.uniform(0, 0.7 * duration))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if code == 0:  # the run ended before the kill: kill another one
            assert_same(directory, tmp_path / "whole")
            directory = tmp_path / f"cut-{killed}"
    code = os.waitstatus_to_exitcode(os.waitpid(go_on_in_child(config, directory), 0)[1])
    assert code == 0
    assert_same(directory, tmp_path / "whole")

    def end(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.row["round"] == 13:
            os.kill(os.getpid(), signal.SIGKILL)

    middle = tmp_path / "middle"
    assert ended(in_child(lambda: run(config, middle, on_event=end) and 1)) == -signal.SIGKILL
    assert ended(go_on_in_child(config, middle)) == 0
    (resumed,) = json.loads((middle / "run.json").read_text())["resumed"]
    assert resumed["after_round"] in (12, 13)
    assert_same(middle, tmp_path / "whole")
