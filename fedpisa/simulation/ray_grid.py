"""The Grid for clients in other processes and machines: actors of Flower's simulation runtime on Ray.

Each message carries all that an actor needs: the run's keys, from which the actor builds data and model once, and the
client's context, which comes back with the reply. So any actor can run any client, no state is lost with an actor,
and checkpoints are those of the loop engine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedpisa.clients.client import Client
from fedpisa.config.flower import NodeSettings, Value, read_run_config, to_run_config
from fedpisa.config.run import RunConfig
from fedpisa.flower.client_app import make_client_app
from fedpisa.flower.compat import ensure_identity, ray_as_guest, start_ray
from fedpisa.flower.messages import Broadcast
from fedpisa.simulation.contexts import ContextGrid, transport
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.grid import cause_of

if TYPE_CHECKING:
    from fedpisa.flower.compat import Backend

MODULE_PATH: Final = "module-path"
"""Key of the run config with the folders in which the actors look for modules, as JSON."""


@final
class RayGrid(ContextGrid):
    """Runs a client app for every message in a Ray actor, as many at a time as fit.

    The first message starts Ray, and `close` ends it.

    Parameters
    ----------
    config
        The run's configuration.
    num_clients
        Number of clients, by default the configuration's.

    Raises
    ------
    ValueError
        If Ray is not installed, or the device is a GPU and ``num-gpus`` is 0.
    """

    engine = "ray"

    def __init__(self, config: RunConfig, num_clients: int | None = None) -> None:
        if find_spec("ray") is None:
            raise ValueError(
                'engine = "ray" needs the extra ray: run pip install \'fedpisa[ray]\', or set engine = "auto"'
            )
        if config.device.startswith("cuda") and config.num_gpus == 0:
            raise ValueError(
                f'device = "{config.device}" with engine = "ray" needs a share of a GPU for each client: set num-gpus, '
                "such as 0.25 for four clients at a time"
            )
        folder = os.environ.get("FEDPISA_DATA") if config.data_dir is None else config.data_dir
        changes = {} if folder is None else {"data-dir": os.path.abspath(folder)}
        if config.num_gpus == 0:  # with device = "auto" an actor would use any GPU that it sees
            changes["device"] = "cpu"
        run_config = to_run_config(NodeSettings(), config.replace(changes))
        super().__init__(
            num_clients or config.num_clients,
            {**run_config, MODULE_PATH: json.dumps([*map(os.path.abspath, sys.path)])},
        )
        self.config = config
        self._backend: Backend | None = None

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Run the client app for each message in the actors.

        Raises
        ------
        RuntimeError
            See `InProcessGrid.with_errors`.
        ValueError
            If there is no Ray cluster at the address, or not a single client fits on it.
        """
        messages = list(requests)
        if not messages:
            return []
        if self._backend is None:
            self._backend = self._start()
        backend = self._backend
        # Contexts are made before the threads start, so that their order is that of the requests.
        clients = [self.client_of(message.metadata.dst_node_id) for message in messages]
        contexts = [self.context(client_id) for client_id in clients]

        def answer(message: Message, context: Context) -> tuple[Message, Context]:
            message.content = transport(message.content)
            return backend.process_message(message, context)

        answers = list[Message | Exception]()
        with ThreadPoolExecutor(backend.num_workers) as threads:
            pending = [threads.submit(answer, *pair) for pair in zip(messages, contexts, strict=True)]
            for client_id, future in zip(clients, pending, strict=True):
                try:
                    reply, self.contexts[client_id] = future.result()
                    answers.append(reply)
                except Exception as error:
                    answers.append(error)
        return self.with_errors(messages, answers)

    def close(self) -> None:
        """End the actors, and Ray if this Grid started it."""
        if self._backend is not None:
            with ray_as_guest():
                self._backend.terminate()
            self._backend = None

    def _start(self) -> Backend:
        config = self.config
        try:
            return start_ray(client_app, config.ray_address, config.num_cpus, config.num_gpus)
        except ConnectionError as error:
            raise ValueError(
                f"ray-address = {config.ray_address!r}: there is no Ray cluster ({cause_of(error)}); start one with "
                "ray start --head, or remove the key"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"num-cpus = {config.num_cpus:g}, num-gpus = {config.num_gpus:g}: not one client fits on the cluster "
                f"({cause_of(error)}); lower num-cpus or num-gpus"
            ) from error


# --------------------------------------------------------------------------------------------- in an actor


def client_app() -> ClientApp:
    """Return the app that an actor runs."""
    ensure_identity()
    return make_client_app(_client_of, mods=[_encoded])


def _client_of(context: Context) -> Client:
    federation = _federation(tuple(sorted(context.run_config.items())))
    return federation.client(int(context.node_config["partition-id"]))


@lru_cache(maxsize=1)
def _federation(run_config: tuple[tuple[str, Value], ...]) -> Federation:
    values = dict(run_config)
    # The run has checked which modules its configuration may name, and has found them on this path.
    sys.path.extend(place for place in json.loads(str(values.pop(MODULE_PATH))) if place not in sys.path)
    _, keys = read_run_config(values)
    return Federation(RunConfig.from_mapping(keys))


def _encoded(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send arrays as bytes: a tensor would be restored on the actor's device."""
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = transport(reply.content)
    context.state = transport(context.state)
    return reply
