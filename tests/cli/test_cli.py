"""The command line: its output, its exit codes, and its fast start.

Most tests replace training by a fake, so that they test the commands alone. One test trains.
"""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedpisa.cli.main import main
from fedpisa.config.run import RunConfig, load_config
from fedpisa.runs import runner
from fedpisa.runs.console import RunConsole
from fedpisa.runs.events import RoundFinished, RunFinished, RunStarted
from fedpisa.runs.results import Result, RunDirectory, load_result
from fedpisa.studies import demo
from fedpisa.studies.study import Study, load_study

HEAVY = ("torch", "flwr", "pandas", "matplotlib", "sklearn", "torchvision", "scipy")


def train(config: Any, out: Path, *, on_event: Callable[[object], None], stop: str = "finished") -> Result:
    """Write a run's directory with made-up numbers."""
    config = load_config(config)
    on_event(RunStarted(config, 4810, 1438, 359, "vmap", "cpu"))
    directory = RunDirectory.create(out, config=config, info={}, partition=[np.arange(3)])
    rows: list[dict[str, float]] = []
    for number in range(config.num_server_rounds + 1):
        if stop == "ctrl-c" and number == 3:
            directory.update(status="interrupted")
            raise KeyboardInterrupt
        row = {"round": number, "test_loss": 2.3 * 0.8**number, "test_accuracy": 1 - 0.9 * 0.8**number}
        if number:
            row |= {
                "train_loss": 2 * 0.8**number,
                "bytes_up": 1e6,
                "bytes_down": 1e6,
                "local_steps": 50,
                "seconds": 0.1,
                "objective": 0.8**number,
                "gradient_norm": 0.5**number,
            }
        rows.append(row)
        directory.append(row)
        on_event(RoundFinished(row, config.num_server_rounds))
        if stop == "diverged" and number == 2:
            break
    status = "diverged" if stop == "diverged" else "finished"
    directory.update(status=status)
    result = Result(
        config=config,
        rows=rows,
        parameters={},
        partition=[np.arange(3)],
        status=status,
        directory=directory.path,
    )
    on_event(RunFinished(result))
    return result


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Fake training in an empty current directory; a call of the result chooses how training ends."""
    monkeypatch.setattr(runner, "run", train)
    monkeypatch.chdir(tmp_path)
    return lambda stop: monkeypatch.setattr(runner, "run", functools.partial(train, stop=stop))


# ------------------------------------------------------------------------------------------------ at once


def imported_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.mark.parametrize(
    "code",
    [
        "import fedpisa",
        "import fedpisa.cli.main",
        "from fedpisa.cli.main import main; main(['--help'])",
        "from fedpisa.cli.main import main; main(['run', '--help'])",
    ],
)
def test_help_imports_nothing_heavy(code: str) -> None:
    assert imported_by(code).isdisjoint(HEAVY)


def test_results_are_read_without_torch() -> None:
    assert "torch" not in imported_by("import fedpisa.runs.results, fedpisa.plots, fedpisa.runs.console")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        command in text for command in ("demo", "run", "compare", "partition", "plot", "report", "list")
    )
    assert main([]) == 0
    assert "Commands" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- run


def test_run_without_arguments(fake: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 0
    out, err = capsys.readouterr()
    assert out == "result: runs/sisa-digits-0\n"
    lines = err.splitlines()
    assert lines[0].startswith(
        "sisa on digits: 10 clients by label-dirichlet, 1,438 training and 359 test samples"
    )
    assert lines[-1].startswith("sisa finished 50 rounds in 5.0 s, test accuracy 100.0%, train loss")
    assert len(lines) <= 10
    assert load_result("runs/sisa-digits-0").config == RunConfig()
    assert main(["run"]) == 0
    assert capsys.readouterr().out == "result: runs/sisa-digits-0-2\n"


def test_file_overrides_and_out(fake: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('algorithm = "fedavg"\nseed = 3\nlearning-rate = 0.5\n')
    command = ["run", "run.toml", "-c", "seed=4 num-server-rounds=2", "-c", "seed=5", "--out", "here"]
    assert main(command) == 0
    config = load_result("here").config
    assert (config.algorithm, config.seed, config.num_server_rounds) == ("fedavg", 5, 2)
    assert config.options["learning-rate"] == 0.5


def test_a_result_is_never_overwritten(
    fake: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "precious").touch()
    assert main(["run", "--out", "here"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: directory here exists and is not empty")
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-c", "num-client=3"],
        ["run", "-c", "algorithm=sissa"],
        ["run", "-c", "num-clients=0"],
        ["run", "-c", "seed"],
        ["run", "missing.toml"],
        ["run", "--frob"],
        ["frob"],
        ["plot", "missing"],
        ["plot", "."],
        ["plot", ".", "--x", "epochs"],
        ["plot", ".", "--width", "3 feet"],
        ["plot", ".", "--width", "0.1in"],
        ["plot", ".", "--labels", "sisa"],
        ["plot", ".", "--band", "wide"],
        ["partition", "-c", "num-clients=5000"],
        ["partition", "--out", "split.bmp"],
        ["list", "frobs"],
    ],
)
def test_bad_input_is_one_line(
    fake: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(fake: Callable[[str], None]) -> None:
    with pytest.raises(ValueError, match="num-client"):
        main(["run", "--debug", "-c", "num-client=3"])


def test_ctrl_c_says_what_was_kept(fake: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    fake("ctrl-c")
    assert main(["run", "--out", "here"]) == 130
    err = capsys.readouterr().err
    kept = "interrupted: the rounds so far are kept in here, go on with: fedpisa run --resume here"
    assert err.splitlines()[-1] == kept
    assert len(load_result("here").rows) == 3


def test_divergence_is_an_error(fake: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    fake("diverged")
    assert main(["run", "--out", "here"]) == 1
    err = capsys.readouterr().err
    assert "sisa diverged: loss or parameters were no longer finite in round 2" in err
    assert err.splitlines()[-1].startswith("error: sisa diverged, its rounds so far are kept in here")


def test_run_in_earnest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-c", "model=logistic num-server-rounds=2", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"result: {tmp_path / 'run'}\n"
    result = load_result(tmp_path / "run")
    assert (result.status, result.config.model, len(result.rows)) == ("finished", "logistic", 3)
    assert sorted(value.shape for value in result.parameters.values()) == [(10,), (10, 64)]


# --------------------------------------------------------------------------------------------- the others


def test_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = demo.demo_study

    def short(seeds: int = 1) -> Study:
        study = whole(seeds)
        return replace(study, base={**study.base, "num-server-rounds": 2})

    monkeypatch.setattr(demo, "demo_study", short)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--seeds", "2", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    places = [out.find(f"\n{name.split()[0]} ") for name in ("LocalSGD", "SCAFFOLD", "SISA", "PISA")]
    assert 0 < out.find("\nFedAvg ") < places[0]
    assert places == sorted(places)
    assert out.count(" ±") == len(demo.LABELS)
    assert "Each client has a single digit." in out
    assert (tmp_path / "fedpisa-demo" / "convergence.png").stat().st_size > 1000
    assert len(load_study("fedpisa-demo")) == 12
    assert main(["demo", "--jobs", "1"]) == 0
    assert len(load_study("fedpisa-demo-2")) == 6
    assert main(["demo", "--out", "fedpisa-demo"]) == 2
    assert main(["demo", "--seeds", "101"]) == 2


def test_plot(fake: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        assert main(["run", "-c", f"seed={seed} num-server-rounds=3"]) == 0
    assert (
        main(["plot", "runs/sisa-digits-1", "runs/sisa-digits-2", "--x", "local-steps", "--out", "a/b.svg"])
        == 0
    )
    assert capsys.readouterr().out.endswith("picture: a/b.svg\n")
    picture = (tmp_path / "a" / "b.svg").read_text()
    assert "sisa-digits-1" in picture
    assert "train loss" in picture
    assert main(["plot", "runs", "--y", "test-accuracy"]) == 0
    assert (tmp_path / "curves.png").exists()
    assert main(["plot", "runs", "--labels", "sisa-digits-1=One", "--width", "8cm", "--out", "c.svg"]) == 0
    assert "One" in (tmp_path / "c.svg").read_text()
    assert main(["plot", "runs", "--labels", "sissa=SISA"]) == 2


def test_partition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "split.png"
    command = ["partition", "-c", "partitioner=labels-per-client labels-per-client=1 num-clients=10"]
    assert main([*command, "--out", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "1,438 training samples on 10 clients by labels-per-client" in text
    assert "labels per client, least / median / most" in text
    assert picture.exists()
    rows = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    assert all(row[2:].count(".") == 9 for row in rows)
    assert sum(int(row[1]) for row in rows) == 1438


def test_partition_of_many_clients_and_of_a_regression(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "-c", "dataset=quadratic partitioner=iid num-clients=40"]) == 0
    text = capsys.readouterr().out
    assert "effective number of clients" in text
    assert "Hellinger" not in text


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("algorithms", "sisa"),
        ("partitioners", "label-dirichlet"),
        ("models", "widths=[200,200]"),
        ("preconditioners", "beta=0.999"),
        ("datasets", "digits"),
        ("optimizers", "optimizer-options.betas=[0.9,0.999]"),
        ("keys", "num-clients=10      Number of clients."),
    ],
)
def test_list(capsys: pytest.CaptureFixture[str], family: str, line: str) -> None:
    assert main(["list", family]) == 0
    assert line in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedpisa 0.")


# ----------------------------------------------------------------------------------------------- progress


def test_live_progress_on_a_terminal(fake: Callable[[str], None], tmp_path: Path) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, color_system=None, width=80, highlight=False)
    with RunConsole(terminal) as console:
        train({"num-server-rounds": 5, "target-accuracy": 0.5}, tmp_path / "run", on_event=console)
    text = stream.getvalue()
    assert "round 5/5" in text
    assert "accuracy 70.5%" in text
    assert "ETA 0" in text
    assert "0.5 reached in round 3" in text.replace("\n", "")


@pytest.mark.parametrize("rounds", [1, 6, 7, 13, 500])
def test_plain_progress_is_short(fake: Callable[[str], None], tmp_path: Path, rounds: int) -> None:
    stream = io.StringIO()
    ticks = iter(range(10**6))
    with RunConsole(Console(file=stream, width=200), clock=lambda: next(ticks)) as console:
        train({"num-server-rounds": rounds}, tmp_path / "run", on_event=console)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 10
    assert lines[-2].startswith(f"round {rounds}/{rounds}  train loss")
