"""The Ray engine with actors in this process; `tests/e2e` has real actors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import fedpisa
from fedpisa.flower.compat import decode, encode
from fedpisa.simulation import ray_grid

SMALL = {
    "dataset": "synthetic",
    "model": "logistic",
    "num-clients": 5,
    "num-server-rounds": 4,
    "device": "cpu",
}


class Actors:
    """Flower's backend in this process: an actor gets a copy of the context and returns it."""

    num_workers = 2
    running = 0
    one_at_a_time = Lock()  # a module serves one thread; real actors have their own

    def __init__(
        self, app: Callable[[], ClientApp], address: str | None, num_cpus: float, num_gpus: float
    ) -> None:
        assert (address, num_cpus, num_gpus) == (None, 1.0, 0.0)
        self.app = app
        Actors.running += 1

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        copy = Context(
            context.run_id,
            context.node_id,
            context.node_config,
            decode(encode(context.state)),
            context.run_config,
        )
        with self.one_at_a_time:
            return self.app()(message, copy), copy

    def terminate(self) -> None:
        Actors.running -= 1


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> type[Actors]:
    monkeypatch.setattr(ray_grid, "find_spec", lambda name: object())
    monkeypatch.setattr(ray_grid, "start_ray", Actors)
    return Actors


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"algorithm": "scaffold", "fraction-train": 0.6},
        {"algorithm": "scaffold", "late": 0.3, "corrupt": 0.2},
    ],
    ids=["sisa", "scaffold", "faults"],
)
def test_it_is_the_loop_to_the_bit(keys: dict[str, object], actors: type[Actors], tmp_path: Path) -> None:
    """Ray gives the loop's bits, also in a resumed run with a new cluster."""
    config = {**SMALL, **keys}
    fedpisa.run({**config, "engine": "ray", "num-server-rounds": 2}, out=tmp_path / "run")
    on_ray = fedpisa.run({"num-server-rounds": 4}, resume=tmp_path / "run")
    loop = fedpisa.run({**config, "engine": "loop"})
    for name, value in loop.parameters.items():
        np.testing.assert_array_equal(on_ray.parameters[name], value)
    for found, wanted in zip(on_ray.rows, loop.rows, strict=True):
        assert found.keys() == wanted.keys()
        assert all(found[key] == wanted[key] for key in wanted if not key.endswith("seconds"))
    assert actors.running == 0


def test_a_client_that_fails_is_named(actors: type[Actors], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Actors, message: Message, context: Context) -> tuple[Message, Context]:
        try:
            raise ArithmeticError("first line\nno step today")
        except ArithmeticError as error:
            raise RuntimeError("far away") from error

    monkeypatch.setattr(actors, "process_message", fail)
    with pytest.raises(RuntimeError, match=r"client \d failed on a .train. message: no step today"):
        fedpisa.run({**SMALL, "engine": "ray"})
    assert actors.running == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("nobody there"), r"ray-address = None: there is no Ray cluster \(nobody there\)"),
        (ValueError("ActorPool is empty"), "num-cpus = 1, num-gpus = 0: not one client fits"),
    ],
    ids=["connection", "resources"],
)
def test_a_cluster_that_cannot_be_used(
    error: Exception, said: str, actors: type[Actors], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr(ray_grid, "start_ray", refuse)
    with pytest.raises(ValueError, match=said):
        fedpisa.run({**SMALL, "engine": "ray"})


def test_without_ray_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_grid, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fedpisa\[ray\]'"):
        fedpisa.run({"engine": "ray"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gpu_needs_a_part_of_it(actors: type[Actors]) -> None:
    config = fedpisa.RunConfig(engine="ray", device="cuda")
    with pytest.raises(ValueError, match="set num-gpus"):
        ray_grid.RayGrid(config)
    assert ray_grid.RayGrid(config.replace({"num-gpus": 0.25})).run_config["device"] == "cuda"
    assert ray_grid.RayGrid(config.replace({"device": "auto"})).run_config["device"] == "cpu"


def test_a_client_that_fails_costs_its_reply(actors: type[Actors], monkeypatch: pytest.MonkeyPatch) -> None:
    process = actors.process_message

    def fail(self: Actors, message: Message, context: Context) -> tuple[Message, Context]:
        if (message.content["config"]["server-round"], context.node_config["partition-id"]) == (2, 1):
            raise ArithmeticError("no step today")
        return process(self, message, context)

    monkeypatch.setattr(actors, "process_message", fail)
    result = fedpisa.run({**SMALL, "engine": "ray"})
    assert result.status == "finished"
    assert result.history["dropped_replies"].dropna().tolist() == [1]
