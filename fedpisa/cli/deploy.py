"""The commands ``fedpisa deploy ...``; each imports the heavy packages that it needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpisa.cli.options import Allow, File, Keys, read_keys
from fedpisa.cli.terminal import say

if TYPE_CHECKING:
    from fedpisa.deployment.local import Deployment

app = typer.Typer(
    help="Run on Flower's SuperLink and real nodes: on this machine for a trial, or on separate machines.",
    no_args_is_help=True,
)

NodesAllow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        help="A module that runs may name on the nodes, allow-modules in their config; may be repeated.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Option("--dir", help="The deployment's private folder.")]
DEFAULT = Path("fedpisa-deployment")


@app.command()
def up(
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of nodes; each gets one part of the data set.")
    ] = 3,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="A node's table or folder of tables, or its environments, env:module:callable; repeat for each "
            "node, instead of --nodes."
        ),
    ] = None,
    allow: NodesAllow = None,
    folder: Folder = DEFAULT,
) -> None:
    """Start a SuperLink and nodes on this machine, with TLS and node authentication.

    An existing folder is started again, with its keys, its nodes' states and its runs.
    """
    from fedpisa.deployment.local import Deployment, free_port

    if folder.exists():
        deployment = Deployment.read(folder)
    else:
        configs = _node_configs(nodes, data, allow)
        deployment = Deployment.prepare(folder, f"127.0.0.1:{free_port()}", configs)
    deployment.up(say)
    say(f"folder: {deployment.folder}")
    typer.echo()
    say("Train:  fedpisa deploy run -c 'algorithm=sisa num-server-rounds=5'")
    say("End:    fedpisa deploy down")
    typer.echo()
    say("To use separate machines, give the address at which they reach the SuperLink:")
    say(f"fedpisa deploy prepare --address HOST:PORT --nodes {len(deployment.nodes)}")


@app.command()
def prepare(
    address: Annotated[str, typer.Option(help="Address at which nodes reach the SuperLink, host:port.")],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 3,
    allow: NodesAllow = None,
    folder: Folder = DEFAULT,
) -> None:
    """Create certificates and keys for separate machines, and print the commands to run there."""
    from fedpisa.deployment.local import Deployment

    deployment = Deployment.prepare(folder, address, _node_configs(nodes, None, allow))
    for line in "\n".join(instructions(deployment)).split("\n"):
        say(line)


@app.command()
def run(
    file: File = None,
    config: Keys = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new directory.", show_default="runs/<algorithm>-<dataset>-<seed>"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Continue an interrupted run.", show_default=False),
    ] = None,
    allow: Allow = None,
    folder: Folder = DEFAULT,
) -> None:
    """Train on the nodes, and show the run's log; the keys are those of fedpisa run."""
    from fedpisa.config.flower import NodeSettings, read_run_config
    from fedpisa.config.run import RunConfig, flatten, load_config, override, read_toml
    from fedpisa.deployment.local import Deployment
    from fedpisa.families import Permission, permitted
    from fedpisa.runs.places import directory_for, require_free
    from fedpisa.runs.resume import changed
    from fedpisa.runs.run_files import RunReader
    from fedpisa.simulation.federation import require_federated

    deployment = Deployment.read(folder)
    given = read_keys(config)
    if resume is not None:
        if file is not None or out is not None:
            raise ValueError(
                "--resume continues a run in its directory: give neither a file nor --out with it"
            )
        settings, changes = read_run_config(given)
        before = load_config(RunReader(resume).config(), allow=allow or ())
        resolved = changed(before, {**changes, "checkpoint-every": 1}, allow=allow or ())
        directory = resume.absolute()
        settings = NodeSettings("", str(directory), settings.node_data, settings.connect_timeout)
    else:
        settings, keys = read_run_config(override(flatten(read_toml(file) if file else {}), flatten(given)))
        permission = Permission.of_file(file, allow or (), given) if file else None
        with permitted(permission):
            resolved = RunConfig.from_mapping({"num-clients": len(deployment.nodes), **keys})
            require_federated(resolved)
        directory = (require_free(out) if out else directory_for(resolved)).absolute()
        settings = NodeSettings(str(directory), "", settings.node_data, settings.connect_timeout)
    if any("data" in node for node in deployment.nodes):
        settings = NodeSettings(settings.out, settings.resume, "own", settings.connect_timeout)
    try:
        deployment.run(resolved, settings)
    except KeyboardInterrupt:
        say(f"the run continues in {directory}: stop it with fedpisa deploy down", err=True)
        raise typer.Exit(130) from None
    info = directory / "run.json"
    status = RunReader(directory).status or "not started"
    if status != "finished":
        resume_with = f"; continue with: fedpisa deploy run --resume {directory}" if info.is_file() else ""
        say(f"error: the run is {status}, see its log{resume_with}", err=True)
        raise typer.Exit(1)
    say(f"result: {directory}")


@app.command()
def status(folder: Folder = DEFAULT) -> None:
    """Show the processes, the nodes and the runs."""
    from fedpisa.deployment.local import Deployment

    deployment = Deployment.read(folder)
    alive = {process.name: process.alive for process in deployment.processes()}
    for process in deployment.processes():
        state = f"running, process {process.pid}" if process.alive else "ended"
        say(f"{process.name:<12} {state}, log: {deployment.folder / process.name}.log")
    if not alive.get("superlink"):
        say("the SuperLink is not running: start it with fedpisa deploy up")
        return
    for node in deployment.known_nodes():
        say(f"node {node['node-id']}: {node['status']}")
    for one in deployment.runs():
        say(f"run {one['run-id']}: {one['status']}")


@app.command()
def down(folder: Folder = DEFAULT) -> None:
    """Stop everything that up started; the folder stays, with keys, states and logs."""
    from fedpisa.deployment.local import Deployment

    deployment = Deployment.read(folder)
    say(f"{deployment.down()} processes stopped; {deployment.folder} stays, start again with up")


def instructions(deployment: Deployment) -> Iterator[str]:
    """Yield the instructions for each machine."""
    from fedpisa.deployment.certificates import CA, CERTIFICATE, KEY
    from fedpisa.deployment.local import CONNECTION

    def command(words: list[str]) -> str:
        return shlex.join([word.replace(f"{deployment.folder}/", "") for word in words])

    host, _, port = deployment.address.rpartition(":")
    count = len(deployment.nodes)
    yield (
        f"{deployment.folder} holds certificates and keys. Everywhere: pip install . in a checkout of fedpisa, "
        "FLWR_TELEMETRY_ENABLED=0."
    )
    yield f"\n# On {host}, with {CA}, {CERTIFICATE} and {KEY}:"
    yield command([*deployment.superlink_command(), "--host", "0.0.0.0"])
    yield "\n# Where runs are started, with flower/config.toml as ~/.flwr/config.toml; once for each node:"
    for node in range(count):
        yield command(deployment.register_command(node))
    for node in range(count):
        yield f"\n# On the machine of node {node}, with {CA} and node-{node}.key, and nothing else:"
        yield command(deployment.node_command(node, 9094))
    yield '\n# A node with its own table: data="/path/table.csv" in its --node-config.'
    yield f"\n# Train, from a checkout of fedpisa; port {port} of {host} must be open, for these machines alone:"
    yield f"flwr run . {CONNECTION} --stream -c 'algorithm=\"sisa\" num-clients={count} num-server-rounds=50'"


def _node_configs(nodes: int, data: list[Path] | None, allow: list[str] | None) -> list[dict[str, int | str]]:
    common: dict[str, int | str] = {"allow-modules": ",".join(allow)} if allow else {}
    if not data:
        return [{"partition-id": node, "num-partitions": nodes, **common} for node in range(nodes)]
    return [
        {"partition-id": node, "num-partitions": len(data), "data": _named(place), **common}
        for node, place in enumerate(data)
    ]


def _named(place: Path) -> str:
    """Return a node's key ``data``."""
    if str(place).startswith("env:"):
        return str(place)
    if not place.exists():
        raise ValueError(
            f"data {place} does not exist: name a .csv, .npz or .parquet file, a folder of some, or "
            "env:module:callable"
        )
    return str(place.absolute())
