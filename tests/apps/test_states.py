"""A client's state at the start of a round, and its copy on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedpisa.apps.states import Owner, StateFile, read_state
from fedpisa.flower.client_app import EARLIER_ROUND, EARLIER_STATE, STATE, STATE_OF
from fedpisa.flower.compat import encode, to_record
from fedpisa.flower.messages import CONFIG, CONFIRMED_ROUND, SERVER_ROUND, STATE_LOST
from fedpisa.storage.tensor_file import DamagedFileError
from tests.players import Toy, on_toys

OWNER = Owner("7", "sisa", "abc", 0)


def kept(server_round: int = 3, earlier: int = 2) -> RecordDict:
    state = RecordDict()
    state[STATE] = to_record({"dual": torch.arange(4.0), "count": torch.tensor(2.0)})
    state[EARLIER_STATE] = to_record({"dual": -torch.arange(4.0), "count": torch.tensor(1.0)})
    state[STATE_OF] = ConfigRecord({SERVER_ROUND: server_round, EARLIER_ROUND: earlier})
    return state


def numbers(state: RecordDict) -> dict[str, Any]:
    arrays = {
        f"{name}/{key}": array.numpy().tolist()
        for name in (STATE, EARLIER_STATE)
        for key, array in state.array_records[name].items()
    }
    return arrays | dict(state.config_records[STATE_OF])


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "node", OWNER)
    state = RecordDict()
    assert not file.read_into(state)
    assert not state
    file.write(kept())
    file.write(kept(5, 3))
    assert file.read_into(state)
    assert numbers(state) == numbers(kept(5, 3))
    assert [path.name for path in file.path.parent.iterdir()] == ["sisa.safetensors"]
    assert file.path.parent.stat().st_mode & 0o077 == 0


def test_every_truncation_and_every_changed_byte_is_seen(tmp_path: Path) -> None:
    file = StateFile(tmp_path, OWNER)
    file.write(kept())
    content = file.path.read_bytes()
    for length in range(len(content)):
        file.path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            file.read_into(RecordDict())
    unseen = []
    for position in range(len(content)):
        file.path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        state = RecordDict()
        try:
            file.read_into(state)
        except ValueError:
            continue
        if numbers(state) != numbers(kept()):
            unseen.append(position)
    assert not unseen


def test_a_damaged_file_is_said_and_the_supernodes_copy_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    file = StateFile(tmp_path, OWNER)
    file.write(kept(5, 3))
    os.truncate(file.path, 100)
    state = kept()
    read_state(file, state)
    assert numbers(state) == numbers(kept())
    assert "damaged: the SuperNode's copy is used" in caplog.text
    empty = RecordDict()
    read_state(file, empty)
    assert not empty
    assert "the state is lost" in caplog.text


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Owner("8", "sisa", "abc", 0), "run 7"),
        (Owner("7", "sisa", "xyz", 0), "layout abc"),
        (Owner("7", "sisa", "abc", 1), "client 0"),
    ],
)
def test_anothers_state_is_refused(tmp_path: Path, other: Owner, word: str) -> None:
    StateFile(tmp_path, OWNER).write(kept())
    file = StateFile(tmp_path, other)
    file.path.parent.mkdir(exist_ok=True)
    StateFile(tmp_path, OWNER).path.replace(file.path)
    with pytest.raises(ValueError, match=f"is the state of {word}, not .*state-dir"):
        file.read_into(RecordDict())


def test_runs_and_algorithms_do_not_meet(tmp_path: Path) -> None:
    StateFile(tmp_path, OWNER).write(kept())
    assert not StateFile(tmp_path, Owner("8", "sisa", "abc", 0)).read_into(RecordDict())
    assert not StateFile(tmp_path, Owner("7", "pisa", "abc", 0)).read_into(RecordDict())


@pytest.mark.parametrize(("toy", "name"), on_toys(["sisa", "scaffold", "iiadmm", "fedavg"]), ids=str)
def test_a_repeated_message_gets_the_same_reply(lab: Any, toy: Toy, name: str) -> None:
    federation = toy.make(lab.Case(name, {}).build(), "loop")
    deliver, twice = federation.grid.exchange, []

    def exchange(requests: Any) -> Any:
        first, second = list(deliver(list(requests))), list(deliver(list(requests)))
        twice.extend(zip(first, second, strict=True))
        return second

    federation.grid.exchange = exchange
    repeated = federation.run(4)
    assert len(twice) == 4 * federation.data.num_clients
    for first, second in twice:
        assert encode(first.content) == encode(second.content)
    once = toy.make(lab.Case(name, {}).build(), "loop").run(4)
    assert torch.equal(repeated.params, once.params)


def forget(federation: Any, client: int, at: int) -> list[Message]:
    """Delete a client's state before a round; return a list that collects the error replies."""
    deliver, said = federation.grid.exchange, []

    def exchange(requests: Any) -> Any:
        messages = list(requests)
        if int(messages[0].content[CONFIG][SERVER_ROUND]) == at:
            federation.grid.contexts[client].state = RecordDict()
        replies = list(deliver(messages))
        said.extend(reply for reply in replies if reply.has_error())
        return replies

    federation.grid.exchange = exchange
    return said


@pytest.mark.parametrize(
    ("toy", "name", "keys"),
    on_toys(
        [
            *((name, {}) for name in ("scaffold", "feddyn", "fedadmm", "feddr", "iiadmm")),
            *((name, {"absent": "fresh"}) for name in ("pisa", "sisa", "nsisa")),
        ]
    ),
    ids=str,
)
def test_increments_begin_anew_when_a_client_lost_its_state(
    lab: Any, toy: Toy, name: str, keys: dict[str, object]
) -> None:
    """The server then restarts the algorithm from the current model and confirms no earlier round."""
    federation = toy.make(lab.Case(name, keys).build(), "loop")
    said = forget(federation, client=1, at=4)
    outcome = federation.run(4)
    assert [reply.error.code for reply in said] == [STATE_LOST]
    strategy = federation.strategy
    fresh = strategy.algorithm.init(outcome.params.clone(), strategy.layout)
    assert strategy.server.keys() == fresh.keys()
    request = next(iter(strategy.configure_train(5, strategy._record(), ConfigRecord(), federation.grid)))
    assert request.content[CONFIG][CONFIRMED_ROUND] == 0


@pytest.mark.parametrize(("toy", "name"), on_toys(["sisa", "fedpd"]), ids=str)
def test_absolute_uploads_go_on_with_a_zero_dual(lab: Any, toy: Toy, name: str) -> None:
    federation = toy.make(lab.Case(name, {}).build(), "loop")
    said = forget(federation, client=1, at=4)
    federation.run(8)
    assert not said
