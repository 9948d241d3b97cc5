"""Flower's own SuperLink and SuperNodes on this machine: one configuration, one model, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

import fedpisa
from fedpisa.apps.handlers import STATE
from fedpisa.apps.settings import NodeSettings, to_run_config
from fedpisa.apps.states import Owner, StateFile
from fedpisa.config import RunConfig
from fedpisa.deployment import processes
from fedpisa.deployment.certificates import CA, make_certificates, make_node_key
from fedpisa.deployment.local import CONNECTION, Deployment, free_port, which, write_app
from fedpisa.results import load_result
from fedpisa.simulation.simulation import Simulation

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
NODES = 3


def until(condition: Callable[[], Any], seconds: float = 1200.0) -> Any:
    """Return what a condition gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
    return found


def config(algorithm: str, **keys: object) -> RunConfig:
    values = {"dataset": "synthetic", "num-clients": NODES, "num-server-rounds": 5, "dtype": "float32"}
    return RunConfig.from_mapping({"algorithm": algorithm, "device": "cpu", **values, **keys})


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Start a SuperLink and three nodes; everything is ended, whatever happens to the tests."""
    folder = tmp_path_factory.mktemp("deployment")
    before = dict(os.environ)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), before.get("PYTHONPATH", "")])
    os.environ |= {"PYTHONPATH": path, "FEDPISA_TEST_GATE": str(folder), "OMP_NUM_THREADS": "1"}
    configs = [{"partition-id": node, "num-partitions": NODES} for node in range(NODES)]
    deployment = Deployment.prepare(folder / "private", f"127.0.0.1:{free_port()}", configs)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down()
        os.environ.clear()
        os.environ.update(before)
    assert not any(process.alive for process in deployment.processes())


def submit(deployment: Deployment, settings: NodeSettings, run: RunConfig) -> str:
    """Start a run and return Flower's number of it."""
    app = write_app(deployment.folder / "app", to_run_config(settings, run))
    said = deployment.flower("flwr", "run", str(app), CONNECTION, "--format", "json")
    number: str = json.loads(said[said.index("{") :])["run-id"]
    return number


def rounds_of(out: Path) -> int:
    """Return how many rounds a run's directory has."""
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) - 1 if file.exists() else -1


def finished(deployment: Deployment, out: Path) -> bool:
    with suppress(FileNotFoundError):
        status = json.loads((out / "run.json").read_bytes())["status"]
        assert status in ("running", "finished"), (deployment.folder / "superlink.log").read_text()[-3000:]
        return status == "finished"
    return False


def assert_same(out: Path, run: RunConfig) -> None:
    """Compare the model with that of both engines."""
    found = load_result(out)
    for engine in ("loop", "vmap"):
        simulated = fedpisa.run(run.replace({"engine": engine}))
        assert found.parameters.keys() == simulated.parameters.keys()
        for name, value in simulated.parameters.items():
            np.testing.assert_allclose(found.parameters[name], value, rtol=1e-6, atol=1e-6)
        assert [row["round"] for row in found.rows] == [row["round"] for row in simulated.rows]


def assert_same_states(deployment: Deployment, out: Path, run: RunConfig) -> None:
    """Compare every node's state with that of the loop engine's client."""
    about = json.loads((out / "run.json").read_bytes())
    simulation = Simulation(run.replace({"engine": "loop"}))
    for _ in simulation.rows():
        pass
    for client in range(NODES):
        owner = Owner(about["run"], run.algorithm, about["layout"], client)
        kept, states = RecordDict(), simulation.grid.client_states
        assert StateFile(deployment.folder / f"node-{client}" / "state", owner).read_into(kept)
        wanted = states.state(client) if states is not None else None
        assert wanted
        for name, value in wanted.items():
            own = kept.array_records[STATE][name].numpy()
            np.testing.assert_allclose(own, value.numpy(), rtol=1e-5, atol=1e-6)


def test_sisa_is_the_same_as_in_the_simulation(deployment: Deployment, tmp_path: Path) -> None:
    run, out = config("sisa"), tmp_path / "run"
    submit(deployment, NodeSettings(out=str(out)), run)
    until(lambda: finished(deployment, out))
    assert_same(out, run)
    assert_same_states(deployment, out, run)


def test_scaffold_is_the_same_after_kills(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kill -9`` of a SuperNode in its local step, and of the SuperLink between two rounds."""
    monkeypatch.syspath_prepend(str(HERE))
    run, out = config("scaffold", model="held_model:held"), tmp_path / "run"
    gate = Path(os.environ["FEDPISA_TEST_GATE"])
    submit(deployment, NodeSettings(out=str(out)), run)
    until(lambda: rounds_of(out) >= 1)
    (gate / "hold").touch()
    held = until(lambda: list(gate.glob("held-*")))[0]
    client_app = int(held.name.removeprefix("held-"))
    node = next(p for p in deployment.processes() if p.pid in ancestors(client_app))
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not process_is_there(client_app))
    number = int(node.name.removeprefix("node-"))
    # Flower lets the node in again when it has missed two heartbeats, after a minute.
    until(lambda: any(known["status"] == "offline" for known in deployment.known_nodes()))
    deployment.start_node(number)

    until(lambda: rounds_of(out) >= 3)
    superlink = next(p for p in deployment.processes() if p.name == "superlink")
    os.kill(superlink.pid, signal.SIGKILL)
    until(lambda: not is_locked(out))
    assert 3 <= rounds_of(out) < 5
    deployment.start_superlink()
    deployment.wait_for_nodes()
    submit(deployment, NodeSettings(resume=str(out)), run.replace({"checkpoint-every": 1}))
    until(lambda: finished(deployment, out))
    assert_same(out, run)
    assert_same_states(deployment, out, run)


def ancestors(pid: int) -> list[int]:
    """Return a process's parent, that one's, and so on."""
    found = []
    while pid > 1:
        said = subprocess.run(
            ["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        pid = int(said.stdout.strip() or 0)
        found.append(pid)
    return found


def process_is_there(pid: int) -> bool:
    return processes.started_at(pid) is not None


def is_locked(out: Path) -> bool:
    """Tell whether the server app still writes to its directory."""
    from fedpisa.storage import InUseError, held

    try:
        with held(out):
            return False
    except InUseError:
        return True


def test_strangers_are_refused(deployment: Deployment, tmp_path: Path) -> None:
    """A node without a key, with a key that nobody registered, in plain text, or that trusts another authority."""
    make_node_key(tmp_path / "stranger.key")
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(other, ["127.0.0.1"])
    known = {node["node-id"]: node["status"] for node in deployment.known_nodes()}
    trust = ["--root-certificates", str(deployment.folder / CA)]
    key = ["--auth-supernode-private-key", str(deployment.folder / "node-0.key")]
    cases = {
        "without a key": trust,
        "wrong key": [*trust, "--auth-supernode-private-key", str(tmp_path / "stranger.key")],
        "plain text": ["--insecure"],
        "wrong authority": ["--root-certificates", str(other / CA), *key],
    }
    started = {
        name: subprocess.Popen(
            [
                *(which("flower-supernode"), *options, "--superlink", deployment.address),
                *("--max-retries", "1", "--port", str(free_port())),
            ],
            env={**deployment.environment(tmp_path / "flower"), processes.MARK: str(deployment.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for name, options in cases.items()
    }
    said = {}
    try:
        for name, process in started.items():
            said[name] = process.communicate(timeout=120)[0]
    finally:
        for process in started.values():
            process.kill()
    for name, process in started.items():
        assert process.returncode != 0, (name, said[name])
        assert "SuperNode ID" not in said[name], name
        assert "Failed to initialize the connection" in said[name], (name, said[name])
    assert "must be registered" in said["without a key"]
    assert "Failed to activate" in said["wrong key"]
    assert "certificate verify failed" in said["wrong authority"].lower()
    assert {node["node-id"]: node["status"] for node in deployment.known_nodes()}.keys() == known.keys()
    # Commands in plain text get no answer either.
    plain = f'[superlink.{CONNECTION}]\naddress = "{deployment.address}"\ninsecure = true\n'
    (tmp_path / "flower").mkdir(exist_ok=True)
    (tmp_path / "flower" / "config.toml").write_text(plain)
    stranger = Deployment(tmp_path, deployment.address, deployment.nodes)
    with pytest.raises(ValueError, match="flwr supernode list failed"):
        stranger.known_nodes()
