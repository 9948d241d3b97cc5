"""A run on a node: the node's samples, the model, the client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from typing import Any, final

from flwr.app import Context

from fedpisa.apps.environments import PREFIX, actions, own_environments
from fedpisa.apps.records import NO_CLIENT, NodeRecord, RunRecord
from fedpisa.apps.states import Owner, StateFile, default_folder
from fedpisa.clients.client import Client
from fedpisa.clients.model_trial import require_batch_statistics
from fedpisa.components import one_line
from fedpisa.config.flower import Value, read_run_config
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset
from fedpisa.datasets.files import read_samples
from fedpisa.datasets.inputs import Inputs
from fedpisa.datasets.text import own_windows
from fedpisa.families import Permission, permitted
from fedpisa.simulation.federation import Federation
from fedpisa.tasks.recurrent import require_consecutive

NODE_KEYS = ("partition-id", "num-partitions", "data", "label-column", "state-dir", "allow-modules")
"""The keys of a node's configuration."""


@final
@dataclass(frozen=True)
class NodeRun:
    """A run on a node.

    Parameters
    ----------
    federation
        The model and the samples. These are either the node's own, or those of all clients of a data set.
    client_id
        The node's client number, `NO_CLIENT` if it has none yet.
    own_data
        Whether the samples are the node's own.
    """

    federation: Federation
    client_id: int
    own_data: bool

    @property
    def client(self) -> Client:
        """The node's client."""
        samples = self.federation.data.only(0 if self.own_data else self.client_id)
        federation = self.federation
        update, seed = federation.algorithm.local_update, federation.config.seed
        return Client(federation.task, update, samples, self.client_id, seed, federation.schedule)

    def record(self) -> NodeRecord:
        """Return the node's description for the server."""
        sizes_N = self.federation.data.sizes_N
        return NodeRecord(
            client=self.client_id,
            own_data=self.own_data,
            num_examples=int(sizes_N[0 if self.own_data else self.client_id]),
            shape=self.federation.shape,
            num_outputs=self.federation.num_outputs,
            layout=self.federation.task.layout.fingerprint,
            actions=actions(self.federation.environments),
        )

    def state_file(self, run: str, folder: Path) -> StateFile:
        """Return the file of the client's state."""
        layout = self.federation.task.layout.fingerprint
        return StateFile(folder, Owner(run, self.federation.config.algorithm, layout, self.client_id))


def node_run(context: Context, run: RunRecord) -> NodeRun:
    """Return a run on the node of a context.

    Raises
    ------
    ValueError
        If the node config or the run config is invalid, or the samples cannot be used. The error goes to the server,
        so details of the node's own samples are only in the node's log.
    """
    node = {str(key): value for key, value in context.node_config.items()}
    unknown = sorted(set(node) - set(NODE_KEYS))
    if unknown:
        raise ValueError(
            f"the node config has the unknown keys {', '.join(unknown)}: use {', '.join(NODE_KEYS)} only"
        )
    with permitted(_permission(str(node.get("allow-modules", "")))):
        return _node_run(tuple(sorted(context.run_config.items())), tuple(sorted(node.items())), run)


def _permission(modules: str) -> Permission:
    """Return the permission of a node: only the modules that its own config names, separated by commas."""
    fix = f"""start the node with --node-config 'allow-modules="{modules}{"," * bool(modules)}{{module}}"'"""
    return Permission(allow=tuple(modules.replace(",", " ").split()), installed=False, fix=fix)


def state_folder(context: Context) -> Path:
    """Return the folder of a node's states."""
    named = str(context.node_config.get("state-dir", ""))
    return Path(os.path.expanduser(named)) if named else default_folder(context.node_id)


@lru_cache(maxsize=1)
def _node_run(
    run_config: tuple[tuple[str, Value], ...], node_config: tuple[tuple[str, Value], ...], run: RunRecord
) -> NodeRun:
    node = dict(node_config)
    settings, keys = read_run_config(dict(run_config))
    config = RunConfig.from_mapping({**keys, "num-clients": run.num_clients})
    partition_id = _partition_id(node, run)
    client_id = run.client if partition_id is None else partition_id
    if run.client not in (NO_CLIENT, client_id):
        raise ValueError(f"the server calls this node client {run.client}, its partition-id is {client_id}")
    if settings.node_data == "own":
        if "data" not in node:
            raise ValueError(
                'node-data = "own", and the node config names no data: --node-config \'data="..."\''
            )
        data = _own_dataset(str(node["data"]), config, run, node)
        config = config.replace({"model": run.model})
        federation = Federation(config, clients_have_data=True, dataset=data)
        update, samples = federation.algorithm.local_update, federation.data
        require_batch_statistics(federation.task, update, samples.x[:1], samples.sizes_N, config.seed)
        if federation.task.carry_state != "none":
            require_consecutive(samples)
        return NodeRun(federation, client_id, own_data=True)
    if "data" in node:
        raise ValueError(
            'the node config has the key data, and the run would not use these samples: set node-data = "own"'
        )
    if partition_id is None:
        raise ValueError(
            f"the node config has {sorted(node)}, but a node needs partition-id and num-partitions: start it with "
            "--node-config 'partition-id=0 num-partitions=4'"
        )
    return NodeRun(Federation(config.replace({"model": run.model})), client_id, own_data=False)


def _partition_id(node: Mapping[str, Value], run: RunRecord) -> int | None:
    if "partition-id" not in node:
        return None
    client_id, num_clients = int(node["partition-id"]), int(node.get("num-partitions", run.num_clients))
    if not 0 <= client_id < num_clients:
        raise ValueError(
            f"partition-id = {client_id} is not among 0 to num-partitions - 1 = {num_clients - 1}"
        )
    if num_clients != run.num_clients:
        raise ValueError(
            f"num-partitions = {num_clients} and the run has num-clients = {run.num_clients}: give both the same"
        )
    return client_id


def _own_dataset(name: str, config: RunConfig, run: RunRecord, node: Mapping[str, Value]) -> Dataset:
    """Return a node's own samples as a data set. They also fill the test set, which a node never uses."""
    if run.playing:
        if not name.startswith(PREFIX):
            raise ValueError(
                "the run needs environments, and the node config names samples: --node-config "
                "'data=\"env:module:callable\"'"
            )
        return own_environments(name.removeprefix(PREFIX), run.playing, run.num_clients, config.seed)
    if name.startswith(PREFIX):
        raise ValueError(
            "the run needs samples, and the node config names environments: start the node with the data of a table, "
            "or run task = 'ppo' or 'a2c' with a dataset that has environments"
        )
    place = Path(os.path.expanduser(name))
    if run.is_text:
        return _own_text(place, config, run)
    column = node.get("label-column", config.options.get("label-column", "label"))
    if config.options.get("standardize"):
        raise ValueError(
            "standardize = true would scale every node's samples by its own: scale them beforehand"
        )
    inputs = Inputs.of_text(run.inputs) if run.inputs else None
    try:
        x, y = read_samples(
            place,
            run.classes,
            str(column),
            columns=run.columns,
            drop_columns=_list(config, "drop-columns"),
            sample_shape=_list(config, "sample-shape"),
            inputs=inputs,
        )
        return Dataset(
            name="own",
            x_train=x,
            y_train=y,
            x_test=x,
            y_test=y,
            num_classes=len(run.classes) or None,
            classes=run.classes or None,
            inputs=inputs,
        )
    except (ValueError, OSError) as error:
        getLogger("flwr").error("the node's own data: %s", one_line(error))
        raise ValueError("the node's own data cannot be used: its log says why") from None


def _own_text(place: Path, config: RunConfig, run: RunRecord) -> Dataset:
    """Return the windows of a node's own text as a data set, in the run's tokens."""
    tokens, window = config.options.get("tokens", "char"), config.options["window"]
    try:
        tokenizer = run.tokenizer or None
        x, y = own_windows(place, run.classes, tokens == "word", int(str(window)), tokenizer)
        fields = {"num_classes": len(run.classes), "vocabulary": run.classes}
        return Dataset.of("own", (x, y), (x[:1], y[:1]), **fields)
    except (ValueError, OSError) as error:
        getLogger("flwr").error("the node's own data: %s", one_line(error))
        raise ValueError("the node's own data cannot be used: its log says why") from None


def _list(config: RunConfig, key: str) -> list[Any]:
    value = config.options.get(key)
    return list(value) if isinstance(value, list | tuple) else []
