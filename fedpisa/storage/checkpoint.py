"""Checkpoints: named tensors and metadata in one file, whose damage is detected.

A checkpoint is a safetensors file with the metadata as JSON in its header. Its name contains the round and a digest of
all bytes: ``round-20-<digest>.safetensors``. It is written atomically. A run keeps its last two checkpoints, so that it
can resume from the earlier one if the later one is damaged. When it ends, it keeps only the last one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from fedpisa.storage.files import PARTIAL, DamagedFileError, digest_of, read_file, refuse_link, replace_file
from fedpisa.storage.tensor_file import FORMAT, decode, encode, require_format

if TYPE_CHECKING:
    from torch import Tensor

KEPT: Final = 2
"""Number of checkpoints that a run keeps until it ends."""
_NAME: Final = re.compile(r"round-(\d+)-([0-9a-f]{32})\.safetensors")


@final
@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run resumes.

    Parameters
    ----------
    server_round
        The last completed round.
    tensors
        All tensors that change from round to round, by name.
    metadata
        Values that JSON can express.
    """

    server_round: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def write(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, then remove all but the last two.

    Raises
    ------
    OSError
        If the checkpoint cannot be written; earlier checkpoints stay.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in (1, 2, 3):
    ...         file = write(Path(folder), Checkpoint(number, {"w": torch.ones(number)}, {"seed": 0}))
    ...     [read(file).tensors["w"].tolist() for file in newest_first(Path(folder))]
    [[1.0, 1.0, 1.0], [1.0, 1.0]]
    """
    description = {
        "format": FORMAT,
        "round": checkpoint.server_round,
        "names": list(checkpoint.tensors),  # in order, because safetensors sorts the tensors
        "facts": dict(checkpoint.metadata),
    }
    content = encode(checkpoint.tensors, description)
    refuse_link(directory).mkdir(exist_ok=True)
    file = directory / f"round-{checkpoint.server_round}-{digest_of(content)}.safetensors"
    replace_file(file, content)
    earlier = [other for other in newest_first(directory) if _round(other) < checkpoint.server_round]
    _remove_all_but(directory, {file, *earlier[: KEPT - 1]})
    return file


def keep_last(directory: Path) -> None:
    """Remove all checkpoints but the last, from which a finished run can be extended."""
    _remove_all_but(directory, set(newest_first(directory)[:1]))


def _remove_all_but(directory: Path, keep: Collection[Path]) -> None:
    for other in refuse_link(directory).iterdir() if directory.is_dir() else ():
        if (
            other not in keep
            and other.is_file()
            and (_NAME.fullmatch(other.name) or other.name.endswith(PARTIAL))
        ):
            with suppress(FileNotFoundError):
                other.unlink()


def newest_first(directory: Path) -> list[Path]:
    """Return the files of a directory with a checkpoint's name, sorted from the last round to the first."""
    files = refuse_link(directory).iterdir() if directory.is_dir() else ()
    return sorted(
        (file for file in files if _NAME.fullmatch(file.name) and file.is_file()), key=_round, reverse=True
    )


def read(file: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ValueError
        If the file is damaged, or a version of fedpisa with another format wrote it.
    """
    name = _NAME.fullmatch(file.name)
    refuse_link(file.parent)
    if name is None:
        raise DamagedFileError(file)
    description, tensors = read_file(file, lambda content: decode(content, file), name[2])
    require_format(description, file)
    ordered = {name: tensors[name] for name in description["names"]}
    return Checkpoint(description["round"], ordered, description["facts"])


def _round(file: Path) -> int:
    return int(file.name.split("-")[1])
