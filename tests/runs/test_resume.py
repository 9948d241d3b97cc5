"""An interrupted run resumes and ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpisa import families
from fedpisa.cli.main import main
from fedpisa.families import data
from fedpisa.runs import runner
from fedpisa.runs.events import Event, RunFinished, RunStarted
from fedpisa.runs.results import Result
from fedpisa.runs.runner import Simulation, run
from fedpisa.storage import checkpoint, files
from fedpisa.storage.checkpoint import Checkpoint
from tests.players import ONE, TWO, Toy, on_toys
from tests.runs.interrupted import (
    SMALL,
    KilledError,
    assert_same,
    checkpoints,
    cut_short,
    forget_digests,
    killed_after,
)

# ------------------------------------------------------------------------------------------ bit by bit


def small(toy: Toy) -> dict[str, object]:
    """Return the keys of a small run on a toy."""
    return {**{key: value for key, value in SMALL.items() if key != "model"}, **toy.keys}


ALGORITHMS = families.available("algorithm")
STATEFUL = ("pisa", "sisa", "fedavg", "scaffold", "fedsgd", "feddyn", "fedpd", "iiadmm")
"""One algorithm for each kind of state."""


@pytest.mark.parametrize(
    ("toy", "algorithm", "engine"),
    [
        (toy, name, engine)
        for toy, name in on_toys(ALGORITHMS, STATEFUL)
        for engine in ("vmap", "loop")[: 1 if toy.turns else 2]
    ],
    ids=str,
)
def test_every_algorithm_goes_on_bit_by_bit(toy: Toy, algorithm: str, engine: str, tmp_path: Path) -> None:
    config = {**small(toy), "algorithm": algorithm, "engine": engine}
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
        {"algorithm": "sisa", "absent": "fresh", "fraction-train": 0.3, "dropout": 0.2},
        {"algorithm": "pisa", "absent": "fresh", "gamma": 0.9, "local-steps": 2},
        {"algorithm": "nsisa", "rules": {"bias": "adam"}, "fraction-train": 0.5},
        {"algorithm": "fedsgd", "optimizer": "adam", "dtype": "float64"},
        {"algorithm": "fedavg", "momentum": 0.9, "fraction-train": 1.0},
        {"algorithm": "sisa", "model": "test_resume_model:normalised"},
        {"algorithm": "scaffold", "model": "test_resume_model:dropping", "exact-diagnostics": True},
        {**TWO.keys, "algorithm": "sisa", "fraction-train": 0.6, "generator-average": 0.5},
        {**TWO.keys, "algorithm": "pisa", "absent": "fresh", "dropout": 0.2, "critic-steps": 2},
        {**TWO.keys, "algorithm": "fedsgd", "optimizer": "adam", "same-noise": True},
        {**TWO.keys, "algorithm": "sisa", "turns-within": True, "absent": "fresh"},
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
    """Runs use no global random state, so checkpoints hold none.

    All draws depend on the seed, the purpose, the client and the round.
    """
    for engine in ("vmap", "loop"):
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
        run({**SMALL, "engine": engine}, tmp_path / engine)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    # A resumed process may have any global random state.
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


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("memory", [0, 10**9])
@pytest.mark.parametrize(
    ("toy", "algorithm"),
    [*((ONE, name) for name in ("pisa", "iiadmm", "scaffold")), (TWO, "iiadmm")],
    ids=str,
)
def test_a_snapshot_stays_as_it_is(toy: Toy, algorithm: str, memory: int, engine: str) -> None:
    """Later rounds change the server's memory of its clients, also in files, but not the snapshot."""
    keys = {"algorithm": algorithm, "fraction-train": 0.5, "state-memory": memory, "engine": engine}
    config = runner.load_config({**small(toy), **keys})
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
    """A checkpoint restores all records of an app's context: arrays, numbers, texts, bytes, lists."""
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
    assert ("starts again at round 0" in caplog.text) == damaged  # this costs time and changes nothing
    assert checkpoints(tmp_path / "run") == [10]
    run({**SMALL, "num-server-rounds": 10}, tmp_path / "long")
    assert_same(tmp_path / "run", tmp_path / "long")


def test_seconds_are_those_of_all_parts(tmp_path: Path) -> None:
    directory = cut_short(SMALL, tmp_path / "cut", 5)
    (file, _) = checkpoint.newest_first(directory / "checkpoint")
    found = checkpoint.read(file)
    metadata = {**found.metadata, "seconds": 1000.0}
    checkpoint.write(file.parent, Checkpoint(found.server_round, found.tensors, metadata))
    assert run(resume=directory).client_tables == []
    info = json.loads((directory / "run.json").read_text())
    assert 1000 < info["seconds"] < 1100
    assert [part["after_round"] for part in info["resumed"]] == [4]


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
    assert ("starts again at round 0" in caplog.text) == both
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
    # Checkpoints of later rounds are removed, because those rounds are repeated.
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
    metadata = {"seconds": 0.1 + 0.2, "config": {"widths": [1, 2], "name": "é"}}
    found = checkpoint.read(checkpoint.write(tmp_path, Checkpoint(3, tensors, metadata)))
    assert (found.server_round, found.metadata) == (3, metadata)
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
    assert "the run had already ended, nothing was done" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_what_may_not_change_is_named(tmp_path: Path) -> None:
    directory = cut_short(SMALL, tmp_path / "cut", 3)
    for change, words in (
        ({"sigma": 9.0}, "sigma was .* and is now 9.0; restore the old value,"),
        (
            {"seed": 1, "num-clients": 6},
            "num-clients was 5 and is now 6, seed was .*; restore the old values,",
        ),
        ({"algorithm": "fedavg"}, "algorithm was "),
    ):
        with pytest.raises(ValueError, match=f"a run cannot resume with another configuration: .*{words}"):
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
    directory = forget_digests(cut_short(SMALL, tmp_path / "cut", 3))
    np.savez(directory / "partition.npz", **{str(client): np.arange(3) for client in range(5)})
    with pytest.raises(ValueError, match="digits is split differently"):
        run(resume=directory)


def test_a_split_of_an_earlier_version_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions had another ``client-dirichlet``: such a run goes on with its stored split."""
    config = {**SMALL, "partitioner": "client-dirichlet", "dirichlet-alpha": 0.5}
    whole = {**config, "partitioner": "client-dirichlet-sequential"}
    run(whole, tmp_path / "whole")
    split = data.partition
    with monkeypatch.context() as earlier:
        earlier.setattr(data, "partition", lambda d, name, **k: split(d, whole["partitioner"], **k))
        directory = cut_short(config, tmp_path / "cut", 4)
    result = run(resume=directory)
    assert result.status == "finished"
    for file in ("model.safetensors", "partition.npz"):
        assert (directory / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert result.config.partitioner == "client-dirichlet"
