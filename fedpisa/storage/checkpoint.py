"""Checkpoints: named tensors and metadata in one file that is either whole or recognised as damaged.

A checkpoint is a safetensors file whose metadata holds the metadata as JSON, and whose name holds the round and a
digest of every byte, ``round-20-<digest>.safetensors``. It is written under another name, synchronised and
renamed; the last two are kept, so that one that went bad is not the end, and the last one once the run has ended.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from fedpisa.storage.files import PARTIAL, replace_file
from fedpisa.storage.tensor_file import FORMAT, DamagedFileError, decode, encode, require_format

if TYPE_CHECKING:
    from torch import Tensor

KEPT: Final = 2
"""Checkpoints that are kept while a run goes on."""
_NAME: Final = re.compile(r"round-(\d+)-([0-9a-f]{32})\.safetensors")


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Parameters
    ----------
    server_round
        The last round that is in it.
    tensors
        Everything that changes from round to round.
    metadata
        What JSON can say.
    """

    server_round: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def write(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, then remove all but the last two.

    Raises
    ------
    OSError
        If it cannot be written; those that are there stay.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in (1, 2, 3):
    ...         file = write(Path(folder), Checkpoint(number, {"w": torch.ones(number)}, {"seed": 0}))
    ...     [read(file).tensors["w"].tolist() for file in newest_first(Path(folder))]
    [[1.0, 1.0, 1.0], [1.0, 1.0]]
    """
    about = {
        "format": FORMAT,
        "round": checkpoint.server_round,
        "names": list(checkpoint.tensors),  # a file sorts them
        "facts": dict(checkpoint.metadata),
    }
    content = encode(checkpoint.tensors, about)
    directory.mkdir(exist_ok=True)
    file = directory / f"round-{checkpoint.server_round}-{_digest(content)}.safetensors"
    replace_file(file, content)
    earlier = [other for other in newest_first(directory) if _round(other) < checkpoint.server_round]
    _remove_all_but(directory, {file, *earlier[: KEPT - 1]})
    return file


def keep_last(directory: Path) -> None:
    """Remove all checkpoints but the last: enough for more rounds, and a study of many runs stays small."""
    _remove_all_but(directory, set(newest_first(directory)[:1]))


def _remove_all_but(directory: Path, keep: Collection[Path]) -> None:
    for other in directory.iterdir() if directory.is_dir() else ():
        if other not in keep and (_NAME.fullmatch(other.name) or other.name.endswith(PARTIAL)):
            with suppress(FileNotFoundError):
                other.unlink()


def newest_first(directory: Path) -> list[Path]:
    """Return the files of a directory that are checkpoints by their name, the last round's first."""
    files = directory.iterdir() if directory.is_dir() else ()
    return sorted((file for file in files if _NAME.fullmatch(file.name)), key=_round, reverse=True)


def read(file: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ValueError
        If a byte of it is not what was written, or another version of fedpisa wrote it.
    """
    name = _NAME.fullmatch(file.name)
    content = file.read_bytes()
    if name is None or _digest(content) != name[2]:
        raise DamagedFileError(file)
    about, tensors = decode(content, file)
    require_format(about, file)
    return Checkpoint(about["round"], {name: tensors[name] for name in about["names"]}, about["facts"])


def _round(file: Path) -> int:
    name = _NAME.fullmatch(file.name)
    assert name is not None
    return int(name[1])


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
