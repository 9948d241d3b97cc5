"""A run that was cut short goes on, and ends in the bytes of one that was not."""

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

import numpy as np
import pytest
import torch

from fedpisa import families
from fedpisa.cli.main import main
from fedpisa.runs import runner
from fedpisa.runs.events import Event, RoundFinished, RunFinished, RunStarted, Stopping
from fedpisa.runs.process import own_process
from fedpisa.runs.results import Result, load_result
from fedpisa.runs.runner import Simulation, run
from fedpisa.runs.signals import Interrupted, heed_once, postponed
from fedpisa.storage import checkpoint, files
from fedpisa.storage.checkpoint import Checkpoint

SMALL: Mapping[str, object] = {
    "model": "logistic",
    "num-clients": 5,
    "fraction-train": 0.5,
    "num-server-rounds": 7,
    "checkpoint-every": 2,
    "eval-every": 2,
}
STATEFUL: list[dict[str, object]] = [
    {"algorithm": "sisa"},
    {"algorithm": "scaffold", "local-steps": 3},
    {"algorithm": "fedsgd", "optimizer": "adam"},
]


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_after(server_round: int) -> Callable[[Event], None]:
    """Return a listener that ends the run once a round's row is on the disk."""

    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.row["round"] == server_round:
            raise KilledError

    return listen


def cut_short(config: Mapping[str, object], out: Path, server_round: int) -> Path:
    with pytest.raises(KilledError):
        run(config, out, on_event=killed_after(server_round))
    return out


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return the rows without what is measured by the clock; every line must be whole."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in kept]


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("model.safetensors", "partition.npz", "config.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert load_result(one).status == load_result(other).status == "finished"


def checkpoints(directory: Path) -> list[int]:
    """Return the rounds of the checkpoints that are there, the last first."""
    files = checkpoint.newest_first(directory / "checkpoint")
    return [checkpoint.read(file).server_round for file in files]


# ------------------------------------------------------------------------------------------ bit by bit


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", list(families.available("algorithm")))
def test_every_algorithm_goes_on_bit_by_bit(algorithm: str, engine: str, tmp_path: Path) -> None:
    config = {**SMALL, "algorithm": algorithm, "engine": engine}
    run(config, tmp_path / "whole")
    rng = random.Random(f"{algorithm} {engine}")
    directory = cut_short(config, tmp_path / "cut", rng.randrange(0, 7))
    for _ in range(2):
        try:
            run(resume=directory, on_event=killed_after(rng.randrange(3, 7)))
        except KilledError:
            continue
    run(resume=directory)
    assert_same(directory, tmp_path / "whole")


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(
    "config",
    [
        {"algorithm": "pisa", "preconditioner": "adam", "local-steps": 2},
        {"algorithm": "sisa", "absent": "drop", "fraction-train": 0.3},
        {"algorithm": "fedsgd", "optimizer": "adam", "dtype": "float64"},
        {"algorithm": "fedavg", "momentum": 0.9, "fraction-train": 1.0},
        {"algorithm": "sisa", "model": "test_resume_model:normalised"},
        {"algorithm": "scaffold", "model": "test_resume_model:dropping", "exact-diagnostics": True},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_keys_that_keep_more(
    config: Mapping[str, object], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_resume_model.py").write_text(
        "from torch import nn\n"
        "def normalised(shape, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_outputs))\n"
        "def dropping(shape, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, num_outputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {**SMALL, "engine": engine, **config}
    run(config, tmp_path / "whole")
    directory = cut_short(config, tmp_path / "cut", 5)
    run(resume=directory)
    assert_same(directory, tmp_path / "whole")


def test_no_global_random_state_is_used(tmp_path: Path) -> None:
    """A checkpoint holds no random state, because there is none: seed, purpose, client and round are all."""
    for engine in ("vmap", "loop"):
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
        run({**SMALL, "engine": engine}, tmp_path / engine)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    # And a resumed process may have any.
    config = {**SMALL, "algorithm": "scaffold"}
    run(config, tmp_path / "whole")
    directory = cut_short(config, tmp_path / "cut", 3)
    torch.manual_seed(12345)
    run(resume=directory)
    assert_same(directory, tmp_path / "whole")


def test_a_snapshot_holds_only_clients_that_took_part() -> None:
    simulation = Simulation(runner.load_config({**SMALL, "num-clients": 10, "fraction-train": 0.2}))
    for _ in zip(range(2), simulation.rows(), strict=False):
        pass
    kept = simulation.snapshot()
    assert kept["clients/rows/dual"].shape == (2, 650)
    assert len(kept["clients/clients"]) == 2


@pytest.mark.parametrize("algorithm", ["pisa", "iiadmm", "scaffold"])
def test_a_snapshot_stays_as_it_is(algorithm: str) -> None:
    """Rounds that follow write into what the server remembers of its clients; nothing that was kept changes."""
    config = runner.load_config({**SMALL, "algorithm": algorithm, "fraction-train": 0.5})
    simulation = Simulation(config)
    rows = simulation.rows()
    for _ in range(3):
        next(rows)
    kept = simulation.snapshot()
    copies = {name: value.clone() for name, value in kept.items()}
    list(rows)
    for _ in range(2):
        again = Simulation(config)
        again.restore(2, kept)
        list(again.rows())
        for name, value in simulation.parameters().items():
            np.testing.assert_array_equal(again.parameters()[name], value)
    assert all(torch.equal(value, copies[name]) for name, value in kept.items())


def test_any_client_app_is_taken_up_again() -> None:
    """Whatever records an app keeps in its context come back: arrays, numbers, texts, bytes, lists."""
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
    from flwr.clientapp import ClientApp

    from fedpisa.simulation.loop import LoopGrid

    grid = LoopGrid(ClientApp(), 4)
    state = grid.context(2).state
    state["a/b"] = ArrayRecord([np.arange(3, dtype=np.int16), np.zeros((0, 2)), np.array(1.5)])
    state["numbers"] = MetricRecord({"x": 0.1, "n": 2**62, "many": [1.0, float("inf")]})
    state["words"] = ConfigRecord({"on": True, "name": "é", "raw": b"\x00\xff", "none": [], "flags": [True]})
    grid.context(0)
    kept = grid.snapshot()
    other = LoopGrid(ClientApp(), 4)
    other.context(3)
    other.restore(kept)
    assert list(other.contexts) == [2, 0]
    assert len(other.context(0).state) == 0
    again = other.context(2).state
    assert list(again) == list(state)
    assert dict(again["numbers"]) == dict(state["numbers"])
    assert dict(again["words"]) == dict(state["words"])
    for name, array in state["a/b"].items():
        assert again["a/b"][name].numpy().dtype == array.numpy().dtype
        np.testing.assert_array_equal(again["a/b"][name].numpy(), array.numpy())


def test_more_rounds_equal_a_longer_run(tmp_path: Path) -> None:
    run({**SMALL, "num-server-rounds": 10}, tmp_path / "long")
    run({**SMALL, "num-server-rounds": 4}, tmp_path / "short")
    result = run({"num-server-rounds": 10}, resume=tmp_path / "short")
    assert [row["round"] for row in result.rows] == list(range(11))
    assert_same(tmp_path / "short", tmp_path / "long")


@pytest.mark.parametrize("damaged", [False, True])
def test_an_ended_run_keeps_one_checkpoint_and_goes_on_from_it(
    damaged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {**SMALL, "num-server-rounds": 6}
    cut_short(config, tmp_path / "run", 5)
    assert checkpoints(tmp_path / "run") == [4, 2]
    run(resume=tmp_path / "run")
    assert checkpoints(tmp_path / "run") == [6]
    if damaged:
        (file,) = (tmp_path / "run" / "checkpoint").iterdir()
        file.write_bytes(b"")
    run({"num-server-rounds": 10}, resume=tmp_path / "run")
    assert ("begins again at round 0" in caplog.text) == damaged  # which costs time, and changes nothing
    assert checkpoints(tmp_path / "run") == [10]
    run({**SMALL, "num-server-rounds": 10}, tmp_path / "long")
    assert_same(tmp_path / "run", tmp_path / "long")


def test_seconds_are_those_of_all_parts(tmp_path: Path) -> None:
    directory = cut_short(SMALL, tmp_path / "cut", 5)
    (file, _) = checkpoint.newest_first(directory / "checkpoint")
    found = checkpoint.read(file)
    facts = {**found.facts, "seconds": 1000.0}
    checkpoint.write(file.parent, Checkpoint(found.server_round, found.tensors, facts))
    assert run(resume=directory).client_tables == []
    about = json.loads((directory / "run.json").read_text())
    assert 1000 < about["seconds"] < 1100
    assert [part["after_round"] for part in about["resumed"]] == [4]


# -------------------------------------------------------------------------------------- damaged checkpoints

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "within the header": lambda content: content[:40],
    "half": lambda content: content[: len(content) // 2],
    "all but the last byte": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "a bit in the length": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit in the header": lambda content: content[:60] + bytes([content[60] ^ 4]) + content[61:],
    "a bit in the numbers": lambda content: content[:-9] + bytes([content[-9] ^ 16]) + content[-8:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("both", [False, True], ids=["the last", "both"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, both: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(SMALL, tmp_path / "whole")
    directory = cut_short(SMALL, tmp_path / "cut", 5)
    files = checkpoint.newest_first(directory / "checkpoint")
    assert checkpoints(directory) == [4, 2]
    for file in files if both else files[:1]:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    started: list[int | None] = []
    run(resume=directory, on_event=lambda e: started.append(e.resumed) if isinstance(e, RunStarted) else None)
    assert started == [None if both else 2]
    assert f"{files[0].name} is damaged" in caplog.text
    assert ("begins again at round 0" in caplog.text) == both
    assert_same(directory, tmp_path / "whole")
    assert checkpoints(directory) == [7]


def test_metrics_that_lost_lines_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(SMALL, tmp_path / "whole")
    directory = cut_short(SMALL, tmp_path / "cut", 5)
    lines = (directory / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_bytes(b"".join(lines[:4]) + b'{"half')
    run(resume=directory)
    assert "lacks rounds that" in caplog.text
    assert_same(directory, tmp_path / "whole")


@pytest.mark.parametrize("last", ["config.toml", "partition.npz", "metrics.jsonl"])
def test_a_run_that_ended_while_its_directory_was_made_begins_again(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(SMALL, tmp_path / "whole")

    def replace_file(file: Path, content: bytes) -> None:
        if file.name == "metrics.jsonl" and last == "partition.npz":
            raise KilledError
        if file.name == "partition.npz" and last == "config.toml":
            raise KilledError
        if file.name == "run.json" and last == "metrics.jsonl":
            raise KilledError
        files.replace_file(file, content)

    with monkeypatch.context() as patch:
        patch.setattr("fedpisa.runs.results.replace_file", replace_file)
        with pytest.raises(KilledError):
            run(SMALL, tmp_path / "cut")
    assert not (tmp_path / "cut" / "run.json").exists()
    run(resume=tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_a_run_that_ended_before_it_had_a_configuration_may_be_begun(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.toml.partial").write_bytes(b"num")
    assert run({**SMALL, "num-server-rounds": 1}, tmp_path / "run").status == "finished"


def test_the_last_two_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    for number in (2, 4, 6):
        checkpoint.write(tmp_path, Checkpoint(number, {"w": torch.ones(2)}, {}))
        (tmp_path / f".round-{number}.partial").touch()
    assert [file.name.split("-")[1] for file in checkpoint.newest_first(tmp_path)] == ["6", "4"]
    # Those of rounds that are made again go, whichever they were.
    checkpoint.write(tmp_path, Checkpoint(5, {"w": torch.zeros(2)}, {}))
    assert [file.name.split("-")[1] for file in checkpoint.newest_first(tmp_path)] == ["5", "4"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_says_its_tensors_in_order_and_type(tmp_path: Path) -> None:
    tensors = {
        "z": torch.arange(3),
        "a": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0),
        "view": torch.arange(6.0).view(2, 3).T,
        "flag": torch.tensor([True]),
    }
    tensors["same"] = tensors["z"]
    facts = {"seconds": 0.1 + 0.2, "config": {"widths": [1, 2], "name": "é"}}
    found = checkpoint.read(checkpoint.write(tmp_path, Checkpoint(3, tensors, facts)))
    assert (found.server_round, found.facts) == (3, facts)
    assert list(found.tensors) == list(tensors)
    for name, value in tensors.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


# ---------------------------------------------------------------------------------------- what may change


def test_a_finished_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(SMALL, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    events: list[Event] = []
    result = run(resume=tmp_path / "run", on_event=events.append)
    assert isinstance(result, Result)
    assert [type(event) for event in events] == [RunFinished]
    assert main(["run", "--resume", str(tmp_path / "run")]) == 0
    assert "it had ended before, nothing was done" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_what_may_not_change_is_named(tmp_path: Path) -> None:
    directory = cut_short(SMALL, tmp_path / "cut", 3)
    for change, name in (
        ({"sigma": 9.0}, "sigma"),
        ({"seed": 1, "num-clients": 6}, "num-clients, seed"),
        ({"algorithm": "fedavg"}, "algorithm"),
    ):
        with pytest.raises(ValueError, match=f"^{name}.* cannot change so while a run goes on"):
            run(change, resume=directory)
    with pytest.raises(ValueError, match="num-server-rounds was 7 and is now 5"):
        run({"num-server-rounds": 5}, resume=directory)
    with pytest.raises(ValueError, match="unknown key"):
        run({"sigmaa": 9.0}, resume=directory)
    with pytest.raises(ValueError, match="exclude each other"):
        run(out=tmp_path / "x", resume=directory)
    with pytest.raises(ValueError, match="not a run's directory"):
        run(resume=tmp_path)
    run({"checkpoint-every": 1}, resume=directory)
    assert checkpoints(directory) == [7]


def test_a_configuration_edited_under_a_run_is_seen(tmp_path: Path) -> None:
    directory = cut_short(SMALL, tmp_path / "cut", 3)
    file = directory / "config.toml"
    file.write_text(file.read_text().replace("num-clients = 5", "num-clients = 4"))
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="num-clients was 5 and is now 4"):
        run(resume=directory)
    assert (directory / "metrics.jsonl").read_bytes() == before


def test_another_split_of_the_data_is_seen(tmp_path: Path) -> None:
    directory = cut_short(SMALL, tmp_path / "cut", 3)
    np.savez(directory / "partition.npz", **{str(client): np.arange(3) for client in range(5)})
    with pytest.raises(ValueError, match="digits is split otherwise"):
        run(resume=directory)


# -------------------------------------------------------------------------------------------- signals


def signalled(signum: int, server_round: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.row["round"] == server_round:
            signal.raise_signal(signum)

    return listen


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("every", [0, 5])
@own_process()
def test_a_signal_ends_the_run_after_the_round(signum: int, every: int, tmp_path: Path) -> None:
    config = {**SMALL, "checkpoint-every": every}
    run(config, tmp_path / "whole")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        run(config, tmp_path / "cut", on_event=signalled(signum, 2))
    assert caught.value.signum == signum
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
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
    """Python looks for signals one after the other, and complains of one whose handler went in the meantime."""
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
        heed_once()
        with postponed() as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
        return stop.signum or 0

    assert ended(in_child(work)) == signal.SIGTERM


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    assert "ending this round and writing a checkpoint; once more ends at once" in err
    assert err.splitlines()[-1].endswith(f"go on with: fedpisa run --resume {directory}")
    assert main(["run", "--resume", str(directory)]) == 0
    assert "going on after round 3" in capfd.readouterr().err


# ------------------------------------------------------------------------------------- disks and processes


def test_two_processes_on_one_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = cut_short(SMALL, tmp_path / "run", 3)
    with files.held(directory):
        assert main(["run", "--resume", str(directory)]) == 2
    assert capsys.readouterr().err == (
        f"error: {directory} is being written by another process: wait for it, or end it\n"
    )
    with files.held(tmp_path / "new"), pytest.raises(files.InUseError):
        run(SMALL, tmp_path / "new")
    child = os.fork()
    if child == 0:  # a process that holds the directory and is killed
        with files.held(directory):
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
    """Every kind of file in turn is the one for which there is no room."""
    run(SMALL, tmp_path / "whole")
    directory, real, full = tmp_path / "cut", Path.open, False

    def listen(file: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        nonlocal full
        writing = file.is_relative_to(directory) and mode in ("w", "wb", "a")
        if writing and name in file.name and lines_of(directory / "metrics.jsonl") >= 4:
            full = True
        if full and writing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a name, as from a write
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
    """The system itself refuses the bytes of a checkpoint."""
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
    """Begin a run or go on with it in a forked process: importing everything anew would take seconds."""
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
    {"algorithm": "pisa", "engine": "loop", "preconditioner": "adam", "checkpoint-every": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("config", KILLED, ids=lambda config: f"{config['algorithm']}-{config['engine']}")
def test_killed_at_random_moments(
    config: Mapping[str, object], tmp_path: Path, in_child: Any, ended: Any
) -> None:
    """Five times ``kill -9`` of each run, wherever it just is: building, training, writing a checkpoint.

    And a sixth time in the middle, so that one at least goes on from a checkpoint and not from the beginning.
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
        if code == 0:  # it was quicker: kill another one
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
