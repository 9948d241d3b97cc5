"""Flower's strategies and apps run unchanged, and messages follow Flower's definitions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedpisa.flower.compat import TensorArray, payload_bytes, to_record, to_tensor
from fedpisa.flower.messages import SERVER_ROUND, count_bytes
from fedpisa.simulation.loop import LoopGrid
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.server import run_server_app

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: flower.FedAvg(),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": lambda: flower.FedAdam(eta=0.01),
    "FedYogi": lambda: flower.FedYogi(eta=0.01),
    "FedAdagrad": lambda: flower.FedAdagrad(eta=0.01),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.5),
    "FedMedian": lambda: flower.FedMedian(),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.2),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1),
    "half of the clients": lambda: flower.FedAvg(fraction_train=0.5, fraction_evaluate=0.5),
}


def fedavg(lab: Any, engine: str, **keys: Any) -> Any:
    values = {"local-epochs": 2, **{name.replace("_", "-"): value for name, value in keys.items()}}
    return lab.make(lab.Case("fedavg", values).build(), engine)


def tensor(arrays: Any) -> torch.Tensor:
    return torch.from_numpy(arrays["params"].numpy())


# ------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies_run_unchanged(lab: Any, name: str) -> None:
    """Both Grids, with our loop and with `start`, give the same model, which differs from the initial one."""
    models, losses = [], []
    for engine in ("loop", "vmap"):
        federation = fedavg(lab, engine)
        random.seed(0)
        *_, last = rounds(STRATEGIES[name](), federation.grid, federation.initial, 3)
        models.append(tensor(last.arrays))
        losses.append(last.evaluate_metrics["loss"])
        assert 0 <= last.evaluate_metrics["accuracy"] <= 1
        assert np.isfinite(last.train_metrics["train-loss"])
        assert last.bytes_down > 0
        assert last.bytes_up == last.bytes_down

        again = fedavg(lab, engine)
        random.seed(0)
        result = STRATEGIES[name]().start(again.grid, again.initial, num_rounds=3)
        models.append(tensor(result.arrays))
        losses.append(result.evaluate_metrics_clientapp[3]["loss"])
    start = again.task.initial_params()
    assert lab.relative(models[0], start) > 1e-3
    for model in models[1:]:
        assert lab.relative(model, models[0]) < 1e-9
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)


def test_flowers_fedavg_is_ours(lab: Any, engine: str) -> None:
    """Flower's FedAvg gives our model, including BatchNorm's buffers."""

    def module() -> nn.Module:
        return lab.fill(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))

    algorithm = lab.Case("fedavg", {"momentum": 0.5}).build()
    ours = lab.make(algorithm, engine, module=module).run(3)
    theirs = lab.make(algorithm, engine, module=module)
    *_, last = rounds(flower.FedAvg(), theirs.grid, theirs.initial, 3)
    for name, wanted in ours.model().items():
        assert lab.relative(torch.from_numpy(last.arrays[name].numpy()), wanted) < 1e-13
    for name in ("train-loss",):
        assert last.train_metrics[name] == pytest.approx(ours.history[-1].train_metrics[name])


@pytest.mark.parametrize("mu", [0.5, 2])
def test_the_proximal_term_acts(lab: Any, engine: str, mu: float) -> None:
    """One full-batch round with K = 2 equals plain autograd.

    The step is ``v_2 = v_1 - lr (grad f(v_1) + mu (v_1 - w))``. ``mu`` may be an integer or a float.
    """
    federation = lab.make(lab.Case("fedavg", {"local-steps": 2, "batch-size": "full"}).build(), engine)
    *_, last = rounds(flower.FedProx(proximal_mu=mu), federation.grid, federation.initial, 1)

    wanted = torch.zeros(federation.task.layout.size, dtype=torch.float64)
    for client_id, size in enumerate(lab.SIZES):
        x, y = federation.data.client(client_id)
        model, start = lab.mlp().double(), lab.mlp().double()
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(x), y)
            for v, w in zip(model.parameters(), start.parameters(), strict=True):
                loss = loss + mu / 2 * ((v - w.detach()) ** 2).sum()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for v, g in zip(model.parameters(), gradients, strict=True):
                    v -= 0.05 * g
        flat = torch.cat([v.detach().flatten() for v in model.parameters()])
        wanted += size / sum(lab.SIZES) * flat
    assert lab.relative(tensor(last.arrays), wanted) < 1e-13


@pytest.mark.parametrize("name", ["sisa", "fedavg", "fedsgd"])
def test_our_strategy_runs_by_flowers_own_start(lab: Any, name: str, engine: str) -> None:
    """`Strategy.start` and `rounds` give the same model."""
    algorithm = lab.Case(name, {}).build()
    ours, theirs = (lab.make(algorithm, engine, fraction=0.5) for _ in range(2))
    ours.run(3)
    result = theirs.strategy.start(theirs.grid, theirs.initial, num_rounds=3)
    assert torch.equal(tensor(result.arrays), ours.params)


def test_a_strategy_that_is_started_again_starts_afresh(lab: Any) -> None:
    """A second `start` begins with the given arrays and fresh clients."""
    algorithm = lab.Case("sisa", {}).build()
    first, second = (lab.make(algorithm, "vmap") for _ in range(2))
    once = tensor(first.strategy.start(first.grid, first.initial, num_rounds=2).arrays)
    twice = tensor(first.strategy.start(second.grid, second.initial, num_rounds=2).arrays)
    assert torch.equal(once, twice)


# ------------------------------------------------------------------------------- a plain pair of apps


def quickstart() -> tuple[ServerApp, ClientApp, dict[str, Any]]:
    """Return apps like those of Flower's PyTorch quickstart, and the server app's results."""
    seen: dict[str, Any] = {"evaluations": []}
    centre = torch.tensor([2.0, -1.0, 0.5])

    def load(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(20 + 5 * partition, 3, generator=torch.Generator().manual_seed(partition))
        return x, x @ centre + 0.1 * partition

    def new() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 1)

    client_app = ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        model = new()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = load(int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=float(message.content["config"]["lr"]))
        for _ in range(int(context.run_config["local-epochs"])):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x).flatten(), y)
            loss.backward()
            optimizer.step()
        rounds_so_far = int(context.state.config_records["mine"]["rounds"]) if "mine" in context.state else 0
        context.state["mine"] = ConfigRecord({"rounds": rounds_so_far + 1})
        metrics = MetricRecord(
            {"train_loss": loss.item(), "num-examples": len(x), "rounds": rounds_so_far + 1}
        )
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @client_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = new()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = load(int(context.node_config["partition-id"]))
        loss = nn.functional.mse_loss(model(x).flatten(), y).item()
        metrics = MetricRecord({"eval_loss": loss, "num-examples": len(x)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            weight = arrays.to_torch_state_dict()["weight"][0]
            seen["evaluations"].append(server_round)
            return MetricRecord({"error": float((weight - centre).norm())})

        seen["result"] = flower.FedAvg(fraction_evaluate=0.5).start(
            grid=grid,
            initial_arrays=ArrayRecord(new().state_dict()),
            train_config=ConfigRecord({"lr": 0.1}),
            num_rounds=int(context.run_config["num-server-rounds"]),
            evaluate_fn=global_evaluate,
        )

    return server_app, client_app, seen


def test_a_plain_pair_of_flower_apps_runs_on_the_loop_grid() -> None:
    server_app, client_app, seen = quickstart()
    run_config = {"num-server-rounds": 10, "local-epochs": 3}
    run_server_app(server_app, LoopGrid(client_app, 4, run_config), run_config)
    result = seen["result"]
    assert seen["evaluations"] == list(range(11))
    assert (
        result.evaluate_metrics_serverapp[10]["error"] < 0.1 * result.evaluate_metrics_serverapp[0]["error"]
    )
    assert result.train_metrics_clientapp[10]["train_loss"] < result.train_metrics_clientapp[1]["train_loss"]
    assert result.train_metrics_clientapp[10]["rounds"] == pytest.approx(10)
    assert set(result.evaluate_metrics_clientapp) == set(range(1, 11))


def test_a_failing_client_app_says_who_and_why() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyError("no such file")

    grid = LoopGrid(app, 2)
    message = Message(RecordDict({"config": ConfigRecord({SERVER_ROUND: 1})}), 3, MessageType.TRAIN)
    with pytest.raises(RuntimeError, match=r"client 1 failed on a 'train' message: .*no such file"):
        grid.send_and_receive([message])


# --------------------------------------------------------------------------------------------- messages


def test_push_and_pull(lab: Any, engine: str) -> None:
    """Each reply can be pulled once, by the number of its pushed message, and names its request."""
    federation = fedavg(lab, engine)
    direct = fedavg(lab, engine)
    requests = list(federation.strategy.configure_train(1, federation.initial, {}, federation.grid))
    numbers = federation.grid.push_messages(requests)
    assert len(set(numbers)) == len(requests)
    first = federation.grid.pull_messages(numbers[:2])
    rest = federation.grid.pull_messages([*numbers[::-1], "unknown"])
    assert [reply.metadata.reply_to_message_id for reply in [*first, *rest]] == [
        *numbers[:2],
        *numbers[:1:-1],
    ]
    assert federation.grid.pull_messages(numbers) == []
    wanted = direct.strategy.configure_train(1, direct.initial, {}, direct.grid)
    by_node = {
        r.metadata.src_node_id: tensor(r.content["arrays"]) for r in direct.grid.send_and_receive(wanted)
    }
    for reply in [*first, *rest]:
        assert torch.equal(tensor(reply.content["arrays"]), by_node[reply.metadata.src_node_id])


def test_nodes(lab: Any, engine: str) -> None:
    grid = fedavg(lab, engine).grid
    assert list(grid.get_node_ids()) == [2, 3, 4, 5, 6, 7]
    message = grid.create_message(RecordDict(), MessageType.TRAIN, 4, "group")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (4, "group")
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({SERVER_ROUND: 1})})
    with pytest.raises(ValueError, match="there is no node 8"):
        list(grid.send_and_receive([Message(content, 8, MessageType.TRAIN)]))
    assert grid.run.run_id == 0


def test_a_message_that_is_neither_train_nor_evaluate_is_refused(lab: Any, engine: str) -> None:
    federation = fedavg(lab, engine)
    content = RecordDict({"arrays": federation.initial, "config": ConfigRecord({SERVER_ROUND: 1})})
    with pytest.raises((ValueError, RuntimeError), match="query"):
        list(federation.grid.send_and_receive([Message(content, 2, MessageType.QUERY)]))


def test_the_loop_grid_shares_nothing_with_its_clients() -> None:
    """A client app's changes to its content reach neither the server nor the next client."""
    received = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = message.content
        received.append((content["arrays"]["w"].numpy().tolist(), list(content["config"]["layers"])))
        content["arrays"]["w"].data = b"spoilt"
        content["config"]["layers"].append(99)
        content["config"]["lr"] = -1.0
        content["metrics"]["losses"].append(99.0)
        content["arrays"]["more"] = Array(np.zeros(1))
        mine.append(Array(np.arange(3.0)))
        return Message(RecordDict({"arrays": ArrayRecord({"w": mine[-1]})}), reply_to=message)

    mine: list[Array] = []
    content = RecordDict(
        {
            "arrays": to_record({"w": torch.ones(2)}),
            "config": ConfigRecord({"layers": [1, 2], "lr": 0.1}),
            "metrics": MetricRecord({"losses": [0.5]}),
        }
    )
    replies = list(
        LoopGrid(app, 3).send_and_receive([Message(content, n, MessageType.TRAIN) for n in (2, 3, 4)])
    )
    assert received == [([1.0, 1.0], [1, 2])] * 3
    assert dict(content["config"]) == {"layers": [1, 2], "lr": 0.1}
    assert dict(content["metrics"]) == {"losses": [0.5]}
    assert content["arrays"]["w"].numpy().tolist() == [1.0, 1.0]
    assert list(content["arrays"]) == ["w"]
    mine[0].data = b"spoilt"
    assert replies[0].content["arrays"]["w"].numpy().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype_name", ["float32", "float64", "float16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)], ids=str)
def test_a_tensor_array_is_an_array(dtype_name: str, shape: tuple[int, ...]) -> None:
    """Bytes, object id and values equal those of Flower's own array."""
    values = (torch.arange(int(np.prod(shape))).reshape(shape) % 2).to(getattr(torch, dtype_name))
    array = TensorArray(values)
    own = Array(values.numpy())
    assert (array.dtype, tuple(array.shape), array.stype) == (own.dtype, tuple(own.shape), own.stype)
    assert array.data == own.data
    assert array.object_id == own.object_id
    chunks = {key: type(chunk).inflate(chunk.deflate()) for key, chunk in array.children.items()}
    back = Array.inflate(array.deflate(), chunks)
    np.testing.assert_array_equal(back.numpy(), values.numpy())
    assert back.numpy().dtype == values.numpy().dtype
    assert payload_bytes({"a": array}) == values.numel() * values.element_size()
    assert torch.equal(to_tensor(back, values.dtype, torch.device("cpu")), values)
    assert to_tensor(array, values.dtype, torch.device("cpu")) is values


def test_numpy_of_a_tensor_array_is_a_copy() -> None:
    """`numpy` returns a copy, because Flower's strategies add in place."""
    values = torch.zeros(3)
    TensorArray(values).numpy()[:] = 1
    assert not bool(values.any())


def test_bytes_count_the_numbers_of_every_message(lab: Any, engine: str) -> None:
    """``S`` clients receive and send ``P`` float64 each; a stacked reply's labels are counted once."""
    federation = lab.make(lab.Case("sisa", {}).build(), engine, fraction=0.5).run(1)
    size = 3 * 8 * federation.task.layout.size
    assert (federation.history[0].bytes_down, federation.history[0].bytes_up) == (size, size)
    requests = federation.strategy.configure_train(2, federation.history[0].arrays, {}, federation.grid)
    assert count_bytes(requests) == count_bytes(list(requests)) == size
    replies = federation.grid.send_and_receive(requests)
    assert count_bytes(replies) == count_bytes(list(replies)) == size
