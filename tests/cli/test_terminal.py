"""A closed or full standard output, or a closed terminal, does not lose a run."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpisa.cli.main import main
from fedpisa.cli.terminal import Steady
from fedpisa.runs.results import load_result

RUN = ["run", "-c", "model=logistic num-server-rounds=3 num-clients=3 checkpoint-every=0", "--out"]


class Broken(io.StringIO):
    """A stream whose reader has closed it or whose disk is full."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_stream_that_cannot_be_written_does_not_end_a_run(
    number: int, streams: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    for name in streams:
        monkeypatch.setattr(sys, name, Broken(number))
    assert main([*RUN, str(tmp_path / "run")]) == 0
    assert load_result(tmp_path / "run").status == "finished"
    said = "standard output cannot be written: " in told.getvalue()
    assert said == (streams == ("stdout",) and number != errno.EPIPE)
    assert "Traceback" not in told.getvalue()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_from_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, None)  # Python sets a closed stream to None
    assert main([*RUN, str(tmp_path / "run")]) == 0
    assert getattr(sys, name) is None


def test_other_streams_are_as_before() -> None:
    stream = io.StringIO()
    steady = Steady(stream)
    assert (steady.write("ab"), steady.isatty(), steady.error) == (2, False, None)
    assert stream.getvalue() == "ab"


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection",
    ["| head -c 1 >/dev/null", "2>&1 | head -2 >/dev/null", ">/dev/full", ">/dev/full 2>&1", ">&-"],
)
def test_in_a_shell(redirection: str, tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "fedpisa", *RUN, str(tmp_path / "run")])
    command = f"{words} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert load_result(tmp_path / "run").status == "finished"


@pytest.mark.slow
def test_a_closed_terminal_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Closing the pseudo-terminal sends SIGHUP and makes every write fail; the run leaves a checkpoint."""
    import pty

    keys = "model=logistic num-server-rounds=100000 num-clients=3 checkpoint-every=0"
    run = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "fedpisa", "run", "-c", keys, "--out", str(run)])
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 3):
        assert time.monotonic() < deadline
        os.set_blocking(terminal, False)
        try:
            os.read(terminal, 10_000)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert load_result(run).status == "interrupted"
    assert len(list((run / "checkpoint").iterdir())) == 1
