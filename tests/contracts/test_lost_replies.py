"""With incremental uploads, a lost reply has the same effect as a request that was never sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedpisa import families
from fedpisa.flower.messages import CONFIG, CONFIRMED_ROUND, SERVER_ROUND
from fedpisa.rng import generator
from tests.algorithms import FEDERATED
from tests.players import TOYS, Toy, on_toys

ROUNDS = 8
LOST = {1: {0, 3}, 2: {0}, 4: {2, 3}, 5: {1}, 7: {4}}
"""The clients whose message is lost, by round: in the first round, twice in a row, several at a time."""


def lose(federation: Any, what: str, lost: dict[int, set[int]] = LOST) -> Any:
    """Make a federation's Grid lose ``requests`` or ``replies``. A client never sees a lost request."""
    grid, deliver = federation.grid, federation.grid.exchange

    def exchange(requests: Any) -> Any:
        messages = list(requests)
        server_round = int(messages[0].content[CONFIG][SERVER_ROUND])
        kept = [
            m for m in messages if grid.client_of(m.metadata.dst_node_id) not in lost.get(server_round, ())
        ]
        if what == "requests":
            return list(deliver(kept))
        arrived = {message.metadata.dst_node_id for message in kept}
        return [reply for reply in deliver(messages) if reply.metadata.src_node_id in arrived]

    grid.exchange = exchange
    return federation


def loss(federation: Any, params: torch.Tensor) -> float:
    """Return the mean loss over all clients' samples."""
    x, y = federation.data.x, federation.data.y
    return float(federation.task.evaluate(params, params.new_zeros(0), x, y)["loss"])


def build(name: str) -> Any:
    return families.build(families.find("algorithm", name), {})


NAMES = tuple(families.available("algorithm"))
INCREMENTAL = tuple(name for name in NAMES if build(name).local_update.incremental)
FRESH = [
    *((name, {"absent": "fresh"}) for name in ("sisa", "nsisa")),
    *(("pisa", {"absent": "fresh", "preconditioner": rule}) for rule in families.available("preconditioner")),
    ("spectral-pisa", {"absent": "fresh", "rules": {"bias": "adam", "^0": "newton-schulz"}}),
]
"""PISA's family with increments, with each memory that a preconditioner keeps."""


@pytest.mark.parametrize(
    ("toy", "name", "keys"),
    on_toys([*((name, {}) for name in INCREMENTAL), *FRESH], ("scaffold", "fedadmm", "sisa")),
    ids=str,
)
def test_a_lost_reply_is_like_a_lost_request(
    lab: Any, toy: Toy, name: str, keys: dict[str, object], engine: str
) -> None:
    """With incremental uploads, losing the reply and losing the request give the same model and states.

    Absolute uploads are not tested: losing one does no harm, but its client has moved.
    """
    case = lab.Case(name, keys)
    reply, request = (
        lose(toy.make(case.build(), engine, fraction=0.9), what).run(ROUNDS)
        for what in ("replies", "requests")
    )
    assert lab.relative(reply.params, request.params) <= 1e-12
    for mine, other in zip(reply.states(), request.states(), strict=True):
        assert mine.keys() == other.keys()
        assert all(lab.relative(mine[name], other[name]) <= 1e-12 for name in mine)


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_without_confirmation_a_lost_reply_would_matter(
    lab: Any, toy: Toy, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCAFFOLD ends elsewhere if a client keeps the state of a lost reply: the test above can fail."""
    algorithm = lab.Case("scaffold", {}).build()
    request = lose(toy.make(algorithm, engine), "requests").run(ROUNDS)
    monkeypatch.setattr(type(algorithm.local_update), "incremental", False)
    reply = lose(toy.make(algorithm, engine), "replies").run(ROUNDS)
    assert lab.relative(reply.params, request.params) > 1e-3


@pytest.mark.parametrize(("toy", "name", "keys"), on_toys([*((name, {}) for name in NAMES), *FRESH]), ids=str)
def test_only_those_who_need_it_are_told_what_arrived(
    lab: Any, toy: Toy, name: str, keys: dict[str, object]
) -> None:
    federation = toy.make(lab.Case(name, keys).build(), "loop")
    seen: list[Any] = []
    deliver = federation.grid.exchange

    def exchange(requests: Any) -> Any:
        seen.append([dict(message.content[CONFIG]) for message in requests])
        return deliver(requests)

    federation.grid.exchange = exchange
    federation.run(2)
    told = [[config.get(CONFIRMED_ROUND) for config in configs] for configs in seen]
    clients = federation.data.num_clients
    wanted = (0, 1) if name in INCREMENTAL or keys else (None, None)
    assert told == [[confirmed] * clients for confirmed in wanted]


@pytest.mark.parametrize(("name", "keys"), [*((name, {}) for name in FEDERATED), *FRESH[:3]], ids=str)
def test_every_algorithm_survives_losing_a_tenth_of_the_replies(
    lab: Any, name: str, keys: dict[str, object], engine: str
) -> None:
    """The final loss is about that of a run without losses."""
    rng = generator(0, "lost")
    lost = {t: set(np.flatnonzero(rng.random(len(lab.SIZES)) < 0.1).tolist()) for t in range(1, 31)}
    assert sum(map(len, lost.values())) > 10
    clean, lossy = (lab.make(lab.Case(name, keys).build(sigma=10.0), engine) for _ in range(2))
    begin = loss(clean, clean.task.initial_params())
    clean_end = loss(clean, clean.run(30).params)
    lossy_end = loss(lossy, lose(lossy, "replies", lost).run(30).params)
    assert clean_end < begin
    assert lossy_end - clean_end <= 0.2 * (begin - clean_end)
