"""Flower's SuperLink and SuperNodes on this machine give the simulation's model, also after kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest
from flwr.app import RecordDict

import fedpisa
from fedpisa.apps.states import Owner, StateFile
from fedpisa.config.flower import NodeSettings, to_run_config
from fedpisa.config.run import RunConfig
from fedpisa.deployment import processes
from fedpisa.deployment.certificates import CA, make_certificates, make_node_key
from fedpisa.deployment.local import CONNECTION, Deployment, free_port, which, write_app
from fedpisa.deployment.processes import Process
from fedpisa.flower.client_app import STATE, STATE_OF
from fedpisa.flower.messages import SERVER_ROUND
from fedpisa.runs.results import load_result
from fedpisa.runs.simulation import Simulation
from fedpisa.storage.files import InUseError
from fedpisa.storage.files import locked as locked

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="processes are found in /proc"
)

HERE = Path(__file__).parent
RUNS: Mapping[str, Mapping[str, object]] = {
    "sisa": {"algorithm": "sisa"},
    "scaffold": {"algorithm": "scaffold", "task": "held_model:SquaredHinge", "learning-rate": 1e-4},
    "fresh": {"algorithm": "sisa", "absent": "fresh"},
}
"""One run with absolute uploads, and two with increments, of which one has a user's own task."""
NODES, ROUNDS = 3, 5
PATIENCE = 600.0
"""Timeout of each wait in seconds; an idle machine needs a tenth of it."""

T = TypeVar("T")


def until(condition: Callable[[], T], what: str) -> T:
    """Wait until a condition returns a true value, and return that value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.1)
    return found


# ------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Run:
    """A run on the deployment's nodes.

    Parameters
    ----------
    deployment
        The deployment.
    config
        Its configuration.
    out
        Its directory.
    gate
        The folder by which its clients are held; see `held_model`.
    """

    deployment: Deployment
    config: RunConfig
    out: Path
    gate: Path

    @classmethod
    def of(cls, deployment: Deployment, name: str, folder: Path) -> Run:
        gate = folder / f"{name}-gate"
        gate.mkdir()
        keys: dict[str, object] = {
            **RUNS[name],
            "dataset": "synthetic",
            "model": "held_model:held",
            "gate": str(gate),
            "num-clients": NODES,
            "num-server-rounds": ROUNDS,
            "device": "cpu",
            "dtype": "float32",
            "checkpoint-every": 1,
        }
        return cls(deployment, RunConfig.from_mapping(keys), folder / name, gate)

    def submit(self, *, resume: bool = False) -> None:
        settings = NodeSettings(resume=str(self.out)) if resume else NodeSettings(out=str(self.out))
        app = write_app(self.deployment.folder / "app", to_run_config(settings, self.config))
        self.deployment.ask("flwr", "run", str(app), CONNECTION)

    @property
    def facts(self) -> Mapping[str, str]:
        with suppress(FileNotFoundError):
            facts: dict[str, str] = json.loads((self.out / "run.json").read_bytes())
            return facts
        return {}

    @property
    def rounds(self) -> int:
        """The number of rounds in its directory; -1 before the initial model was evaluated."""
        file = self.out / "metrics.jsonl"
        return len(file.read_text().splitlines()) - 1 if file.exists() else -1

    @property
    def finished(self) -> bool:
        status = self.facts.get("status", "not started")
        log = self.deployment.folder / "superlink.log"
        assert status in ("not started", "running", "finished"), log.read_text()[-5000:]
        return status == "finished"

    @property
    def in_use(self) -> bool:
        """Whether the server app still writes to its directory."""
        try:
            with locked(self.out):
                return False
        except InUseError:
            return True

    def state(self, client: int) -> RecordDict:
        """Return a node's state from its disk."""
        about = self.facts
        owner = Owner(about["run"], self.config.algorithm, about["layout"], client)
        kept = RecordDict()
        StateFile(self.deployment.folder / f"node-{client}" / "state", owner).read_into(kept)
        return kept

    def state_round(self, client: int) -> int:
        state = self.state(client)
        return int(str(state.config_records[STATE_OF][SERVER_ROUND])) if STATE_OF in state else 0

    def hold(self, count: int) -> list[int]:
        """Hold ``count`` clients in their next local steps; return their process numbers."""
        for number in range(count):
            (self.gate / f"hold-{number}").touch()

        def locked() -> list[int]:
            return [int(file.name.removeprefix("held-")) for file in self.gate.glob("held-*")]

        until(lambda: len(locked()) == count, f"{count} clients are held")
        return locked()

    def assert_is_that_of_the_simulation(self) -> None:
        """Compare the model, the rounds and every client's state with both engines'."""
        result = load_result(self.out)
        assert [row["round"] for row in result.rows] == list(range(ROUNDS + 1))
        for engine in ("loop", "vmap"):
            simulated = fedpisa.run(self.config.replace({"engine": engine}))
            assert result.parameters.keys() == simulated.parameters.keys()
            for name, value in simulated.parameters.items():
                assert value.dtype == np.float32
                np.testing.assert_allclose(result.parameters[name], value, rtol=1e-6, atol=1e-6)
        loop = Simulation(self.config.replace({"engine": "loop"}))
        for _ in loop.rows():
            pass
        for client in range(NODES):
            assert self.state_round(client) == ROUNDS
            assert loop.grid.client_states is not None
            wanted = loop.grid.client_states.state(client)
            assert wanted
            for name, value in wanted.items():
                own = self.state(client).array_records[STATE][name].numpy()
                np.testing.assert_allclose(own, value.numpy(), rtol=1e-5, atol=1e-6)
                assert np.abs(own).max() > 1e-3  # a lost dual is zero


def wait_for(runs: list[Run]) -> None:
    until(lambda: all(run.finished for run in runs), "all runs are finished")


# -------------------------------------------------------------------------------------------- the processes


def ancestors(pid: int) -> list[int]:
    """Return the numbers of a process's ancestors, its parent first."""
    return [process.pid for process in psutil.Process(pid).parents()]


def kill(process: Process) -> None:
    """``kill -9`` a process and its children, as a power cut or the end of a container does."""
    started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def named(deployment: Deployment, name: str) -> Process:
    return next(process for process in deployment.processes() if process.name == name)


def online(deployment: Deployment) -> int:
    return sum(node["status"] == "online" for node in deployment.known_nodes())


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Start a SuperLink and three nodes; end them after the tests, even if these fail."""
    folder = tmp_path_factory.mktemp("deployment") / "private"
    allowed = {"allow-modules": "held_model"}
    configs = [{"partition-id": node, "num-partitions": NODES, **allowed} for node in range(NODES)]
    deployment = Deployment.prepare(folder, f"127.0.0.1:{free_port()}", configs)
    with pytest.MonkeyPatch.context() as patch:
        path = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(HERE))
        try:
            deployment.up()
            yield deployment
        finally:
            deployment.down()
    assert processes.end(folder, deployment.processes()) == 0


# ------------------------------------------------------------------------------------------------ the tests


def test_nodes_give_the_model_of_the_simulation(deployment: Deployment, tmp_path: Path) -> None:
    """Two runs at once on the same nodes both give the simulation's model."""
    runs = [Run.of(deployment, name, tmp_path) for name in ("sisa", "scaffold")]
    for run in runs:
        run.submit()
    wait_for(runs)
    for run in runs:
        run.assert_is_that_of_the_simulation()


def test_kills_change_nothing(deployment: Deployment, tmp_path: Path) -> None:
    """Kills of two SuperNodes and the SuperLink change nothing.

    One SuperNode is killed during a local step, another with an unsent reply.
    """
    runs = [Run.of(deployment, name, tmp_path) for name in ("sisa", "fresh")]
    fresh = runs[1]
    for run in runs:
        run.submit()
    until(lambda: min(run.rounds for run in runs) >= 1, "both runs have a round")

    nodes = {p.pid: p for p in deployment.processes() if p.name.startswith("node-")}
    owner = {pid: next(nodes[up] for up in ancestors(pid) if up in nodes) for pid in fresh.hold(2)}
    (_, at_work), (client_app, replying) = owner.items()
    kill(at_work)
    # The other SuperNode cannot forward its client app's reply, which is therefore lost.
    client = int(replying.name.removeprefix("node-"))
    os.kill(replying.pid, signal.SIGSTOP)
    before = fresh.state_round(client)
    (fresh.gate / f"held-{client_app}").unlink()
    until(lambda: fresh.state_round(client) == before + 1, "the client has written its state")
    kill(replying)

    # Flower admits them again after two missed heartbeats, which takes a minute.
    until(lambda: online(deployment) == NODES - 2, "the killed nodes are known to be away")
    for node in (at_work, replying):
        deployment.start_node(int(node.name.removeprefix("node-")))

    until(lambda: max(run.rounds for run in runs) >= 3, "a run has three rounds")
    kill(named(deployment, "superlink"))
    until(lambda: not any(run.in_use for run in runs), "the server apps have ended")
    assert all(before <= run.rounds < ROUNDS for run in runs)
    deployment.start_superlink()
    deployment.wait_for_nodes()
    for run in runs:
        run.submit(resume=True)
    wait_for(runs)
    for run in runs:
        run.assert_is_that_of_the_simulation()


def test_strangers_are_refused(deployment: Deployment, tmp_path: Path) -> None:
    """A SuperLink refuses nodes without a key, with an unknown key, plain text or another authority."""
    make_node_key(tmp_path / "stranger.key")
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(other, ["127.0.0.1"])
    known = deployment.known_nodes()
    trust = ["--root-certificates", str(deployment.folder / CA)]
    key = ["--auth-supernode-private-key", str(deployment.folder / "node-0.key")]
    cases = {
        "without a key": trust,
        "wrong key": [*trust, "--auth-supernode-private-key", str(tmp_path / "stranger.key")],
        "plain text": ["--insecure"],
        "wrong authority": ["--root-certificates", str(other / CA), *key],
    }
    # Logs are files, because Flower's child processes keep pipes open after their parent has ended.
    logs = {name: tmp_path / f"{name}.log" for name in cases}
    started = {}
    for name, options in cases.items():
        with logs[name].open("wb") as log:
            started[name] = subprocess.Popen(
                [
                    *(which("flower-supernode"), *options, "--superlink", deployment.address),
                    *("--max-retries", "1", "--port", str(free_port())),
                ],
                env={**deployment.environment(tmp_path / "flower"), processes.MARK: str(deployment.folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    try:
        for process in started.values():
            process.wait(timeout=PATIENCE)
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    said = {name: log.read_text() for name, log in logs.items()}
    for name, process in started.items():
        assert process.returncode != 0, (name, said[name])
        assert "SuperNode ID" not in said[name], name
        assert "Failed to initialize the connection" in said[name], (name, said[name])
    assert "must be registered" in said["without a key"]
    assert "Failed to activate" in said["wrong key"]
    assert "certificate verify failed" in said["wrong authority"].lower()
    assert [node["node-id"] for node in deployment.known_nodes()] == [node["node-id"] for node in known]
    # Commands in plain text are refused too.
    plain = f'[superlink.{CONNECTION}]\naddress = "{deployment.address}"\ninsecure = true\n'
    (tmp_path / "flower").mkdir(exist_ok=True)
    (tmp_path / "flower" / "config.toml").write_text(plain)
    stranger = Deployment(tmp_path, deployment.address, deployment.nodes)
    with pytest.raises(ValueError, match="flwr supernode list failed"):
        stranger.known_nodes()
