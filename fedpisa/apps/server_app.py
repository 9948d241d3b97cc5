"""The server app that ``flwr run`` starts."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpisa.apps.environments import actions, playing
from fedpisa.apps.grid import NodeGrid
from fedpisa.apps.records import NO_CLIENT, NodeRecord, RunRecord
from fedpisa.components import escaped
from fedpisa.config.flower import NodeSettings, read_run_config
from fedpisa.config.run import RunConfig
from fedpisa.runs.events import Event, RoundFinished, RunFinished, RunStarted
from fedpisa.runs.places import directory_for
from fedpisa.runs.process import own_process
from fedpisa.runs.run_files import RunReader
from fedpisa.runs.runner import train
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.federation import Federation, require_federated

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configuration in Flower's run config on the connected nodes, and write the run's directory.

    Raises
    ------
    ValueError
        If the configuration, the data, the directory or a node is unusable.
    RuntimeError
        If the run diverged or was interrupted. The directory has its rounds.
    """
    settings, keys = read_run_config(context.run_config)
    # Nodes keep the states before and after their last round, so a checkpoint must not be older than that.
    config = RunConfig.from_mapping({**keys, "checkpoint-every": 1})
    require_federated(config)
    directory = Path(settings.resume or settings.out or directory_for(config)).absolute()
    run = _run_number(directory) or str(context.run_id)

    def simulation_of(resolved: RunConfig, partition: object = None) -> Simulation:
        # The nodes make the split themselves, so an earlier version's is not taken up.
        return Simulation(
            resolved,
            lambda federation: _connect(grid, federation, run, settings),
            clients_have_data=settings.node_data == "own",
        )

    out, resume = (None, directory) if settings.resume else (directory, None)
    try:
        with own_process():
            result = train(config, out, resume=resume, on_event=_log, simulation_of=simulation_of)
    except KeyboardInterrupt as error:
        raise RuntimeError(f"interrupted: resume the run with resume = {str(directory)!r}") from error
    if result.status == "diverged":
        raise RuntimeError(
            f"{config.algorithm} diverged: {directory} has the rounds until then; lower the step sizes"
        )
    getLogger("flwr").info("result: %s", directory)


def _connect(grid: Grid, federation: Federation, run: str, settings: NodeSettings) -> NodeGrid:
    config, layout = federation.config, federation.task.layout
    own_data = settings.node_data == "own"
    record = RunRecord(
        run,
        NO_CLIENT,
        config.num_clients,
        str(config.model),
        federation.classes,
        federation.columns,
        federation.vocabulary is not None,
        federation.tokenizer or "",
        federation.inputs.to_text() if federation.inputs is not None else "",
        playing(federation.environments),
    )
    shapes = federation.shape, federation.num_outputs, layout.fingerprint
    expected = NodeRecord(NO_CLIENT, own_data, 0, *shapes, actions(federation.environments))
    return NodeGrid.connect(grid, record, expected, settings.connect_timeout)


def _run_number(directory: Path) -> str | None:
    """Return the number of the run in a directory, under which the nodes store their states."""
    number = RunReader(directory).info.get("run")
    return None if number is None else str(number)


def _log(event: Event) -> None:
    log = getLogger("flwr").info
    if isinstance(event, RunStarted):
        resumed = f", after round {event.resumed}" if event.resumed else ""
        log("%s on %d nodes%s", escaped(event.config.algorithm), event.config.num_clients, resumed)
        if event.privacy:
            log("%s", event.privacy)
    elif isinstance(event, RoundFinished):
        shown = {
            key: value
            for key, value in event.row.items()
            if key.startswith(("test_", "validation_")) or key == "seconds"
        }
        log(
            "round %s: %s",
            event.row["round"],
            ", ".join(f"{k} {v:.4g}" for k, v in shown.items() if v is not None),
        )
    elif isinstance(event, RunFinished):
        log("%s after %d rounds", event.result.status, len(event.result.rows) - 1)
