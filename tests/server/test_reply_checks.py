"""The server uses a reply only if the reply has the expected fields, types, shapes and values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedpisa import families
from fedpisa.flower.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.server.reply_checks import Contract, RefusedError
from fedpisa.server.reply_filter import ReplyFilter
from fedpisa.server.reply_spec import reply_spec
from fedpisa.simulation.contexts import transport
from tests.algorithms import Case, cases
from tests.players import TOYS, Toy, on_toys, tracked

NAMES = tuple(families.available("algorithm"))
LENGTH = 5
CONTRACT = Contract(
    3, {"params": (LENGTH,), "scale": ()}, frozenset({"train-loss", "local-steps"}), torch.float32
)


def content() -> RecordDict:
    """Return a valid reply's content, encoded as on a network."""
    arrays = ArrayRecord()
    arrays["params"] = Array(np.arange(LENGTH, dtype=np.float32))
    arrays["scale"] = Array(np.array(2.0, dtype=np.float32))
    metrics = MetricRecord({NUM_EXAMPLES: 7, "train-loss": 0.5, "local-steps": 4.0})
    return transport(RecordDict({ARRAYS: arrays, METRICS: metrics, CONFIG: ConfigRecord({SERVER_ROUND: 3})}))


def request(lab: Any) -> Message:
    """Return a request of round 3."""
    federation = lab.make(lab.Case("fedavg", {}).build(), "loop")
    federation.strategy.start_from(federation.initial)
    messages = federation.strategy.configure_train(3, federation.initial, ConfigRecord(), federation.grid)
    return next(iter(messages))


Mutation = Callable[[RecordDict, np.random.Generator], None]


def array_of(values: np.ndarray) -> Mutation:
    def change(reply: RecordDict, rng: np.random.Generator) -> None:
        reply[ARRAYS]["params"] = Array(values)

    return change


def attribute(name: str, value: Callable[[Any, np.random.Generator], Any]) -> Mutation:
    def change(reply: RecordDict, rng: np.random.Generator) -> None:
        array = reply[ARRAYS]["params"]
        fields = {key: getattr(array, key) for key in ("dtype", "shape", "stype", "data")}
        reply[ARRAYS]["params"] = Array(**{**fields, name: value(fields[name], rng)})

    return change


def metric(name: str, value: Any) -> Mutation:
    def change(reply: RecordDict, rng: np.random.Generator) -> None:
        reply[METRICS][name] = value

    return change


def without(record: str, name: str) -> Mutation:
    def change(reply: RecordDict, rng: np.random.Generator) -> None:
        del reply[record][name]

    return change


def not_finite(reply: RecordDict, rng: np.random.Generator) -> None:
    values = np.arange(LENGTH, dtype=np.float32)
    values[rng.integers(LENGTH)] = rng.choice([np.nan, np.inf, -np.inf])
    reply[ARRAYS]["params"] = Array(values)


def foreign_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one byte of NumPy's header, which precedes the last ``4 LENGTH`` bytes."""
    position = int(rng.integers(len(data) - 4 * LENGTH))
    other = (data[position] + int(rng.integers(1, 256))) % 256
    return data[:position] + bytes([other]) + data[position + 1 :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def longer(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 50)))


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """Claim an array of terabytes in the header."""
    return data.replace(b"(5,), }", b"(999999999999,), }")


def records(keep: Callable[[RecordDict], dict[str, Any]]) -> Mutation:
    def change(reply: RecordDict, rng: np.random.Generator) -> None:
        kept = keep(reply)
        for name in list(reply):
            del reply[name]
        for name, record in kept.items():
            reply[name] = record

    return change


MUTATIONS: dict[str, Mutation] = {
    "not finite": not_finite,
    "longer vector": array_of(np.zeros(LENGTH + 1, np.float32)),
    "matrix": array_of(np.zeros((LENGTH, 1), np.float32)),
    "float64": array_of(np.zeros(LENGTH)),
    "integers": array_of(np.zeros(LENGTH, np.int32)),
    "objects by name": attribute("dtype", lambda value, rng: "object"),
    "other shape by name": attribute("shape", lambda value, rng: (LENGTH - 1,)),
    "negative shape": attribute("shape", lambda value, rng: (-LENGTH,)),
    "other encoding": attribute("stype", lambda value, rng: "pickle"),
    "foreign header": attribute("data", foreign_header),
    "cut": attribute("data", cut),
    "longer bytes": attribute("data", longer),
    "no bytes": attribute("data", lambda value, rng: b""),
    "noise": attribute("data", lambda value, rng: rng.bytes(len(value))),
    "bomb": attribute("data", bomb),
    "pickle": attribute("data", lambda value, rng: b"\x80\x04K\x01."),
    "missing array": without(ARRAYS, "scale"),
    "one array more": lambda reply, rng: reply[ARRAYS].__setitem__("more", Array(np.zeros(1, np.float32))),
    "no samples": metric(NUM_EXAMPLES, 0),
    "negative samples": metric(NUM_EXAMPLES, -7),
    "too many samples": metric(NUM_EXAMPLES, 10**12),
    "half a sample": metric(NUM_EXAMPLES, 1.5),
    "samples not a number": metric(NUM_EXAMPLES, float("nan")),
    "list of samples": metric(NUM_EXAMPLES, [1, 2]),
    "loss not finite": metric("train-loss", float("inf")),
    "one metric more": metric("more", 1.0),
    "missing metric": without(METRICS, "train-loss"),
    "other round": lambda reply, rng: reply[CONFIG].__setitem__(SERVER_ROUND, int(rng.choice([0, 1, 2, 4, -3]))),
    "round as text": lambda reply, rng: reply[CONFIG].__setitem__(SERVER_ROUND, "3"),
    "no round": without(CONFIG, SERVER_ROUND),
    "no arrays": records(lambda reply: {name: reply[name] for name in (METRICS, CONFIG)}),
    "no metrics": records(lambda reply: {name: reply[name] for name in (ARRAYS, CONFIG)}),
    "nothing": records(lambda reply: {}),
    "kinds exchanged": records(
        lambda reply: {ARRAYS: reply[METRICS], METRICS: reply[ARRAYS], CONFIG: reply[CONFIG]}
    ),
    "one record more": lambda reply, rng: reply.__setitem__("more", MetricRecord({"a": 1.0})),
}  # fmt: skip


def test_a_valid_reply_passes(lab: Any) -> None:
    arrays = CONTRACT.check(Message(content(), reply_to=request(lab)))
    assert arrays["params"].tolist() == list(range(LENGTH))


@pytest.mark.parametrize("name", MUTATIONS)
def test_ten_thousand_malformed_replies(lab: Any, name: str) -> None:
    """300 draws of each mutation are all refused with a one-line error."""
    rng = np.random.default_rng(0)
    asked = request(lab)
    for _ in range(300):
        reply = content()
        MUTATIONS[name](reply, rng)
        with pytest.raises(RefusedError) as error:
            CONTRACT.check(Message(reply, reply_to=asked))
        assert str(error.value).isprintable()


def test_a_reply_with_an_error_or_without_content(lab: Any) -> None:
    failed = Message(Error(code=2, reason="out of memory"), reply_to=request(lab))
    with pytest.raises(RefusedError, match="its client failed: out of memory"):
        CONTRACT.check(failed)


OUTLINED = [(toy, case) for toy, case in on_toys(cases()) if not (toy.turns and case.values)]


@pytest.mark.parametrize(("toy", "case"), OUTLINED, ids=str)
def test_the_outline_is_what_clients_send(toy: Toy, case: Case) -> None:
    """Names, shapes and metrics, derived without data, equal those of a real round of each player."""
    federation = toy.make(case.build(), "vmap")
    server = federation.algorithm.init(federation.task.initial_params(), federation.task.layout)
    model = federation.strategy.start_from(federation.initial)
    for server_round in range(1, 1 + max(1, len(toy.turns))):
        down = federation.algorithm.at_round(server_round).broadcast(server)
        found = reply_spec(federation.algorithm.local_update, server_round, down, federation.task.layout)
        requests = federation.strategy.configure_train(server_round, model, ConfigRecord(), federation.grid)
        replies = federation.grid.send_and_receive(requests)
        assert found.upload == {name: tuple(value.shape[1:]) for name, value in replies.uploads_S.items()}
        assert found.metrics == set(replies.metrics_S) - {"train-loss", "local-steps"}
        assert all(name.startswith(toy.of("", server_round)) for name in found.upload)


@pytest.mark.parametrize(
    ("toy", "name"), on_toys(NAMES, ("pisa", "sisa", "fedavg", "scaffold", "fedsgd")), ids=str
)
def test_screening_changes_nothing_where_all_is_well(lab: Any, toy: Toy, name: str, engine: str) -> None:
    """Valid replies give the same model bit for bit with and without screening.

    The uploads include BatchNorm's buffers.
    """
    module = tracked if toy.turns else lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(4), lab.mlp())
    trusting, wary = (toy.make(lab.Case(name, {}).build(), engine, module=module) for _ in range(2))
    wary.strategy = screening(wary)
    assert torch.equal(trusting.run(3).params, wary.run(3).params)
    clients = wary.data.num_clients
    assert [(r.train_metrics["replies"], r.train_metrics["dropped-replies"]) for r in wary.history] == [
        (clients, 0)
    ] * 3


def screening(federation: Any, **options: Any) -> AlgorithmStrategy:
    return AlgorithmStrategy(
        federation.algorithm, federation.task.layout, reply_filter=ReplyFilter(**options)
    )


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_bad_replies_are_dropped_by_name_and_the_round_goes_on(
    lab: Any, toy: Toy, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is that of the valid replies.

    A second reply and a stranger's reply are dropped too.
    """
    bad, good = (toy.make(lab.Case("sisa", {}).build(), engine) for _ in range(2))
    z = toy.of("z")
    bad.strategy, good.strategy = screening(bad), screening(good)
    deliver = bad.grid.exchange

    def spoil(requests: Any) -> list[Message]:
        replies = list(deliver(requests))
        replies[2].content[ARRAYS][z] = Array(np.full(3, np.nan))
        replies[0].metadata.__dict__["_src_node_id"] = 999
        return [*replies, replies[1]]

    others = good.grid.exchange
    good.grid.exchange = lambda requests: [r for i, r in enumerate(others(requests)) if i not in (0, 2)]
    bad.grid.exchange = spoil
    with caplog.at_level(logging.WARNING, "fedpisa"):
        bad.run(1)
    good.run(1)
    assert torch.equal(bad.params, good.params)
    clients = bad.data.num_clients
    metrics = bad.history[0].train_metrics
    assert (metrics["replies"], metrics["dropped-replies"]) == (clients - 2, 3)
    assert f"round 1: reply of client 2 refused: {z} is float64 of shape (3,), not" in caplog.text
    assert "reply of node 999 refused: it was not asked" in caplog.text
    assert "reply of client 1 refused: it has replied already" in caplog.text


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_with_too_few_replies_the_model_stays(
    lab: Any, toy: Toy, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = toy.make(lab.Case("scaffold", {}).build(), engine)
    federation.strategy = screening(federation, min_replies=4)
    deliver = federation.grid.exchange
    federation.grid.exchange = lambda requests: list(deliver(requests))[:3]
    with caplog.at_level(logging.WARNING, "fedpisa"):
        federation.run(2)
    assert torch.equal(federation.params, federation.task.initial_params())
    assert federation.history[-1].train_metrics["replies"] == 3
    assert "round 2: 3 replies, and min-replies is 4: the model stays as it is" in caplog.text


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_the_bound_on_norms_is_the_users(lab: Any, toy: Toy) -> None:
    federation = toy.make(lab.Case("fedavg", {}).build(), "loop")
    federation.strategy = screening(federation, max_upload_norm=1e-6)
    assert federation.run(1).history[0].train_metrics["replies"] < federation.data.num_clients
