"""One of three nodes sends wrong replies; each is refused in one line and has a lost reply's effect."""

from __future__ import annotations

import importlib.util
import logging
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedpisa.config.run import RunConfig
from fedpisa.flower.compat import to_tensors
from fedpisa.flower.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND, STATE_LOST
from fedpisa.runs.simulation import Simulation
from fedpisa.server.limited_log import LimitedLog
from fedpisa.simulation.faults import CORRUPTIONS
from fedpisa.simulation.federation import Federation
from tests.players import ONE, TOYS, TWO, Toy, on_toys


def script() -> Any:
    path = Path(__file__).parents[2] / "experiments" / "lies.py"
    spec = importlib.util.spec_from_file_location("experiments_lies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIES = script()
ALGORITHMS = ("sisa", "fedavg", "scaffold")
SUBJECTS = [*((ONE, name) for name in ALGORITHMS), (TWO, "sisa")]
ROUNDS = 3
Change = Callable[[Message], Message | None]


def config(algorithm: str, toy: Toy = ONE, **keys: Any) -> RunConfig:
    return RunConfig.from_mapping(
        {
            **toy.keys, "algorithm": algorithm, "dataset": "synthetic", "num-clients": 3, "num-server-rounds": ROUNDS,
            "local-steps": 2, "dtype": "float64", "device": "cpu", "eval-every": 99, **keys,
        }
    )  # fmt: skip


class Run:
    """A run in which one node changes its replies in the given rounds."""

    def __init__(
        self,
        algorithm: str,
        change: Change,
        when: Sequence[int] = range(1, ROUNDS + 1),
        toy: Toy = ONE,
        **keys: Any,
    ):
        def lie(request: Message, reply: Message, others: Sequence[Message]) -> Message | None:
            return change(reply) if LIES.round_of(request) in when else reply

        self.simulation = Simulation(config(algorithm, toy, **keys), lambda f: LIES.LyingGrid(f, lie))
        self.rows = list(self.simulation.rows())[1:]
        self.params = to_tensors(self.simulation.model, torch.float64)["params"]


@cache
def lost(algorithm: str, when: tuple[int, ...], toy: Toy = ONE, **keys: Any) -> torch.Tensor:
    return Run(algorithm, lambda reply: None, when, toy, **keys).params


@cache
def honest(algorithm: str, toy: Toy) -> Run:
    return Run(algorithm, lambda reply: reply, toy=toy)


def array(name: str, value: Callable[[Any], Any]) -> Change:
    """Return a change of one of the four fields of the first array."""

    def change(reply: Message) -> Message:
        arrays = reply.content.array_records[ARRAYS]
        key = next(iter(arrays))
        parts = {part: getattr(arrays[key], part) for part in ("dtype", "shape", "stype", "data")}
        arrays[key] = Array(**{**parts, name: value(parts[name])})
        return reply

    return change


def values(change: Callable[[np.ndarray], Any]) -> Change:
    def lie(reply: Message) -> Message:
        arrays = reply.content.array_records[ARRAYS]
        key = next(iter(arrays))
        arrays[key] = Array(np.asarray(change(arrays[key].numpy())))
        return reply

    return lie


def entry(record: str, name: str, value: Any) -> Change:
    def change(reply: Message) -> Message:
        reply.content[record][name] = value
        return reply

    return change


def records(make: Callable[[RecordDict], dict[str, Any]]) -> Change:
    def change(reply: Message) -> Message:
        reply.content = RecordDict(make(reply.content))
        return reply

    return change


def error(code: int, reason: str) -> Change:
    def change(reply: Message) -> Message:
        failed = Message(Error(code, reason), reply_to=reply)
        failed.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        return failed

    return change


def many(reply: Message) -> Message:
    for number in range(20_000):
        reply.content[ARRAYS][f"more-{number}"] = Array(np.zeros(1))
    return reply


NASTY = "a\x1b[31m\nFORGED: \u202eround 1" + "x" * 100_000
NUMBERS = (-1, 0, 10**9, 2**62, 1.5, -1e300, 1.7e308, float("nan"), float("inf"), -float("inf"))
TABLE: dict[str, Change] = {
    **{f"{NUM_EXAMPLES} {number}": entry(METRICS, NUM_EXAMPLES, number) for number in (*NUMBERS, [1], [])},
    **{f"local-steps {number}": entry(METRICS, "local-steps", number) for number in (*NUMBERS, [1.0])},
    **{f"train-loss {number}": entry(METRICS, "train-loss", number) for number in (*NUMBERS[5:], [1.0])},
    **{f"round {number}": entry(CONFIG, SERVER_ROUND, number) for number in (*NUMBERS, True, "1", NASTY, b"1")},
    **{
        f"dtype {dtype[:20]!r}": array("dtype", lambda _, dtype=dtype: dtype)
        for dtype in (
            "evil", "", NASTY, "object", "O", "(1000000,)f4", "bfloat16", "f4,f4", "float32", "<f8", "int64",
        )
    },
    **{
        f"shape {shape}": array("shape", lambda _, shape=shape: shape)
        for shape in ((), (-5,), (0,), (2**31,), (2**40, 2**40), (1,) * 5000)
    },
    **{f"stype {text[:9]!r}": array("stype", lambda _, text=text: text) for text in ("pickle", "torch", "", NASTY)},
    "no data": array("data", lambda data: b""),
    "data cut": array("data", lambda data: data[:-1]),
    "data longer": array("data", lambda data: data + b"0"),
    "garbage": array("data", lambda data: random.Random(0).randbytes(len(data))),
    "brackets": array("data", lambda data: b"\x93NUMPY\x01\x00" + b"[" * 60_000),
    "pickle": array("data", lambda data: b"cos\nsystem\n(S'false'\ntR."),
    **{f"filled with {x}": values(lambda v, x=x: np.full_like(v, x)) for x in (np.nan, np.inf, 1e30, -1e200)},
    "one -inf": values(lambda v: np.append(v[:-1], -np.inf)),
    **{f"as {t}": values(lambda v, t=t: v.astype(t)) for t in ("float32", "int32", "complex128", ">f8", "bool")},
    "longer": values(lambda v: np.append(v, 0.0)),
    "matrix": values(lambda v: v[None]),
    "empty": values(lambda v: v[:0]),
    "64 MB": values(lambda v: np.zeros(8_000_000)),
    "20,000 arrays": many,
    "no records": records(lambda content: {}),
    "no arrays": records(lambda content: {**content, ARRAYS: ArrayRecord()}),
    "no metrics": records(lambda content: {**content, METRICS: MetricRecord()}),
    "no config": records(lambda content: {**content, CONFIG: ConfigRecord()}),
    "arrays missing": records(lambda content: {METRICS: content[METRICS], CONFIG: content[CONFIG]}),
    "records exchanged": records(lambda content: {**content, ARRAYS: content[METRICS], METRICS: content[ARRAYS]}),
    "one record more": records(lambda content: {**content, NASTY: MetricRecord({"a": 1})}),
    "one metric more": entry(METRICS, NASTY, 1.0),
    "one config entry more": entry(CONFIG, NASTY, 1.0),
    **{f"error {code}": error(code, "gone") for code in (0, 1, 3, 10**9, STATE_LOST)},
    "error with a long reason": error(1, NASTY * 50),
    **{
        f"corruption {number}": lambda reply, corrupt=corrupt: (corrupt(reply, np.random.default_rng(1)), reply)[1]
        for number, corrupt in enumerate(CORRUPTIONS)
    },
}  # fmt: skip


ONE_FIELD = ("dtype", "shape", "stype", "round", "local-steps", "train-loss")
"""Fields of an array or a number. The checks are the same for every array."""
LIES_TOLD = [
    (name, toy, algorithm)
    for name in TABLE
    for toy, algorithm in SUBJECTS
    if not (toy.turns and name.startswith(ONE_FIELD))
]


@pytest.mark.parametrize(("name", "toy", "algorithm"), LIES_TOLD, ids=str)
def test_a_reply_that_breaks_the_contract_is_a_lost_reply(
    name: str, toy: Toy, algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong field, type or size gives one log line with the client, and the model without that reply."""
    when = (1, 3)
    with caplog.at_level(logging.WARNING):
        run = Run(algorithm, TABLE[name], when, toy)
    assert torch.equal(run.params, lost(algorithm, when, toy))
    assert [(row["replies"], row["dropped_replies"]) for row in run.rows] == [(2, 1), (3, 0), (2, 1)]
    assert run.rows[0]["bytes_up"] == honest(algorithm, toy).rows[0]["bytes_up"] / 3 * 2
    lines = [record.getMessage() for record in caplog.records]
    if name != f"error {STATE_LOST}":
        assert len(lines) == len(when)
    for line in lines:
        assert line.startswith("round ")
        assert "client 2" in line
        assert line.isprintable()
        assert len(line) < 450


@pytest.mark.parametrize(("toy", "algorithm"), on_toys(ALGORITHMS), ids=str)
def test_metadata_and_strangers(toy: Toy, algorithm: str, caplog: pytest.LogCaptureFixture) -> None:
    """A reply with another node's number or without one has the effect of a lost reply."""
    for source in (999, -1, None, "4", [4]):

        def disguised(reply: Message, source: Any = source) -> Message:
            reply.metadata.__dict__["_src_node_id"] = source
            return reply

        run = Run(algorithm, disguised, (1, 3), toy)
        assert torch.equal(run.params, lost(algorithm, (1, 3), toy))


def test_no_norm_lets_the_model_go_faster_every_round() -> None:
    """The bound on updates does not grow with the model, so the model's norm grows linearly at most."""
    simulation = Simulation(
        RunConfig.from_mapping({**LIES.RUN, "num-server-rounds": 8}),
        lambda federation: LIES.LyingGrid(federation, LIES.at_the_bound()),
    )
    norms = [
        float(np.linalg.norm(np.concatenate([v.ravel() for v in simulation.parameters().values()])))
        for _ in simulation.rows()
    ]
    steps = np.diff(norms)
    assert steps.max() < 1.5 * LIES.MAX_UPLOAD_NORM * (1 + norms[0])
    assert steps[-1] < 3 * steps[0]


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_what_was_kept_of_a_node_goes_after_three_refusals(toy: Toy) -> None:
    """With ``absent = "keep"`` the node's last vector counts for two more rounds, and then no longer."""
    keys = {"num-server-rounds": 8}
    wrong = entry(METRICS, NUM_EXAMPLES, 10**9)
    later = tuple(range(3, 9))
    refused = Run("sisa", wrong, later, toy, **keys)
    server = refused.simulation.strategy.server
    assert server is not None
    for kept in {toy.of("num-examples", server_round) for server_round in later}:
        assert server[kept].tolist()[2] == 0
        assert (server[kept][:2] > 0).all()
    for rounds in (3, 4):  # until then the refused replies have the effect of lost ones
        short = {"num-server-rounds": rounds}
        assert torch.equal(Run("sisa", wrong, later, toy, **short).params, lost("sisa", later, toy, **short))
    assert not torch.equal(refused.params, lost("sisa", later, toy, **keys))


SUMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("scaffold", "feddyn", "fedadmm", "feddr")),
    ("sisa", {"absent": "fresh"}),
]
"""Algorithms whose servers keep sums over clients, and nothing of a single one."""


@pytest.mark.parametrize(("toy", "algorithm", "keys"), on_toys(SUMS), ids=str)
def test_a_sum_keeps_the_share_of_a_node_after_three_refusals(
    toy: Toy, algorithm: str, keys: dict[str, Any]
) -> None:
    """The node goes on from its last confirmed state, and its refused replies have the effect of lost ones."""
    keys = {**keys, "num-server-rounds": 9}
    wrong, when = entry(METRICS, NUM_EXAMPLES, 10**9), (3, 4, 5, 6)
    refused = Run(algorithm, wrong, when, toy, **keys)
    assert torch.equal(refused.params, lost(algorithm, when, toy, **keys))


@pytest.mark.parametrize(("toy", "algorithm", "keys"), on_toys([*SUMS, ("iiadmm", {})]), ids=str)
def test_a_client_can_lose_its_state_once(
    toy: Toy, algorithm: str, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The first report restarts all clients; later reports have the effect of lost replies."""
    with caplog.at_level(logging.WARNING):
        wrong = error(STATE_LOST, "lost")
        run = Run(algorithm, wrong, (2, 4, 6, 8), toy, **{"num-server-rounds": 9, **keys})
    assert caplog.text.count("all clients begin anew") == 1
    assert [row["replies"] for row in run.rows] == [3, 2, 3, 2, 3, 2, 3, 2, 3]


def test_the_log_does_not_fill(caplog: pytest.LogCaptureFixture) -> None:
    """A run logs at most 200 lines about clients, and afterwards only their number."""
    log = LimitedLog()
    with caplog.at_level(logging.WARNING):
        for server_round in range(1, 2000):
            log.warning(server_round, "reply of client 2 refused")
    assert len(caplog.records) == 200 + 4


@pytest.mark.parametrize("toy", TOYS, ids=str)
@pytest.mark.parametrize("absent", ["keep", "drop"])
def test_the_claimed_size_is_the_reported_one(toy: Toy, absent: str) -> None:
    """A plausible size is refused if it differs from the size reported before round 1."""
    federation = Federation(config("sisa"))
    size = int(federation.data.sizes_N[LIES.LIAR])
    run = Run("sisa", entry(METRICS, NUM_EXAMPLES, size + 1), (1, 3), toy, absent=absent)
    assert torch.equal(run.params, lost("sisa", (1, 3), toy, absent=absent))
