"""A file with a client's state on its node, which survives a crash of the node's processes.

Flower keeps a node's `Context.state` in the memory of its SuperNode only. A client's dual must not be lost. The node
writes it to a file before it sends the reply, and reads it from there before it handles the next message.

A node's folder has a folder for each run, with one safetensors file for each algorithm, which is replaced atomically.
The file holds the states after and before the last round. Its metadata names the run, algorithm, model, client and
rounds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final, final

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedpisa.components import one_line
from fedpisa.flower.client_app import EARLIER_ROUND, EARLIER_STATE, STATE, STATE_OF
from fedpisa.flower.compat import to_record
from fedpisa.flower.messages import SERVER_ROUND
from fedpisa.storage.files import DamagedFileError, read_file, replace_file, shortened
from fedpisa.storage.tensor_file import FORMAT, decode, encode, require_format

_RECORDS: Final = (STATE, EARLIER_STATE)


@final
@dataclass(frozen=True)
class Owner:
    """The run and the client of a state file.

    Parameters
    ----------
    run
        The run's number; a resumed run keeps it.
    algorithm
        The algorithm's name.
    layout
        Fingerprint of the model's parameters.
    client
        The client's number.
    """

    run: str
    algorithm: str
    layout: str
    client: int


@final
@dataclass(frozen=True)
class StateFile:
    """The file of one client's state.

    Parameters
    ----------
    folder
        The node's folder; only its user can read it.
    owner
        The run and the client of the state.

    Examples
    --------
    >>> import tempfile
    >>> from flwr.app import ConfigRecord
    >>> state = RecordDict({STATE: to_record({"dual": torch.ones(2)}), EARLIER_STATE: to_record({})})
    >>> state[STATE_OF] = ConfigRecord({SERVER_ROUND: 3, EARLIER_ROUND: 2})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = StateFile(Path(folder), Owner("7", "sisa", "abc", 0))
    ...     file.write(state)
    ...     read = RecordDict()
    ...     file.read_into(read)
    True
    >>> read[STATE]["dual"].numpy().tolist(), read[STATE_OF][SERVER_ROUND]
    ([1.0, 1.0], 3)
    """

    folder: Path
    owner: Owner

    @property
    def path(self) -> Path:
        """The file's path."""
        name = self.owner.algorithm.replace(":", ".").replace("/", ".")
        return self.folder / shortened(f"run-{self.owner.run}") / f"{shortened(name)}.safetensors"

    def write(self, state: RecordDict) -> None:
        """Write the states in a context atomically: after a power cut, the file is the new one or the old one.

        Raises
        ------
        OSError
            If the file cannot be written. The old file stays.
        """
        if STATE not in state:
            return
        tensors = {
            f"{name}/{key}": torch.from_numpy(array.numpy())
            for name in _RECORDS
            for key, array in state.array_records[name].items()
        }
        rounds = state.config_records[STATE_OF]
        metadata = {
            "format": FORMAT,
            "owner": asdict(self.owner),
            "rounds": {name: rounds[name] for name in (SERVER_ROUND, EARLIER_ROUND)},
        }
        metadata["digest"] = _digest(metadata, tensors)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.path, encode(tensors, metadata))

    def read_into(self, state: RecordDict) -> bool:
        """Read the file into a context's state; return whether there is a file.

        Raises
        ------
        DamagedFileError
            If the file is damaged.
        ValueError
            If the file belongs to another run, algorithm, model or client, or to another version of fedpisa.
        """
        if not self.path.exists():
            return False
        metadata, tensors = _load(self.path)
        require_format(metadata, self.path)
        expected, found = asdict(self.owner), metadata["owner"]
        different = [
            f"{name} {found.get(name)}, not {value}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{self.path} is the state of {', '.join(different)}: give each node a separate state-dir, and use the "
                "model with which the run was started"
            )
        for name in _RECORDS:
            prefix = f"{name}/"
            state[name] = to_record(
                {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            )
        state[STATE_OF] = ConfigRecord({name: int(number) for name, number in metadata["rounds"].items()})
        return True


def read_state(file: StateFile, state: RecordDict) -> None:
    """Read a client's state from its file; if the file is damaged, log it and keep the state in the context."""
    try:
        file.read_into(state)
    except DamagedFileError as error:
        consequence = "the SuperNode's copy is used" if STATE in state else "the state is lost"
        getLogger("flwr").error("%s: %s", one_line(error), consequence)


def default_folder(node_id: int) -> Path:
    """Return the folder of a node whose configuration names none: in the user's state folder, by the node's number."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "fedpisa" / f"node-{node_id}"


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    metadata, tensors = read_file(path, lambda content: decode(content, path))
    if metadata.pop("digest", None) != _digest(metadata, tensors):
        raise DamagedFileError(path)
    return metadata, tensors


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the metadata and tensors of a file."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
