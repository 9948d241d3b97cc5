"""Flower server apps on an in-process Grid."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedpisa.flower.compat import SERVER_NODE_ID
from fedpisa.simulation.grid import InProcessGrid


def run_server_app(
    server_app: ServerApp,
    grid: InProcessGrid,
    run_config: Mapping[str, bool | float | int | str] = {},
) -> Context:
    """Run a server app as ``flwr run`` does, and return its context.

    Parameters
    ----------
    server_app
        Any Flower server app.
    grid
        The Grid of the clients; a `LoopGrid` runs any client app.
    run_config
        The app's ``context.run_config``.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from fedpisa.simulation.loop import LoopGrid
    >>> server_app = ServerApp()
    >>> @server_app.main()
    ... def main(grid, context):
    ...     print(len(list(grid.get_node_ids())), "clients,", context.run_config["rounds"], "rounds")
    >>> context = run_server_app(server_app, LoopGrid(ClientApp(), num_clients=3), {"rounds": 5})
    3 clients, 5 rounds
    """
    context = Context(
        run_id=0, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server_app(grid, context)
    return context
