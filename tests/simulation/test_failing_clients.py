"""A client app that raises an error loses its reply on every engine, and the run continues."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from fedpisa.clients.client import Client
from fedpisa.simulation.stacked.client_states import StackedStates
from fedpisa.simulation.stacked.grid import VmapGrid
from tests.contracts.test_lost_replies import lose
from tests.players import TOYS, Toy, on_toys

FAILURES = {2: {1}, 4: {0, 3}}


def fail(monkeypatch: pytest.MonkeyPatch, failures: dict[int, set[int]]) -> None:
    """Make the given clients raise an error in the given rounds."""
    run_round, in_blocks = Client.run_round, VmapGrid._in_blocks

    def alone(self: Client, server_round: int, *rest: Any) -> Any:
        if self.client_id in failures.get(server_round, ()):
            raise ArithmeticError("first line\nno step \x1b[31m today")
        return run_round(self, server_round, *rest)

    def together(self: VmapGrid, ids_S: Any, server_round: int, *rest: Any) -> Any:
        if set(ids_S.tolist()) & failures.get(server_round, set()):
            raise ArithmeticError("first line\nno step \x1b[31m today")
        return in_blocks(self, ids_S, server_round, *rest)

    monkeypatch.setattr(Client, "run_round", alone)
    monkeypatch.setattr(VmapGrid, "_in_blocks", together)


@pytest.mark.parametrize(("toy", "name"), on_toys(["sisa", "fedavg", "scaffold"]), ids=str)
def test_it_is_as_if_the_client_had_not_been_asked(
    lab: Any,
    engine: str,
    toy: Toy,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure has the effect of a lost request. It is counted and logged in one line."""
    absent = lose(toy.make(lab.Case(name, {}).build(), engine), "requests", FAILURES).run(5)
    fail(monkeypatch, FAILURES)
    failing = toy.make(lab.Case(name, {}).build(), engine)
    with caplog.at_level(logging.WARNING, "fedpisa"):
        failing.run(5)
    assert lab.relative(failing.params, absent.params) <= 1e-12
    metrics = [finished.train_metrics for finished in failing.history]
    assert [row.get("dropped-replies") for row in metrics] == [None, 1, None, 2, None]
    assert [row.get("replies") for row in metrics] == [None, 5, None, 4, None]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"round {server_round}: client {client} failed: no step \\x1b[31m today"
        for server_round, client in ((2, 1), (4, 0), (4, 3))
    ]


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_all_may_fail_later(lab: Any, toy: Toy, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all clients fail in a later round, the model does not change in that round."""
    fail(monkeypatch, {2: set(range(len(lab.SIZES)))})
    models = [
        finished.arrays["params"].numpy()
        for finished in toy.make(lab.Case("sisa", {}).build(), engine).rounds(3)
    ]
    assert (models[1] == models[0]).all()
    assert not (models[2] == models[1]).all()


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_if_all_fail_from_the_start_the_cause_is_raised(
    lab: Any, toy: Toy, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all clients fail from the first round on, the run ends with the cause of the failure."""
    fail(monkeypatch, {t: set(range(len(lab.SIZES))) for t in range(1, 9)})
    with pytest.raises((RuntimeError, ArithmeticError), match="no step"):
        toy.make(lab.Case("sisa", {}).build(), engine).run(8)
    assert torch.is_grad_enabled()


def test_states_that_cannot_be_written_end_the_run(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends the run, because it is not a failure of a client."""
    write = StackedStates.write

    def full(self: StackedStates, ids_S: Any, states_S: Any, server_round: int) -> None:
        if server_round == 2:
            raise OSError("no space left")
        write(self, ids_S, states_S, server_round)

    monkeypatch.setattr(StackedStates, "write", full)
    with pytest.raises(OSError, match="no space left"):
        lab.make(lab.Case("sisa", {}).build(), "vmap").run(3)
