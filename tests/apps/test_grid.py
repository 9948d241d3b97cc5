"""A run on nodes equals the simulation, also if messages get lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

import fedpisa
from fedpisa.apps.records import NodeRecord
from fedpisa.config.run import RunConfig
from fedpisa.rng import generator
from fedpisa.runs.events import Event, RoundFinished
from fedpisa.runs.results import load_result

ALGORITHMS = ("sisa", "scaffold")


def config(algorithm: str = "sisa", **keys: Any) -> RunConfig:
    keys = {"num-clients": 3, "num-server-rounds": 5, "dataset": "synthetic", "engine": "loop", **keys}
    return RunConfig.from_mapping({"algorithm": algorithm, **keys})


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one.parameters[name], other.parameters[name]) for name in other.parameters)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "iiadmm", "fedavg"])
def test_the_same_model_as_in_the_simulation(tmp_path: Path, nodes: Any, algorithm: str) -> None:
    """Nodes give the simulation's model for any order of partitions and with a part of the clients."""
    case = config(algorithm, **{"fraction-train": 0.7})
    result = nodes.start(nodes.network(tmp_path / "nodes", case, order=[2, 0, 1]), case, tmp_path / "run")
    loop = fedpisa.run(case)
    assert same(result, loop)
    for mine, other in zip(result.rows, loop.rows, strict=True):
        shared = {"train_loss", "test_loss", "test_accuracy", "bytes_up", "local_steps"} & other.keys()
        assert {k: mine[k] for k in shared} == {k: other[k] for k in shared}
    about = load_result(tmp_path / "run")
    assert same(about, loop)
    assert all(map(np.array_equal, about.partition, loop.partition))


@pytest.mark.parametrize(
    "keys",
    [
        {"server-strategy": "fed-adam"},
        {
            "differential-privacy": "central",
            "clipping-norm": 1,
            "noise-multiplier": 0.1,
            "secure-noise": False,
            "algorithm": "localsgd",
        },
        {"schedule": "cosine", "warmup-rounds": 2},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_the_same_with_flowers_strategies_and_schedules(
    tmp_path: Path, nodes: Any, keys: dict[str, Any]
) -> None:
    case = config(**{"algorithm": "fedavg", "fraction-train": 0.7, "per-client": True, **keys})
    result = nodes.start(nodes.network(tmp_path / "nodes", case, order=[2, 0, 1]), case, tmp_path / "run")
    loop = fedpisa.run(case)
    assert same(result, loop)
    pd.testing.assert_frame_equal(result.clients, loop.clients)


def test_privacy_on_nodes_draws_from_the_operating_system(tmp_path: Path, nodes: Any) -> None:
    """Two runs of one seed differ on nodes, and redrawing the seed's noise removes none of theirs."""
    keys = {
        "differential-privacy": "central",
        "clipping-norm": 1,
        "noise-multiplier": 2.0,
        "num-server-rounds": 1,
    }
    case = config("localsgd", **keys)

    def model(place: str, case: RunConfig) -> np.ndarray:
        result = nodes.start(nodes.network(tmp_path / f"{place}-nodes", case), case, tmp_path / place)
        return np.concatenate([array.ravel() for array in result.parameters.values()])

    first, second = model("first", case), model("second", case)
    plain = model("plain", case.replace({"noise-multiplier": 0.0}))
    hidden, other = ((one - plain) * case.num_clients / 2.0 for one in (first, second))
    drawn = generator(case.seed, "privacy-noise", 1).standard_normal(plain.size)
    loop = np.concatenate([array.ravel() for array in fedpisa.run(case).parameters.values()])
    bound = 5 / np.sqrt(plain.size)
    assert np.corrcoef((loop - plain) * case.num_clients / 2.0, drawn)[0, 1] > 1 - 1e-6
    assert abs(np.corrcoef(hidden, drawn)[0, 1]) < bound
    assert abs(np.corrcoef(hidden, other)[0, 1]) < bound
    assert hidden.std() == pytest.approx(1, abs=5 / np.sqrt(plain.size))
    record = json.loads((tmp_path / "first" / "run.json").read_text())["privacy"]
    assert (record["noise"], record["rounds"]) == ("operating system", 1)
    wrapped = case.replace(
        {"differential-privacy": "server-fixed-clipping", "clipping-norm": 1, "noise-multiplier": 1}
    )
    with pytest.raises(ValueError, match="from the seed, which every node reads"):
        model("wrapped", wrapped)


def test_the_server_waits_as_long_as_the_key_says(tmp_path: Path, nodes: Any) -> None:
    """A round without enough replies in time does not change the model."""
    case = config(**{"round-timeout": 1e-9, "num-server-rounds": 2})
    network = nodes.network(tmp_path, case)
    result = nodes.start(network, case, None)
    initial = fedpisa.run(config(**{"num-server-rounds": 1, "dropout": 1.0}))
    assert same(result, initial)
    assert [row["replies"] for row in result.rows[1:]] == [0, 0]


@pytest.mark.parametrize("key", [{"exact-diagnostics": True}, {"dropout": 0.1}, {"pace": "constant"}])
def test_what_needs_simulated_clients_is_refused(tmp_path: Path, nodes: Any, key: dict[str, Any]) -> None:
    case = config(**key)
    with pytest.raises(ValueError, match="remove the keys if clients are real nodes"):
        nodes.start(nodes.network(tmp_path, case), case, None)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("what", ["request", "reply", "report"])
def test_what_gets_lost_changes_nothing(tmp_path: Path, nodes: Any, algorithm: str, what: str) -> None:
    """A lost message changes no bit of the model or of any node's state."""
    case = config(algorithm)
    clean, lossy = (nodes.network(tmp_path / name, case) for name in ("clean", "lossy"))
    lossy.trouble = nodes.once(what, (0, 1), (1, 0), (2, 1), (2, 2), (4, 0))
    results = [nodes.start(network, case, None) for network in (clean, lossy)]
    assert same(results[1], results[0])
    assert lossy.delivered > clean.delivered or what == "request"
    assert len(files(tmp_path / "clean")) == 3
    assert files(tmp_path / "lossy") == files(tmp_path / "clean")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_goes_on_after_the_server_was_killed(tmp_path: Path, nodes: Any, algorithm: str) -> None:
    """A run resumes under another Flower run, although the nodes are one round ahead of the server."""
    case = config(algorithm)
    network, clean = nodes.network(tmp_path / "nodes", case), nodes.network(tmp_path / "clean", case)
    before = nodes.start(clean, case, None)

    class Killed(BaseException):
        pass

    def trouble(server_round: int, client: int) -> str | None:
        if (server_round, client) == (4, 2):
            raise Killed
        return None

    network.trouble = trouble
    with pytest.raises(Killed):
        nodes.start(network, case, tmp_path / "run")
    for node_id in network.get_node_ids():
        network.restart(node_id)
    network.trouble = lambda server_round, client: None
    result = nodes.start(network, case, None, resume=tmp_path / "run")
    assert [row["round"] for row in result.rows] == [0, 1, 2, 3, 4, 5]
    assert same(result, before)
    assert files(tmp_path / "nodes") == files(tmp_path / "clean")


def test_a_node_that_lost_everything_makes_scaffold_begin_anew(tmp_path: Path, nodes: Any) -> None:
    """SCAFFOLD resets all control variates and still reaches about the same loss."""
    case = config("scaffold", **{"num-server-rounds": 30})
    network = nodes.network(tmp_path / "nodes", case)
    network.trouble = nodes.once("files", (4, 1))
    result = nodes.start(network, case, None)
    clean = fedpisa.run(case)
    assert not same(result, clean)
    assert result.last("test_loss") == pytest.approx(clean.last("test_loss"), rel=0.05)


def test_connecting_says_what_is_wrong(tmp_path: Path, nodes: Any) -> None:
    case = config()
    with pytest.raises(ValueError, match="partition-ids are \\[0, 1, 1\\]: give each of the 3 nodes one"):
        nodes.start(nodes.network(tmp_path, case, order=[0, 1, 1]), case, None)
    with pytest.raises(ValueError, match="4 nodes are connected, and num-clients = 3"):
        nodes.start(nodes.network(tmp_path, case, order=[0, 1, 2, 3]), case, None)
    with pytest.raises(
        ValueError, match=r"node 2 cannot take part: num-partitions = 4 and .* num-clients = 3"
    ):
        nodes.start(nodes.network(tmp_path, case, **{"num-partitions": [4, 4, 4]}), case, None)
    with pytest.raises(ValueError, match=r"node 2 has samples of shape \(1, 8, 8\), the server"):
        nodes.start(nodes.network(tmp_path, config(dataset="digits")), case, None)


def test_too_few_nodes_is_said_in_time(tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedpisa.apps.grid as module

    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    case = config()
    network = nodes.network(tmp_path, case, order=[0, 1])
    with pytest.raises(
        ValueError, match="2 of num-clients = 3 nodes were connected after 600 s: start the others"
    ):
        nodes.start(network, case, None)


def test_an_answer_can_be_anything(tmp_path: Path, nodes: Any) -> None:
    from flwr.app import ConfigRecord, RecordDict

    good = NodeRecord(0, False, 10, (3,), 2, "abc").to_record()
    for name, value in (
        ("client", "0"),
        ("client", True),
        ("own-data", 1),
        ("num-examples", 1.5),
        ("shape", [1.5]),
        ("shape", ["3"]),
        ("shape", 3),
        ("num-outputs", [2]),
        ("layout", 7),
    ):
        with pytest.raises(ValueError, match="run the same version"):
            NodeRecord.of(RecordDict({NodeRecord.NAME: ConfigRecord({**good, name: value})}))
    for name in good:
        with pytest.raises(ValueError, match="run the same version"):
            NodeRecord.of(
                RecordDict({NodeRecord.NAME: ConfigRecord({k: v for k, v in good.items() if k != name})})
            )
    with pytest.raises(ValueError, match="lacks the record"):
        NodeRecord.of(RecordDict())


def table(path: Path, rng: np.random.Generator, labels: list[str], samples: int) -> None:
    y = rng.choice(labels, samples)
    x = rng.normal(size=(samples, 3)) + 3 * (y == "yes")[:, None]
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "sick": y}).to_csv(path, index=False)


@pytest.fixture
def hospitals(tmp_path: Path) -> dict[str, Any]:
    """Write a table for the server and for each of three nodes.

    One node lacks a class, and one has a folder of tables.
    """
    rng = np.random.default_rng(0)
    (tmp_path / "third").mkdir()
    table(tmp_path / "server.csv", rng, ["no", "yes"], 50)
    table(tmp_path / "first.csv", rng, ["no", "yes"], 40)
    table(tmp_path / "second.csv", rng, ["yes"], 30)
    table(tmp_path / "third" / "1.csv", rng, ["no", "yes"], 20)
    table(tmp_path / "third" / "2.csv", rng, ["no"], 20)
    own = config(dataset="file", **{"data-file": str(tmp_path / "server.csv"), "label-column": "sick"})
    data = [str(tmp_path / name) for name in ("first.csv", "second.csv", "third")]
    return {"config": own, "data": data}


@pytest.mark.parametrize("numbered", [True, False])
def test_nodes_train_on_tables_of_their_own(
    tmp_path: Path, nodes: Any, hospitals: dict[str, Any], numbered: bool
) -> None:
    """Nodes with their own tables give the model of a simulation on the same samples.

    The server sees none of these samples.
    """
    own = hospitals["config"].replace({"algorithm": "fedavg", "batch-size": "full", "local-epochs": 3})
    more = {} if numbered else {"partition-id": [None] * 3, "num-partitions": [None] * 3}
    network = nodes.network(tmp_path / "nodes", own, data=hospitals["data"], **more)
    result = nodes.start(network, own, tmp_path / "run", own_data=True)
    assert len(load_result(tmp_path / "run").partition) == 0

    frames = [pd.read_csv(path) for path in hospitals["data"][:2]]
    frames += [pd.concat(pd.read_csv(f) for f in sorted(Path(hospitals["data"][2]).iterdir()))]
    both = pd.concat([frame.assign(who=number) for number, frame in enumerate(frames)])
    test = pd.read_csv(tmp_path / "server.csv")
    arrays = {
        f"{name}{part}": value
        for part, frame in (("", both), ("_test", test))
        for name, value in (
            ("x", frame[["a", "b", "c"]].to_numpy(np.float32)),
            ("y", frame["sick"].to_numpy(str)),
        )
    }
    np.savez(tmp_path / "all.npz", **arrays, groups=both["who"].to_numpy())
    whole = own.replace({"data-file": str(tmp_path / "all.npz"), "partitioner": "natural"})
    whole = RunConfig.from_mapping({**whole.to_mapping(), "label-column": "label"})
    simulated = fedpisa.run(whole)
    for name, value in simulated.parameters.items():
        np.testing.assert_allclose(result.parameters[name], value, atol=1e-6)


def test_the_server_measures_no_client_whose_samples_it_lacks(
    tmp_path: Path, nodes: Any, hospitals: dict[str, Any]
) -> None:
    own = hospitals["config"].replace({"per-client": True})
    with pytest.raises(ValueError, match=r"per-client = true .* if clients are real nodes"):
        nodes.start(nodes.network(tmp_path, own, data=hospitals["data"]), own, None, own_data=True)


def test_an_error_quotes_no_sample(tmp_path: Path, nodes: Any, hospitals: dict[str, Any]) -> None:
    (tmp_path / "first.csv").write_text("a,b,c,sick\n1,2,3,Rosa Luxemburg\n4,5,6,no\n")
    network = nodes.network(tmp_path / "nodes", hospitals["config"], data=hospitals["data"])
    with pytest.raises(
        ValueError, match=r"node 2 cannot take part: the node's own data cannot be used"
    ) as error:
        nodes.start(network, hospitals["config"], None, own_data=True)
    assert "Rosa" not in str(error.value)


def test_a_node_has_no_mini_batch_of_one_sample_under_batchnorm(
    tmp_path: Path, nodes: Any, hospitals: dict[str, Any]
) -> None:
    keys = {"model": "tests.apps.test_grid:with_batchnorm", "batch-size": 1}
    own = hospitals["config"].replace(keys)
    allowed = {"allow-modules": ["tests.apps.test_grid"] * len(hospitals["data"])}
    network = nodes.network(tmp_path, own, data=hospitals["data"], **allowed)
    with pytest.raises(
        ValueError, match=r"node 2 cannot take part: .*a mini-batch of one sample.*batch-size"
    ):
        nodes.start(network, own, None, own_data=True)


def with_batchnorm(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, num_outputs))


def test_columns_have_to_agree(
    tmp_path: Path, nodes: Any, hospitals: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "first.csv").write_text("a,b,sick\n1,2,yes\n4,5,no\n")
    network = nodes.network(tmp_path / "nodes", hospitals["config"], data=hospitals["data"])
    with pytest.raises(ValueError, match=r"node 2 cannot take part: .* its log says why"):
        nodes.start(network, hospitals["config"], None, own_data=True)
    assert "first.csv has no column 'c'" in caplog.text


def test_a_node_with_data_and_a_run_without_do_not_go_together(
    tmp_path: Path, nodes: Any, hospitals: dict[str, Any]
) -> None:
    network = nodes.network(tmp_path / "nodes", hospitals["config"], data=hospitals["data"])
    network.run_config["node-data"] = "partition"
    with pytest.raises(ValueError, match='set node-data = "own"'):
        nodes.start(network, hospitals["config"], None)


def test_events_are_those_of_any_run(tmp_path: Path, nodes: Any) -> None:
    events: list[Event] = []
    case = config(**{"num-server-rounds": 2})
    nodes.start(nodes.network(tmp_path, case), case, None, on_event=events.append)
    assert [event.row["round"] for event in events if isinstance(event, RoundFinished)] == [0, 1, 2]
