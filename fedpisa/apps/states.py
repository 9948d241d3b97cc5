"""A node's own copy of its algorithm state, which survives a crash of the node's processes.

Flower keeps a node's `Context.state` in the memory of its SuperNode and writes it there after the reply. The dual
has to last longer: it is written to a file before the reply leaves, and read from there before the next message is
answered.
A node's folder has a folder per run, and in it one safetensors file per algorithm, replaced in one step. The file
holds the state after the last round and the one before it, and in its metadata of which run, algorithm, model, client
and rounds they are.
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
    """Whose state it is.

    Parameters
    ----------
    run
        The run's number; a run that goes on after an interruption keeps it.
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
    """One client's state on the disk.

    Parameters
    ----------
    folder
        The node's own; it is made for its user alone.
    owner
        Whose state it is.

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
        """The file."""
        name = self.owner.algorithm.replace(":", ".").replace("/", ".")
        return self.folder / shortened(f"run-{self.owner.run}") / f"{shortened(name)}.safetensors"

    def write(self, state: RecordDict) -> None:
        """Write what `handlers` keeps in a context, so that a power cut leaves this or what was there before.

        Raises
        ------
        OSError
            If it cannot be written; what was there stays.
        """
        if STATE not in state:
            return
        tensors = {
            f"{name}/{key}": torch.from_numpy(array.numpy())
            for name in _RECORDS
            for key, array in state.array_records[name].items()
        }
        of = state.config_records[STATE_OF]
        about = {
            "format": FORMAT,
            "owner": asdict(self.owner),
            "rounds": {name: of[name] for name in (SERVER_ROUND, EARLIER_ROUND)},
        }
        about["digest"] = _digest(about, tensors)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.path, encode(tensors, about))

    def read_into(self, state: RecordDict) -> bool:
        """Put what was written into a context's state; return whether there was anything.

        Raises
        ------
        DamagedFileError
            If a byte of the file is not what was written.
        ValueError
            If it is another run's, algorithm's, model's or client's, or another version of fedpisa wrote it.
        """
        if not self.path.exists():
            return False
        about, tensors = _load(self.path)
        require_format(about, self.path)
        mine, its = asdict(self.owner), about["owner"]
        different = [
            f"{name} {its.get(name)}, not {mine[name]}" for name in mine if its.get(name) != mine[name]
        ]
        if different:
            raise ValueError(
                f"{self.path} is the state of {', '.join(different)}: give every node a state-dir of its own, "
                "and put back the model with which the run was begun"
            )
        for name in _RECORDS:
            own = {key: value for key, value in tensors.items() if key.startswith(f"{name}/")}
            state[name] = to_record({key.removeprefix(f"{name}/"): value for key, value in own.items()})
        state[STATE_OF] = ConfigRecord({name: int(number) for name, number in about["rounds"].items()})
        return True


def read_state(file: StateFile, state: RecordDict) -> None:
    """Read a client's state from its file; go on with what the context has if the file is damaged, and say so."""
    try:
        file.read_into(state)
    except DamagedFileError as error:
        rest = "the SuperNode's own copy is used" if STATE in state else "the state is lost"
        getLogger("flwr").error("%s: %s", one_line(error), rest)


def default_folder(node_id: int) -> Path:
    """Return a node's folder where its node config names none: in the user's folder for state, by the node's number."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "fedpisa" / f"node-{node_id}"


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    about, tensors = read_file(path, lambda content: decode(content, path))
    if about.pop("digest", None) != _digest(about, tensors):
        raise DamagedFileError(path)
    return about, tensors


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of everything in a file."""
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
