"""The commands ``fedpisa deploy ...``; what is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedpisa.deployment.local import Deployment

app = typer.Typer(
    help="Run on Flower's SuperLink and real nodes: on this machine for a trial, or on machines of their own.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--dir", help="The deployment's private folder.")]
DEFAULT = Path("fedpisa-deployment")


@app.command()
def up(
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of nodes; each takes its part of the data set.")
    ] = 3,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A node's own table or folder of tables, in place of --nodes; once per node."),
    ] = None,
    folder: Folder = DEFAULT,
) -> None:
    """Start a SuperLink and nodes on this machine, with TLS and node authentication.

    If the folder is there, what it describes is started again, with its keys, its nodes' states and its runs.
    """
    from fedpisa.deployment.local import Deployment, free_port

    if folder.exists():
        deployment = Deployment.read(folder)
    else:
        configs = _node_configs(nodes, data)
        deployment = Deployment.prepare(folder, f"127.0.0.1:{free_port()}", configs)
    deployment.up(typer.echo)
    typer.echo(f"folder: {deployment.folder}\n")
    typer.echo("Train:  fedpisa deploy run -c 'algorithm=sisa num-server-rounds=5'")
    typer.echo("End:    fedpisa deploy down\n")
    typer.echo("The same on machines of their own, with the address under which they reach the SuperLink:")
    typer.echo(f"fedpisa deploy prepare --address HOST:PORT --nodes {len(deployment.nodes)}")


@app.command()
def prepare(
    address: Annotated[str, typer.Option(help="Where nodes reach the SuperLink, host:port.")],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 3,
    folder: Folder = DEFAULT,
) -> None:
    """Make certificates and keys for machines of their own, and print the commands to start there; nothing runs."""
    from fedpisa.deployment.local import Deployment

    deployment = Deployment.prepare(folder, address, _node_configs(nodes, None))
    for line in instructions(deployment):
        typer.echo(line)


@app.command()
def run(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.toml]", help="Keys in a TOML file.", show_default=False)
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", metavar="'key=value ...'", help="Keys, in place of the file's."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new directory.", show_default="runs/<algorithm>-<dataset>-<seed>"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with a run that was cut short.", show_default=False),
    ] = None,
    folder: Folder = DEFAULT,
) -> None:
    """Train on the nodes, and follow the run; the keys are those of fedpisa run."""
    from fedpisa.config.flower import NodeSettings, read_run_config
    from fedpisa.config.run import RunConfig, flatten, load_config, parse_overrides, read_toml
    from fedpisa.deployment.local import Deployment
    from fedpisa.runs.results import free_directory, require_free
    from fedpisa.runs.resume import changed

    deployment = Deployment.read(folder)
    given: dict[str, object] = {}
    for text in config or ():
        given |= parse_overrides(text)
    if resume is not None:
        if file is not None or out is not None:
            raise ValueError("--resume goes on with a run where it is: give neither a file nor --out with it")
        settings, changes = read_run_config(given)
        resolved = changed(load_config(resume / "config.toml"), {**changes, "checkpoint-every": 1})
        directory = resume.absolute()
        settings = NodeSettings("", str(directory), settings.node_data, settings.connect_timeout)
    else:
        settings, keys = read_run_config(flatten(read_toml(file) if file else {}) | flatten(given))
        resolved = RunConfig.from_mapping({"num-clients": len(deployment.nodes), **keys})
        name = f"{resolved.algorithm}-{resolved.dataset}-{resolved.seed}".replace(":", "-")
        directory = (require_free(out) if out else free_directory(Path("runs") / name)).absolute()
        settings = NodeSettings(str(directory), "", settings.node_data, settings.connect_timeout)
    if any("data" in node for node in deployment.nodes):
        settings = NodeSettings(settings.out, settings.resume, "own", settings.connect_timeout)
    try:
        deployment.run(resolved, settings)
    except KeyboardInterrupt:
        typer.echo(f"the run goes on, into {directory}; fedpisa deploy down ends it", err=True)
        raise typer.Exit(130) from None
    about = directory / "run.json"
    status = json.loads(about.read_bytes())["status"] if about.is_file() else "not started"
    if status != "finished":
        go_on = f"; go on with: fedpisa deploy run --resume {directory}" if about.is_file() else ""
        typer.echo(f"error: the run is {status}, its log says why{go_on}", err=True)
        raise typer.Exit(1)
    typer.echo(f"result: {directory}")


@app.command()
def status(folder: Folder = DEFAULT) -> None:
    """Show the processes, the nodes and the runs."""
    from fedpisa.deployment.local import Deployment

    deployment = Deployment.read(folder)
    alive = {process.name: process.alive for process in deployment.processes()}
    for process in deployment.processes():
        state = f"running, process {process.pid}" if process.alive else "ended"
        typer.echo(f"{process.name:<12} {state}, log: {deployment.folder / process.name}.log")
    if not alive.get("superlink"):
        typer.echo("the SuperLink does not run: start it with fedpisa deploy up")
        return
    for node in deployment.known_nodes():
        typer.echo(f"node {node['node-id']}: {node['status']}")
    for one in deployment.runs():
        typer.echo(f"run {one['run-id']}: {one['status']}")


@app.command()
def down(folder: Folder = DEFAULT) -> None:
    """End everything that up started; the folder stays, with keys, states and logs."""
    from fedpisa.deployment.local import Deployment

    deployment = Deployment.read(folder)
    typer.echo(f"{deployment.down()} processes ended; {deployment.folder} stays, start again with up")


def instructions(deployment: Deployment) -> Iterator[str]:
    """Yield what to do on which machine."""
    from fedpisa.deployment.certificates import CA, CERTIFICATE, KEY
    from fedpisa.deployment.local import CONNECTION

    def command(words: list[str]) -> str:
        return shlex.join([word.replace(f"{deployment.folder}/", "") for word in words])

    host, _, port = deployment.address.rpartition(":")
    count = len(deployment.nodes)
    yield f"{deployment.folder} holds certificates and keys. Everywhere: pip install fedpisa, FLWR_TELEMETRY_ENABLED=0."
    yield f"\n# On {host}, with {CA}, {CERTIFICATE} and {KEY}:"
    yield command([*deployment.superlink_command(), "--host", "0.0.0.0"])
    yield "\n# Where runs are started, with flower/config.toml as ~/.flwr/config.toml; once for each node:"
    for node in range(count):
        yield command(deployment.register_command(node))
    for node in range(count):
        yield f"\n# On the machine of node {node}, with {CA} and node-{node}.key, and nothing else:"
        yield command(deployment.node_command(node, 9094))
    yield '\n# A node that has a table of its own: data="/path/table.csv" in its --node-config.'
    yield f"\n# Train, from a checkout of fedpisa; port {port} of {host} must be open, for these machines alone:"
    yield f"flwr run . {CONNECTION} --stream -c 'algorithm=\"sisa\" num-clients={count} num-server-rounds=50'"


def _node_configs(nodes: int, data: list[Path] | None) -> list[dict[str, int | str]]:
    if not data:
        return [{"partition-id": node, "num-partitions": nodes} for node in range(nodes)]
    for place in data:
        if not place.exists():
            raise ValueError(
                f"data {place} does not exist: name a .csv, .npz or .parquet file, or a folder of some"
            )
    return [
        {"partition-id": node, "num-partitions": len(data), "data": str(place.absolute())}
        for node, place in enumerate(data)
    ]
