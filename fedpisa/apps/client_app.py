"""The client app that ``flwr run`` starts on every node."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context

from fedpisa.apps.handlers import make_client_app
from fedpisa.clients.local import Client
from fedpisa.config import RunConfig
from fedpisa.federation import Federation


def client_of(context: Context) -> Client:
    """Return the client of a node: partition ``partition-id`` of the run's data set.

    Raises
    ------
    ValueError
        If the node config lacks ``partition-id`` or ``num-partitions``, or they do not fit.
    """
    node = context.node_config
    if "partition-id" not in node or "num-partitions" not in node:
        raise ValueError(
            f"the node config has {sorted(node)}, but a node needs partition-id and num-partitions: start it with "
            "--node-config 'partition-id=0 num-partitions=4'"
        )
    client_id, num_clients = int(node["partition-id"]), int(node["num-partitions"])
    if not 0 <= client_id < num_clients:
        raise ValueError(
            f"partition-id = {client_id} is not among 0 to num-partitions - 1 = {num_clients - 1}"
        )
    return federation_of(tuple(sorted(context.run_config.items())), num_clients).client(client_id)


@lru_cache(maxsize=1)
def federation_of(run_config: tuple[tuple[str, object], ...], num_clients: int) -> Federation:
    """Return the federation of Flower's run config, built once per process."""
    return Federation(RunConfig.from_mapping({**dict(run_config), "num-clients": num_clients}))


app = make_client_app(client_of)
