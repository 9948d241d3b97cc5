"""Large checkpoints are written beside the run: they delay no round, and nothing of them is lost."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpisa.cli.main import main
from fedpisa.runs.events import Event, RoundFinished
from fedpisa.runs.process import own_process
from fedpisa.runs.results import load_result
from fedpisa.runs.runner import run
from fedpisa.runs.signals import Interrupted
from fedpisa.storage import checkpoint, checkpoint_writer, files
from fedpisa.storage.checkpoint import Checkpoint
from fedpisa.storage.checkpoint_writer import CheckpointWriter
from tests.runs.interrupted import SMALL, STATEFUL, assert_same, checkpoints, rows

Write = Callable[[Path, bytes], None]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints of all sizes be written beside the run."""
    monkeypatch.setattr(checkpoint_writer, "BESIDE", 0)


def replacing(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(checkpoint, "replace_file", write)


def at(server_round: int, act: Callable[[], object]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.row["round"] == server_round:
            act()

    return listen


def round_of(file: Path) -> int:
    return int(file.name.split("-")[1])


def full_after(server_round: int) -> Write:
    def write(file: Path, content: bytes) -> None:
        if round_of(file) >= server_round:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        files.replace_file(file, content)

    return write


@pytest.mark.usefixtures("beside")
def test_rounds_go_on_during_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of round 2 is complete only after round 3."""
    third, in_time = threading.Event(), list[bool]()

    def write(file: Path, content: bytes) -> None:
        in_time.append(third.wait(10))
        files.replace_file(file, content)

    replacing(monkeypatch, write)
    run(SMALL, tmp_path / "run", on_event=at(3, third.set))
    assert in_time == [True] * 4  # rounds 2, 4, 6 and 7
    assert checkpoints(tmp_path / "run") == [7]


@pytest.mark.usefixtures("beside")
def test_a_checkpoint_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write lasts until the next one would begin, if one began beside it."""
    second, written, together = threading.Event(), list[int](), list[bool]()

    def write(file: Path, content: bytes) -> None:
        if round_of(file) > 1:
            second.set()
        else:
            together.append(second.wait(0.3))
        files.replace_file(file, content)
        written.append(round_of(file))

    replacing(monkeypatch, write)
    run({**SMALL, "checkpoint-every": 1}, tmp_path / "run")
    assert (together, written) == ([False], list(range(1, 8)))


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("config", [*STATEFUL, {"algorithm": "sisa", "engine": "loop"}])
def test_a_kill_within_a_write_resumes_to_the_same_bytes(
    config: Mapping[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_child: Any, ended: Any
) -> None:
    """The kill after round 5 comes while the checkpoint of round 4 is half written."""
    config = {**SMALL, **config}
    run(config, tmp_path / "whole")
    directory, begun = tmp_path / "cut", threading.Event()

    def write(file: Path, content: bytes) -> None:
        if round_of(file) != 4:
            files.replace_file(file, content)
            return
        file.with_name(f".{file.name}{files.PARTIAL}").write_bytes(content[: len(content) // 2])
        begun.set()
        threading.Event().wait()

    def kill() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        replacing(patch, write)
        assert ended(in_child(lambda: run(config, directory, on_event=at(5, kill)))) == -signal.SIGKILL
    assert len(list((directory / "checkpoint").glob(".round-4-*"))) == 1
    assert (checkpoints(directory), len(rows(directory))) == ([2], 6)
    run(resume=directory)
    assert_same(directory, tmp_path / "whole")
    one, other = (
        checkpoint.read(next((d / "checkpoint").iterdir())) for d in (directory, tmp_path / "whole")
    )
    assert list(one.tensors) == list(other.tensors)
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("server_round", [4, 7])
def test_a_full_disk_ends_the_run_in_one_line(
    server_round: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of round 4 comes at the checkpoint of round 6, and that of the last round at the end."""
    run(SMALL, tmp_path / "whole")
    directory = tmp_path / "cut"
    keys = " ".join(f"{key}={value}" for key, value in SMALL.items())
    with monkeypatch.context() as patch:
        replacing(patch, full_after(server_round))
        assert main(["run", "-c", keys, "--out", str(directory)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"round-{server_round}-" in error
    assert error.endswith(
        f"No space left on device; the rounds so far are kept, go on with: fedpisa run --resume {directory}"
    )
    assert load_result(directory).status == "failed"
    assert (checkpoints(directory)[0], len(rows(directory))) == {4: (2, 7), 7: (6, 8)}[server_round]
    assert main(["run", "--resume", str(directory)]) == 0
    assert_same(directory, tmp_path / "whole")


@pytest.mark.usefixtures("beside")
def test_an_error_of_the_run_comes_before_that_of_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("first")

    replacing(monkeypatch, full_after(2))
    with pytest.raises(ValueError, match="first"):
        run(SMALL, tmp_path / "run", on_event=at(3, fail))
    assert "the last checkpoint was not written" in caplog.text
    assert "No space left on device" in caplog.text


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: Path, content: bytes) -> None:
        threading.Event().wait(0.2)
        files.replace_file(file, content)

    replacing(monkeypatch, write)


@pytest.mark.usefixtures("beside")
@own_process()
def test_a_signal_waits_for_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    with pytest.raises(Interrupted):
        run(SMALL, tmp_path / "run", on_event=at(2, lambda: signal.raise_signal(signal.SIGTERM)))
    assert checkpoints(tmp_path / "run") == [3, 2]
    replacing(monkeypatch, full_after(3))
    with pytest.raises(OSError, match="No space left"):
        run(SMALL, tmp_path / "full", on_event=at(2, lambda: signal.raise_signal(signal.SIGTERM)))
    assert load_result(tmp_path / "full").status == "failed"


@pytest.mark.usefixtures("beside")
def test_ctrl_c_waits_for_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "run", on_event=at(2, lambda: signal.raise_signal(signal.SIGINT)))
    assert checkpoints(tmp_path / "run") == [2]
    assert load_result(tmp_path / "run").status == "interrupted"


@pytest.mark.parametrize(
    ("beside_from", "limit", "is_beside"), [(8, 100, False), (7, 100, True), (7, 8, True), (7, 7, False)]
)
def test_what_is_written_beside_is_large_and_fits_the_memory(
    beside_from: int, limit: int, is_beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight bytes are written in the thread or at once; the file is the same."""
    threads = list[bool]()

    def write(file: Path, content: bytes) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        files.replace_file(file, content)

    state = Checkpoint(3, {"w": torch.arange(2.0)}, {"seed": 1})
    alone = checkpoint.write(tmp_path / "alone", state)
    monkeypatch.setattr(checkpoint_writer, "BESIDE", beside_from)
    replacing(monkeypatch, write)
    with CheckpointWriter(tmp_path / "run", limit) as writer:
        writer.write(state)
    assert threads == [not is_beside]
    (file,) = (tmp_path / "run").iterdir()
    assert (file.name, file.read_bytes()) == (alone.name, alone.read_bytes())


def test_small_models_use_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set[threading.Thread]()

    def write(file: Path, content: bytes) -> None:
        threads.add(threading.current_thread())
        files.replace_file(file, content)

    replacing(monkeypatch, write)
    run(SMALL, tmp_path / "run")
    assert threads == {threading.main_thread()}
