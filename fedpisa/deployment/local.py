"""A SuperLink and its nodes on this machine, for ``fedpisa deploy``."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from fedpisa.config.flower import NodeSettings, Value, to_run_config
from fedpisa.config.run import RunConfig
from fedpisa.deployment import processes
from fedpisa.deployment.certificates import CA, CERTIFICATE, KEY, make_certificates, make_node_key
from fedpisa.deployment.processes import Process
from fedpisa.storage.files import replace_file

CONNECTION: Final = "local-deployment"
"""The SuperLink's name in Flower's commands."""
RECORD: Final = "deployment.json"
PATIENCE: Final = 120.0
"""Seconds to wait for the SuperLink and for the nodes."""


@final
@dataclass(frozen=True)
class Deployment:
    """A folder with everything that a SuperLink and its nodes need. Only its owner can read it.

    Parameters
    ----------
    folder
        The folder.
    address
        The SuperLink's address for nodes and commands, ``host:port``.
    nodes
        The node config of each node.
    """

    folder: Path
    address: str
    nodes: tuple[Mapping[str, Value], ...]

    @classmethod
    def prepare(cls, folder: Path, address: str, nodes: Sequence[Mapping[str, Value]]) -> Deployment:
        """Create a folder with a certificate for ``address`` and a key for each node.

        Raises
        ------
        ValueError
            If the folder exists, or the address has no port.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"address {address!r} is not host:port: write it as 127.0.0.1:9092")
        folder = folder.absolute()
        if folder.exists():
            raise ValueError(f"{folder} exists: name another folder")
        folder.mkdir(parents=True, mode=0o700)
        make_certificates(folder, [host.strip("[]"), "localhost", "127.0.0.1"])
        for node in range(len(nodes)):
            make_node_key(folder / f"node-{node}.key")
        deployment = cls(folder, address, tuple(nodes))
        connection = f'address = "{address}"\nroot-certificates = "{folder / CA}"\n'
        deployment.flower_home.mkdir()
        (deployment.flower_home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{connection}',
            encoding="utf-8",
        )
        deployment.write([])
        return deployment

    @classmethod
    def read(cls, folder: Path) -> Deployment:
        """Return the deployment in a folder.

        Raises
        ------
        ValueError
            If the folder has no deployment.
        """
        file = folder.absolute() / RECORD
        if not file.is_file():
            raise ValueError(f"{folder} has no deployment: start one with fedpisa deploy up")
        about = json.loads(file.read_bytes())
        return cls(folder.absolute(), about["address"], tuple(about["nodes"]))

    @property
    def flower_home(self) -> Path:
        """Folder of Flower's settings, which contain the connection to the SuperLink."""
        return self.folder / "flower"

    def processes(self) -> list[Process]:
        """Return the deployment's processes, including those that have ended."""
        about = json.loads((self.folder / RECORD).read_bytes())
        return [Process(**process) for process in about["processes"]]

    def write(self, started: Sequence[Process]) -> None:
        """Write the deployment's record, with its processes."""
        about = {
            "address": self.address,
            "nodes": list(self.nodes),
            "processes": [asdict(process) for process in started],
        }
        replace_file(self.folder / RECORD, (json.dumps(about, indent=2) + "\n").encode())

    # ------------------------------------------------------------------------------------------- commands

    def superlink_command(self) -> list[str]:
        """Return the command that starts the SuperLink."""
        host, _, port = self.address.rpartition(":")
        files = {"--ssl-ca-certfile": CA, "--ssl-certfile": CERTIFICATE, "--ssl-keyfile": KEY}
        return [
            "flower-superlink",
            *(word for option, name in files.items() for word in (option, str(self.folder / name))),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            *("--database", str(self.folder / "superlink.db")),
            *("--host", host.strip("[]"), "--port", port),
        ]

    def node_command(self, node: int, port: int, more: Mapping[str, Value] = {}) -> list[str]:
        """Return the command that starts a node.

        On ``port`` of the loopback address the node talks to its child processes.
        """
        config = {**more, **self.nodes[node]}
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        return [
            "flower-supernode",
            *("--root-certificates", str(self.folder / CA)),
            *("--superlink", self.address),
            *("--auth-supernode-private-key", str(self.folder / f"node-{node}.key")),
            *("--port", str(port)),
            *("--node-config", pairs),
        ]

    def register_command(self, node: int) -> list[str]:
        """Return the command that registers a node's key with the SuperLink."""
        return ["flwr", "supernode", "register", str(self.folder / f"node-{node}.key.pub"), CONNECTION]

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """Return the environment of Flower's commands: this process's, with additions."""
        here = str(Path(sys.executable).parent)
        threads = max(1, (os.cpu_count() or 1) // max(1, len(self.nodes)))
        return {
            "OMP_NUM_THREADS": str(threads),  # nodes on one machine share its cores
            **os.environ,
            "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(home or self.flower_home),
            "FLWR_TELEMETRY_ENABLED": "0",
        }

    def flower(self, *words: str) -> str:
        """Run a Flower command and return its output.

        Raises
        ------
        ValueError
            If the command fails or runs longer than `PATIENCE` seconds. The message contains its output.
        """
        command = [which(words[0]), *words[1:]]
        try:
            done = subprocess.run(
                command,
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
                cwd=self.folder,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"{' '.join(words[:3])} got no answer from {self.address} within {PATIENCE:g} s"
            ) from error
        if done.returncode:
            said = " ".join((done.stderr + done.stdout).split())
            raise ValueError(f"{' '.join(words[:3])} failed: {said or done.returncode}")
        return done.stdout

    def ask(self, *words: str) -> dict[str, Any]:
        """Run a Flower command and return its answer, a JSON object.

        Flower reports some failures in the answer only, with exit status 0.

        Raises
        ------
        ValueError
            If the command fails. The message contains the reason.
        """
        said = self.flower(*words, "--format", "json")
        answer: dict[str, Any] = json.loads(said[said.find("{") :] or "{}")
        if not answer.get("success"):
            why = " ".join(str(answer.get("error-message", said)).split())
            raise ValueError(f"{' '.join(words[:3])} failed: {why}")
        return answer

    # ------------------------------------------------------------------------------------------- processes

    def up(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Start the SuperLink and the nodes. On an error, end all of them.

        Parameters
        ----------
        tell
            Receives a line of text after each step.

        Raises
        ------
        ValueError
            If they run already, or one of them does not start.
        """
        if running := [process.name for process in self.processes() if process.alive]:
            raise ValueError(
                f"{', '.join(running)} of {self.folder} run already: end them with fedpisa deploy down"
            )
        with self._ended_on_error():
            self.start_superlink()
            tell(f"SuperLink on {self.address}")
            for node in range(len(self.known_nodes()), len(self.nodes)):
                self.ask(*self.register_command(node))
            for node in range(len(self.nodes)):
                self.start_node(node)
            self.wait_for_nodes()
            tell(f"{len(self.nodes)} nodes are connected")

    def start_superlink(self) -> Process:
        """Start the SuperLink and wait until it answers."""
        process = self._start("superlink", self.superlink_command(), self.environment())
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
                return process
            except OSError:
                self._require(process, deadline)
                time.sleep(0.2)

    def start_node(self, node: int) -> Process:
        """Start a node. By default it keeps its states in the deployment's folder."""
        own = self.folder / f"node-{node}"
        (own / "flower").mkdir(parents=True, exist_ok=True)
        command = self.node_command(node, free_port(), {"state-dir": str(own / "state")})
        return self._start(f"node-{node}", command, self.environment(own / "flower"))

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are connected."""
        deadline = time.monotonic() + PATIENCE
        while sum(node["status"] == "online" for node in self.known_nodes()) < len(self.nodes):
            for process in self.processes():
                self._require(process, deadline)
            time.sleep(0.5)

    def known_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are registered with the SuperLink, as it reports them."""
        known: list[dict[str, Any]] = self.ask("flwr", "supernode", "list", CONNECTION)["nodes"]
        return known

    def runs(self) -> list[dict[str, Any]]:
        """Return the SuperLink's runs, as it reports them."""
        runs: list[dict[str, Any]] = self.ask("flwr", "list", CONNECTION)["runs"]
        return runs

    def run(self, config: RunConfig, settings: NodeSettings) -> None:
        """Start a run and show its log until it ends."""
        app = write_app(self.folder / "app", to_run_config(settings, config))
        command = [which("flwr"), "run", str(app), CONNECTION, "--stream"]
        subprocess.run(command, env=self.environment(), check=False)

    def down(self) -> int:
        """End the deployment's processes and their children; return the number of processes."""
        return processes.end(self.folder, self.processes())

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        words = [which(command[0]), *command[1:]]
        process = processes.start(name, words, self.folder, environment, Path.cwd())
        self.write([*(other for other in self.processes() if other.name != name), process])
        return process

    def _require(self, process: Process, deadline: float) -> None:
        if process.alive and time.monotonic() < deadline:
            return
        why = "did not start in time" if process.alive else "ended"
        log = self.folder / f"{process.name}.log"
        last = " ".join(log.read_text(errors="replace").split()[-60:])
        raise ValueError(f"{process.name} {why}, its log {log} ends with: {last}")

    @contextmanager
    def _ended_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.down()
            raise


def write_app(folder: Path, run_config: Mapping[str, Value]) -> Path:
    """Write a Flower app that starts the installed fedpisa on server and nodes."""
    import tomli_w

    from fedpisa import __version__

    app = {
        "publisher": "fedpisa",
        "components": {
            "serverapp": "fedpisa.apps.server_app:app",
            "clientapp": "fedpisa.apps.client_app:app",
        },
        "config": dict(run_config),
    }
    project = {
        "name": "fedpisa-run",
        "version": __version__,
        "description": "A run of the installed fedpisa",
        "license": {"text": "Apache-2.0"},
        "dependencies": [],
    }
    folder.mkdir(exist_ok=True)
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    replace_file(folder / "pyproject.toml", text.encode())
    return folder


def free_port() -> int:
    """Return a free port of the loopback address. It may be taken before the caller uses it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def which(command: str) -> str:
    """Return the path of a Flower command: beside this Python, or on the ``PATH``.

    Raises
    ------
    ValueError
        If the command is not installed.
    """
    beside = Path(sys.executable).with_name(command)
    found = str(beside) if beside.exists() else shutil.which(command)
    if found is None:
        raise ValueError(f"the command {command} is missing: it belongs to flwr, install flwr")
    return found
