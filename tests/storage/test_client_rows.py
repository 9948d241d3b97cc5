"""Rows of clients have the same bits in memory and in files, and absent clients take no space."""

from __future__ import annotations

import errno
import gc
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedpisa.bench.memory import in_use
from fedpisa.config.run import RunConfig
from fedpisa.runs.runner import run
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.stacked.client_states import StackedStates
from fedpisa.simulation.stacked.grid import VmapGrid
from fedpisa.storage import checkpoint, client_rows
from fedpisa.storage.checkpoint import Checkpoint
from fedpisa.strategies.base import Cohort, incremental_sum, remember
from fedpisa.tasks.layout import ParamLayout

KEYS = {
    "num-clients": 12,
    "fraction-train": 0.25,
    "num-server-rounds": 6,
    "model": "logistic",
    "batch-size": 16,
    "checkpoint-every": 3,
}
INITIAL = {"dual": torch.zeros(3), "anchor": torch.tensor([1.0, 2.0]), "count": torch.zeros(())}


def written(limit: int, incremental: bool = False) -> StackedStates:
    states = StackedStates(INITIAL, 100, incremental, limit)
    for server_round, clients in ((1, [3, 70]), (2, [70, 99])):
        ids = torch.tensor(clients)
        rows = {name: value + server_round for name, value in states.read(ids).items()}
        states.write(ids, rows, server_round)
    return states


def on_disk(states: StackedStates) -> set[str]:
    return {name for name, stack in states._stacks.items() if client_rows.is_on_disk(stack)}


@pytest.mark.parametrize("incremental", [False, True])
def test_in_files_everything_is_the_same(incremental: bool) -> None:
    here, there = written(client_rows.UNLIMITED, incremental), written(0, incremental)
    assert on_disk(here) == set()
    assert on_disk(there) == {*INITIAL}
    everybody = torch.arange(100)
    for name, rows in here.read(everybody).items():
        assert torch.equal(rows, there.read(everybody)[name])
        weights = torch.linspace(0, 1, 100, dtype=torch.float64)
        torch.testing.assert_close(here.weighted_sum(name, weights), there.weighted_sum(name, weights))
    assert here.read(torch.tensor([5, 70]))["anchor"].tolist() == [[1.0, 2.0], [4.0, 5.0]]
    kept = there.snapshot()
    assert all(torch.equal(value, kept[name]) for name, value in here.snapshot().items())
    for limit in (0, client_rows.UNLIMITED):
        again = StackedStates.restored(kept, 100, limit).snapshot()
        assert kept.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in kept.items())
    if incremental:
        for states in (here, there):
            # The server confirms only round 1 of client 70, and no round of client 99.
            states.roll_back_unconfirmed(torch.tensor([70, 99]), torch.tensor([1, 0]))
        assert there.read(torch.tensor([70, 99]))["anchor"].tolist() == [[2.0, 3.0], [1.0, 2.0]]
        assert all(torch.equal(here.read(everybody)[n], there.read(everybody)[n]) for n in INITIAL)


def test_only_what_is_large_goes_into_a_file() -> None:
    """Large states go to a file if all states exceed the limit; small ones stay in memory."""
    states = StackedStates({"dual": torch.zeros(100), "count": torch.zeros(())}, 50, limit=10_000)
    assert on_disk(states) == {"dual"}
    assert on_disk(StackedStates({"dual": torch.zeros(100)}, 50, limit=20_000)) == set()
    assert on_disk(StackedStates({"dual": torch.zeros(100)}, 50, incremental=True, limit=20_000)) == {"dual"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell")
def test_a_client_that_never_took_part_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte of states, of which two rows are written, takes neither disk space nor memory.

    The file has no name.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    length, clients = 2**18, 10**6
    before = in_use(os.getpid()).resident
    blocks = os.statvfs(tmp_path).f_bfree
    states = StackedStates({"dual": torch.zeros(length)}, clients, limit=2**30)
    ids = torch.tensor([5, 999_999])
    assert not states.read(ids)["dual"].any()
    states.write(ids, {"dual": torch.ones(2, length)}, 1)
    states.read(torch.arange(1000))
    assert states.weighted_sum("dual", torch.ones(clients, dtype=torch.float64))[0] == 2
    assert states.snapshot()["rows/dual"].shape == (2, length)
    assert list(tmp_path.iterdir()) == []
    assert (blocks - os.statvfs(tmp_path).f_bfree) * os.statvfs(tmp_path).f_frsize < 2**30
    assert in_use(os.getpid()).resident - before < 1.5 * 2**30  # the thousand rows read above


def test_memory_is_let_go_and_the_rows_stay() -> None:
    stack = client_rows.zeros((1000, 2**16), torch.ones(()), limit=0)
    before = in_use(os.getpid()).resident
    for ids in torch.arange(1000).split(50):
        client_rows.write(stack, ids, ids[:, None].float().expand(-1, 2**16))
    assert in_use(os.getpid()).resident - before < 200e6  # of 262 MB
    assert client_rows.read(stack, torch.tensor([999, 3]))[:, 7].tolist() == [999.0, 3.0]


@pytest.fixture(params=["system's cache", "past it"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the system's cache or direct I/O for writing."""
    monkeypatch.setattr(
        "fedpisa.storage.row_file.CACHED_SHARE", math.inf if request.param == "system's cache" else 0
    )
    return str(request.param)


@pytest.mark.parametrize("length", [5, 2**15 + 1])
@pytest.mark.parametrize("limit", [0, client_rows.UNLIMITED])
@pytest.mark.usefixtures("way")
def test_rows_are_written_read_and_summed(length: int, limit: int) -> None:
    """Rows can be written, read and summed, in memory and in a file, short and long."""
    generator = torch.Generator().manual_seed(0)
    stack, wanted = client_rows.zeros((9, length), torch.ones(()), limit), torch.zeros(9, length)
    for ids in (torch.tensor([8, 0, 3]), torch.tensor([3, 7]), torch.tensor([0, 2, 5, 8])):
        rows = torch.randn(len(ids), length, generator=generator)
        wanted[ids] = rows
        assert client_rows.write(stack, ids, rows.T.contiguous().T) is stack
    assert torch.equal(client_rows.read(stack, torch.arange(9)), wanted)
    ids, weights = torch.tensor([7, 1, 0]), torch.rand(3, generator=generator)
    assert torch.equal(client_rows.read(stack, ids), wanted[ids])
    total = client_rows.sum_of_rows(weights, stack, ids)
    torch.testing.assert_close(total, weights.double() @ wanted[ids].double(), rtol=1e-14, atol=1e-14)
    assert torch.equal(total, client_rows.sum_of_rows(weights, wanted, ids))
    stack = client_rows.grown(stack, 11, limit)
    client_rows.write(stack, torch.tensor([10]), torch.ones(1, length))
    grown = torch.cat([wanted, torch.zeros(1, length), torch.ones(1, length)])
    assert torch.equal(client_rows.read(stack, torch.arange(11)), grown)


@pytest.mark.usefixtures("way")
def test_rows_are_right_at_any_time() -> None:
    """Rows are right in 300 rounds of random clients, while some are still being written."""
    generator = torch.Generator().manual_seed(1)
    stack, wanted = client_rows.zeros((40, 5000), torch.ones(()), limit=0), torch.zeros(40, 5000)
    for _ in range(300):
        ids = torch.randperm(40, generator=generator)[:7].sort().values
        assert torch.equal(client_rows.read(stack, ids), wanted[ids])
        wanted[ids] = rows = torch.randn(7, 5000, generator=generator)
        client_rows.write(stack, ids, rows)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system's cache can be passed by")
@pytest.mark.parametrize("refused", ["nothing", "opening", "writing"])
def test_what_outgrows_the_memory_goes_past_the_cache(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct I/O writes whole pages; without support for it, rows go through the cache."""
    direct, written = set(), []
    really_open, really_write = os.open, os.pwrite
    monkeypatch.setattr("fedpisa.storage.row_file.CACHED_SHARE", 0)

    def opened(name: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT and refused == "opening":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = really_open(name, flags & ~os.O_DIRECT, *mode)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def write(descriptor: int, row: Any, begin: int) -> int:
        if descriptor in direct and refused == "writing":
            raise OSError(errno.EINVAL, "Invalid argument")
        written.append((descriptor, begin, len(row)))
        return really_write(descriptor, row, begin)

    monkeypatch.setattr("os.open", opened)
    monkeypatch.setattr("os.pwrite", write)
    ids, rows = torch.tensor([4, 90, 91]), torch.rand(3, 5000)
    stack = client_rows.write(client_rows.zeros((100, 5000), torch.ones(()), limit=0), ids, rows)
    client_rows.write(stack, torch.tensor([1]), rows[:1])
    assert torch.equal(client_rows.read(stack, ids), rows)
    assert isinstance(stack, client_rows.OnDisk)
    used = stack.file._writing
    assert (used in direct) == (refused == "nothing")
    pitch = 20480 if refused == "nothing" else 20000
    assert (used, 0, 3 * pitch) in written


def test_new_clients_rows_are_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """New rows are contiguous for any client numbers; a rewritten row keeps its place."""
    written, real = [], os.pwrite

    def write(number: int, row: Any, begin: int) -> int:
        written.append((number, begin, len(row)))
        return real(number, row, begin)

    monkeypatch.setattr("os.pwrite", write)
    stack = client_rows.zeros((10**6, 3), torch.ones(()), limit=0)
    for ids in ([5, 999_999], [5, 6, 7, 500_000], [8], [8]):
        client_rows.write(stack, torch.tensor(ids), torch.rand(len(ids), 3))
    # The last row may not be written yet, and stacks of other tests may write too.
    assert isinstance(stack, client_rows.OnDisk)
    own = [piece for number, *piece in written if number == stack.file._writing]
    assert own[:4] == [[0, 24], [0, 12], [24, 36], [60, 12]]
    assert own[4:] in ([], [[60, 12]])


def test_a_stack_in_a_file_has_no_numbers() -> None:
    """An operation that needs values raises an error instead of returning zeros."""
    stack = client_rows.zeros((3, 4), torch.ones(()), limit=0)
    assert (stack.shape, len(stack), stack.dtype, stack.dim()) == ((3, 4), 3, torch.float32, 2)
    for use in (
        lambda: stack[0],
        lambda: stack + 1,
        lambda: torch.ones(3) @ stack,
        lambda: stack.sum(),
        lambda: stack.numpy(),
        lambda: stack.tolist(),
        lambda: torch.equal(stack, torch.zeros(3, 4)),
        lambda: torch.ones(3, 4).copy_(stack),
        lambda: stack.__setitem__(0, torch.ones(4)),
        lambda: stack.__setitem__(torch.tensor([0]), torch.ones(1, 4)),
        lambda: list(stack),
        lambda: stack.unbind(),
        lambda: stack.T,
        lambda: stack.clone(),
    ):
        with pytest.raises(ValueError, match=r"in a file: use client_rows\.read and write"):
            use()


@pytest.mark.parametrize("room", [0, 7])
def test_a_full_disk_is_an_error_and_no_signal(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at once or within a row; the next call raises the error."""
    left = room

    def full(number: int, row: Any, begin: int) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, left = left, 0
        return written

    monkeypatch.setattr("os.pwrite", full)
    ids, row = torch.tensor([1]), torch.ones(1, 4)

    def write(stack: Tensor) -> None:
        client_rows.write(stack, ids, row)

    def read(stack: Tensor) -> None:
        for _ in range(1000):
            client_rows.read(stack, ids)
            time.sleep(0.01)

    for use in (write, read):
        left = room
        stack = client_rows.write(client_rows.zeros((3, 4), torch.ones(()), limit=0), ids, row)
        with pytest.raises(
            OSError, match=r"\(No space left.*\): set TMPDIR to a folder with more room"
        ) as caught:
            use(stack)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == tempfile.gettempdir()


def test_rows_longer_than_a_call_of_the_systems_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are whole although a call transfers seven bytes, as Linux transfers at most 2 GB."""
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr("os.pwrite", lambda number, row, begin: write(number, row[:7], begin))
    monkeypatch.setattr("os.preadv", lambda number, rows, begin: read(number, [rows[0][:7]], begin))
    stack, ids = client_rows.zeros((3, 4), torch.ones(()), limit=0), torch.tensor([2, 0])
    rows = torch.arange(8.0).view(2, 4)
    client_rows.write(client_rows.write(stack, ids, rows), torch.tensor([1]), rows[:1])
    assert torch.equal(client_rows.read(stack, ids), rows)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell")
@pytest.mark.usefixtures("way")
def test_a_file_is_closed_when_its_stack_is_gone() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    held = [client_rows.zeros((3, 5000), torch.ones(()), limit=0) for _ in range(5)]
    assert all(map(client_rows.is_on_disk, held))
    for stack in held:
        client_rows.write(stack, torch.tensor([1]), torch.ones(1, 5000))
    assert len(os.listdir("/proc/self/fd")) > before
    del stack
    held.clear()
    gc.collect()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_moving_sum_is_the_sum() -> None:
    """The incremental sum equals the sum of all rows after every round.

    A round of all clients in between drops the sum.
    """
    layout, generator = ParamLayout((), (), ()), torch.Generator().manual_seed(0)
    server: dict[str, Tensor] = {}
    z_NP, weight_N = torch.zeros(9, 5), torch.zeros(9, dtype=torch.float64)
    for server_round in range(1, 300):
        ids = torch.randperm(9, generator=generator)[: 3 if server_round != 40 else 9].sort().values
        rows = 10 ** float(server_round % 7) * torch.randn(len(ids), 5, generator=generator)
        weights = torch.rand(len(ids), generator=generator, dtype=torch.float64)
        cohort = Cohort(ids, weights, server_round, 9, layout, memory_limit=0 if server_round % 2 else 10**9)
        server["sum"] = incremental_sum(server, rows, weights, "z", weight_N, cohort)
        if server_round == 40:
            server.pop("sum")
        server.update(remember(server, {"z": rows}, cohort))
        z_NP[ids], weight_N[ids] = rows, weights
        if "sum" in server:
            scale = 1e6 * torch.finfo(torch.float64).eps * server_round
            torch.testing.assert_close(server["sum"], weight_N @ z_NP.double(), rtol=1e-12, atol=10 * scale)


def test_a_run_goes_on_with_less_memory() -> None:
    """The server's rows move into a file, even if the interrupted run had them in memory."""
    before, after = (
        Simulation(RunConfig.from_mapping({**KEYS, "algorithm": "iiadmm", "state-memory": memory}))
        for memory in (10**9, 0)
    )
    rows = before.rows()
    next(rows), next(rows)
    here = before.strategy.server
    after.strategy.restore(before.strategy.snapshot())
    there = after.strategy.server
    assert here is not None
    assert there is not None
    for name in ("z", "dual"):
        assert client_rows.is_on_disk(there[name])
        assert torch.equal(client_rows.read(there[name], torch.arange(12)), here[name])


@pytest.mark.parametrize("algorithm", ["sisa", "scaffold", "iiadmm", "scaffnew", "fedavg"])
def test_a_run_is_the_same_and_goes_on(algorithm: str, tmp_path: Path) -> None:
    """Runs in memory, in files and resumed after three rounds have the same bits."""
    whole = run({**KEYS, "algorithm": algorithm}, tmp_path / "memory")
    files = run({**KEYS, "algorithm": algorithm, "state-memory": 0}, tmp_path / "files")
    run({**KEYS, "algorithm": algorithm, "state-memory": 0, "num-server-rounds": 3}, tmp_path / "short")
    again = run({"num-server-rounds": 6, "state-memory": "1 MB"}, resume=tmp_path / "short")
    for name, value in whole.parameters.items():
        assert (files.parameters[name] == value).all()
        assert (again.parameters[name] == value).all()


def test_a_checkpoint_holds_those_who_took_part(tmp_path: Path) -> None:
    """A checkpoint of rows in files holds only sampled clients, and is smaller than one of rows in memory."""
    sizes = []
    for memory in (0, 10**9):
        simulation = Simulation(RunConfig.from_mapping({**KEYS, "num-clients": 60, "state-memory": memory}))
        grid, rows = simulation.grid, simulation.rows()
        next(rows), next(rows)
        assert isinstance(grid, VmapGrid)
        assert grid.states is not None
        assert simulation.strategy.server is not None
        assert client_rows.is_on_disk(simulation.strategy.server["z"]) == (memory == 0)
        assert bool(on_disk(grid.states)) == (memory == 0)
        kept: Any = simulation.snapshot()
        file = checkpoint.write(tmp_path / str(memory), Checkpoint(1, kept, {}))
        sizes.append(file.stat().st_size)
    vector, sampled = 4 * 650, 15
    assert sizes[0] < (3 * sampled + 3 + 2) * vector + 10_000 < sizes[1]


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 mb", 1_500_000), (7, 7), ("7", 7), ("0", 0), ("10 B", 10)]
)
def test_amounts_of_memory(text: str | int, size: int) -> None:
    assert RunConfig.from_mapping({"state-memory": text}).state_memory == size


@pytest.mark.parametrize("text", ["much", "-1", "2 GiB", "", -1, 2.5e400, True])
def test_what_is_no_amount_of_memory_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"key 'state-memory' = .*: must be a number of bytes"):
        RunConfig.from_mapping({"state-memory": text})
