"""Simulated faults: their rates, their effects, and the server's reaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.families import available
from fedpisa.flower.messages import METRICS
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.server.reply_filter import MAX_UPLOAD_NORM, ReplyFilter
from fedpisa.simulation.faults import CORRUPTIONS, Faults, FaultyGrid
from tests.players import TOYS, Toy, on_toys

RATES = ("dropout", "crash", "late", "nan", "corrupt")


def faulty(federation: Any, faults: Faults) -> Any:
    """Put faults between a federation's strategy and its Grid."""
    federation.grid = FaultyGrid(federation.grid, faults)
    federation.strategy = AlgorithmStrategy(
        federation.algorithm,
        federation.task.layout,
        fraction_train=federation.fraction,
        reply_filter=ReplyFilter(MAX_UPLOAD_NORM),
    )
    return federation


def only(monkeypatch: pytest.MonkeyPatch, **clients: set[int]) -> None:
    """Restrict each fault to the given clients."""
    monkeypatch.setattr(
        Faults, "happens", lambda self, what, ids_S, server_round: np.isin(ids_S, list(clients.get(what, ())))
    )


@pytest.mark.parametrize(("toy", "name"), on_toys(["sisa", "scaffold", "fedavg"]), ids=str)
def test_without_faults_it_is_as_if_nothing_stood_between(lab: Any, toy: Toy, name: str, engine: str) -> None:
    plain, wrapped = (toy.make(lab.Case(name, {}).build(), engine) for _ in range(2))
    assert torch.equal(faulty(wrapped, Faults()).run(4).params, plain.run(4).params)


@pytest.mark.parametrize("what", RATES)
def test_each_happens_as_often_as_asked_and_by_itself(what: str) -> None:
    """Each fault's counts are binomial, independent of other faults, clients and rounds."""
    faults, ids = Faults(seed=3, **dict.fromkeys(RATES, 0.2)), np.arange(500)
    drawn = np.array([faults.happens(what, ids, t) for t in range(1, 41)])
    assert abs(drawn.mean() - 0.2) < 5 * np.sqrt(0.16 / drawn.size)
    assert abs(drawn.mean(0) - 0.2).max() < 6 * np.sqrt(0.16 / 40)
    assert abs(drawn.mean(1) - 0.2).max() < 6 * np.sqrt(0.16 / 500)
    for other in set(RATES) - {what}:
        both = np.array([faults.happens(other, ids, t) for t in range(1, 41)]) & drawn
        assert abs(both.mean() - 0.04) < 5 * np.sqrt(0.04 / drawn.size)
    assert (faults.happens(what, ids[70:90], 5) == drawn[4, 70:90]).all()
    assert not (Faults(seed=4, **dict.fromkeys(RATES, 0.2)).happens(what, ids, 1) == drawn[0]).all()


@pytest.mark.parametrize(
    ("what", "moves", "counted"),
    [("dropout", False, 0), ("crash", False, 1), ("late", True, 0), ("nan", True, 1), ("corrupt", True, 1)],
)
@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_what_they_do_to_client_and_server(
    lab: Any, toy: Toy, engine: str, monkeypatch: pytest.MonkeyPatch, what: str, moves: bool, counted: int
) -> None:
    """The server gets no valid reply of client 2, and the other clients are unaffected.

    The kind of fault decides whether client 2's state changes.
    """
    only(monkeypatch, **{what: {2}})
    federation = faulty(toy.make(lab.Case("sisa", {}).build(), engine), Faults())
    federation.run(1)
    metrics = federation.history[0].train_metrics
    assert (metrics["replies"], metrics["dropped-replies"]) == (federation.data.num_clients - 1, counted)
    assert [bool(state) for state in federation.states()] == [i != 2 or moves for i in range(6)]
    assert federation.strategy.server[toy.of("num-examples")][2] == 0

    without = toy.make(lab.Case("sisa", {}).build(), engine)
    deliver = without.grid.exchange
    without.grid.exchange = lambda requests: [r for i, r in enumerate(deliver(requests)) if i != 2]
    assert torch.equal(without.run(1).params, federation.params)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.__name__.strip("_"))
@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_every_corruption_is_noticed(lab: Any, toy: Toy, engine: str, corruption: Any) -> None:
    federation = faulty(toy.make(lab.Case("scaffold", {}).build(), engine), Faults())
    federation.strategy.start_from(federation.initial)
    requests = federation.strategy.configure_train(1, federation.initial, ConfigRecord(), federation.grid)
    replies = list(federation.grid.send_and_receive(requests))
    corruption(replies[3], np.random.default_rng(0))
    federation.strategy.aggregate_train(1, replies)
    assert federation.strategy.reported[0].tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("what", ["nan", "corrupt"])
@pytest.mark.parametrize(
    ("toy", "algorithm"), on_toys(available("algorithm"), ("sisa", "fedavg", "scaffold", "fedsgd")), ids=str
)
def test_a_run_of_any_algorithm_survives_faulty_replies_alone(toy: Toy, algorithm: str, what: str) -> None:
    """No reply counts. That of a reference may have no arrays to damage."""
    keys = {**toy.keys, "num-clients": 3, "num-server-rounds": 6, "algorithm": algorithm, what: 1.0}
    result = fedpisa.run(keys)
    assert result.status == "finished"
    if what == "corrupt":
        assert (result.history["replies"].iloc[1:] == 0).all()


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_a_late_reply_of_an_increment_is_taken_back(
    lab: Any, toy: Toy, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late reply has the same effect as a lost request."""
    runs = []
    for what in ("late", "dropout"):
        with monkeypatch.context() as patch:
            patch.setattr(
                Faults,
                "happens",
                lambda self, kind, ids_S, t, what=what: (ids_S + t) % 4 == 0 if kind == what else ids_S < 0,
            )
            runs.append(faulty(toy.make(lab.Case("scaffold", {}).build(), engine), Faults()).run(9).params)
    assert lab.relative(*runs) <= 1e-12


# ------------------------------------------------------------------------------------------------ clock


def test_the_clock_is_the_slowest_clients(lab: Any, engine: str) -> None:
    """A client takes its number of steps times its seconds per step.

    The server drops clients that take longer than the timeout.
    """
    paces = np.array([1.0, 2.0, 0.5, 3.0, 1.0, 1.0])
    faults = Faults(pace=lambda ids_S, t: paces[ids_S], round_timeout=5.0)
    federation = faulty(lab.make(lab.Case("fedavg", {}).build(), engine), faults)
    seen: list[Message] = []
    deliver = federation.grid.grid.exchange
    federation.grid.grid.exchange = lambda requests: seen.extend(deliver(requests)) or seen[-6:]
    federation.run(1)
    steps = np.array([reply.content[METRICS]["local-steps"] for reply in seen])
    seconds = steps * paces
    assert seconds.max() > 5.0 > np.sort(seconds)[-2]
    assert federation.grid.simulated_seconds == 5.0
    assert federation.history[0].train_metrics["replies"] == 5
    federation.grid.faults = Faults(pace=lambda ids_S, t: paces[ids_S], round_timeout=1e9)
    federation.run(1)
    assert federation.grid.simulated_seconds == seconds.max()


def test_a_run_with_a_clock_and_absent_clients() -> None:
    keys = {
        "algorithm": "sisa", "model": "logistic", "num-clients": 20, "num-server-rounds": 24,
        "local-steps": 2, "round-timeout": 50.0, "availability": "on-off", "online-share": 0.75,
    }  # fmt: skip
    history = fedpisa.run({**keys, "pace": "constant", "step-seconds": 3.0}).history
    replies = history["replies"].dropna()
    # Over a period each client is online in three rounds of four, and the server waits for the others.
    assert replies.mean() == pytest.approx(15, abs=0.01)
    assert set(history["simulated_seconds"].dropna()) == {50.0}
    always = fedpisa.run({**keys, "availability": "always", "online-share": None, "pace": "constant"}).history
    assert set(always["simulated_seconds"].dropna()) == {2.0}


# ------------------------------------------------------------------------------------------ end to end


@pytest.mark.parametrize("keys", [{"algorithm": "sisa", "sigma": 1.0}, {"algorithm": "fedavg"}], ids=str)
def test_a_tenth_dropped_and_a_twentieth_corrupt_cost_less_than_two_points(
    keys: dict[str, object], engine: str
) -> None:
    common = {"model": "logistic", "num-server-rounds": 60, "engine": engine, **keys}
    clean = fedpisa.run(common)
    faulty_run = fedpisa.run({**common, "dropout": 0.1, "corrupt": 0.05})
    assert faulty_run.status == "finished"
    dropped = faulty_run.history["dropped_replies"].sum()
    assert 600 * 0.9 * 0.05 * 0.5 < dropped < 600 * 0.9 * 0.05 * 1.6
    accuracy = [result.last("test_accuracy") or 0.0 for result in (clean, faulty_run)]
    assert accuracy[0] > 0.85
    assert accuracy[1] > accuracy[0] - 0.02


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_both_engines_meet_the_same_faults(toy: Toy) -> None:
    keys = {"algorithm": "scaffold", **toy.keys, "num-server-rounds": 8, "dtype": "float64"}
    rates = dict.fromkeys(RATES, 0.1)
    loop, vmap = (fedpisa.run({**keys, **rates, "engine": engine}) for engine in ("loop", "vmap"))
    for name, value in loop.parameters.items():
        assert np.abs(value - vmap.parameters[name]).max() <= 1e-12
    assert loop.history["dropped_replies"].equals(vmap.history["dropped_replies"])
    replies = loop.history["replies"].dropna()
    assert 1 <= replies.min() < replies.mean() < 10


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_a_run_with_faults_goes_on_to_the_same_bytes(toy: Toy, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if getattr(event, "row", {}).get("round") == 5:
            raise KeyboardInterrupt

    config = RunConfig.from_mapping(
        {"algorithm": "feddyn", **toy.keys, "num-server-rounds": 9, "checkpoint-every": 2}
        | dict.fromkeys(RATES, 0.15)
    )
    fedpisa.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedpisa.run(config, tmp_path / "cut", on_event=stop)
    fedpisa.run(resume=tmp_path / "cut")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_flowers_strategies_are_screened_too() -> None:
    keys = {
        "algorithm": "fedavg",
        "model": "logistic",
        "num-server-rounds": 10,
        "server-strategy": "fed-median",
    }
    result = fedpisa.run({**keys, "nan": 0.2, "corrupt": 0.2, "crash": 0.1})
    assert result.status == "finished"
    assert result.history["dropped_replies"].sum() > 10
    clean = fedpisa.run(keys)
    assert (result.last("test_accuracy") or 0) > (clean.last("test_accuracy") or 0) - 0.1
