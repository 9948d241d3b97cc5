"""The files of a run's directory as they are read: a damaged file is one error in one line, with its name.

When a run ends, ``run.json`` gets the digests of the other files, which are checked whenever a file is read. A run that
goes on has no digests; its checkpoint has that of ``metrics.jsonl``. Runs of earlier versions have none.
"""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, final

import numpy as np
import pydantic
import pydantic_core
from numpy.typing import NDArray

from fedpisa.components import LOG
from fedpisa.config.run import RunConfig
from fedpisa.storage.files import DamagedFileError, digest_of, read_bytes, read_file, refuse_link
from fedpisa.tasks.measures import from_records

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Status = Literal["running", "finished", "diverged", "interrupted", "failed"]
Row = Mapping[str, float | int | None]

TIED: Final = "tied"
"""Key of the metadata of ``model.safetensors`` that names entries that repeat another."""
BASE: Final = "base"
"""Key of the metadata of ``model.safetensors`` with the folder of the pretrained model, and its digest."""
LABELS: Final = "labels"
DECILES: Final = "deciles"
"""Names of the arrays in ``partition.npz`` that count samples."""
VALIDATION: Final = "validation"
"""Name of the array in ``partition.npz`` with the positions of the validation samples in the training set."""
CLIENTS: Final = "clients.parquet"
"""Folder with a file for each round in which clients were evaluated."""
DIGESTED: Final = (
    "config.toml",
    "metrics.jsonl",
    "partition.npz",
    "model.safetensors",
    "vocabulary.json",
    "tokenizer.json",
    "samples.txt",
    "samples.png",
    f"{CLIENTS}/*.parquet",
)
"""The files whose digests are in ``run.json``."""
_CLIENT_ROUND: Final = re.compile(rf"{re.escape(CLIENTS)}/round-\d+\.parquet")

_Whole = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**64)]
_STRICT: Final = pydantic.ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
_ROW: Final = pydantic.TypeAdapter(dict[str, _Whole | float | None], config=_STRICT)


class _Info(pydantic.BaseModel):
    """The types of the entries of ``run.json`` that are used; others may be there too."""

    model_config = _STRICT

    status: Status
    digests: dict[str, str] = {}
    versions: dict[str, str] = {}
    machine: dict[str, str | int | float | None] = {}
    process: dict[str, Any] = {}
    resumed: list[dict[str, Any]] = []
    seconds: float | None = None
    data: str | None = None
    run: str | int | None = None
    majority_share: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    reference: str = ""
    measures: list[dict[str, str | bool]] | None = None


@final
class RunReader:
    """Reads the files of a run's directory.

    Parameters
    ----------
    path
        The directory.

    Raises
    ------
    DamagedFileError
        If ``run.json`` cannot be read, or a folder has the name of a file. Without ``run.json``, there are no entries
        and no digests.
    """

    def __init__(self, path: Path) -> None:
        file = path / "run.json"
        self.path = path
        self.info: dict[str, Any] = read_file(file, _info) if file.exists() else {}
        for file in self._files():
            if file.is_dir():
                raise DamagedFileError(file, "it is a directory")

    @property
    def status(self) -> Status | None:
        """The entry ``status`` of ``run.json``."""
        return self.info.get("status")

    def config(self) -> RunConfig:
        """Return the configuration, without importing what it names; a warning says that it was changed.

        Raises
        ------
        ValueError
            If the file cannot be read, or does not hold a configuration.
        """
        file = self.path / "config.toml"

        def decode(content: bytes) -> dict[str, object]:
            if self._digests.get("config.toml") not in (None, digest_of(content)):
                LOG.warning("%s is not what was written: it was edited, or is damaged", file)
            if not content.strip():
                raise ValueError("it is empty")
            return tomllib.loads(content.decode())

        values = read_file(file, decode)
        try:
            return RunConfig.from_mapping(values, stored=True)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def rows(self, length: int | None = None, digest: str | None = None) -> list[Row]:
        """Return the rounds.

        Parameters
        ----------
        length
            Number of bytes to read; by default the whole file.
        digest
            The digest of these bytes, if it is known.

        Raises
        ------
        DamagedFileError
            If the file has fewer bytes or another digest, or a line is not a round's.
        """

        def decode(content: bytes) -> list[Row]:
            if length is not None:
                if len(content) < length:
                    raise ValueError("rounds are missing")
                content = content[:length]
            if digest not in (None, digest_of(content)):
                raise ValueError("its content is not what was written")
            return _rows(content)

        # The digest in run.json is that of the whole file.
        return self._read("metrics.jsonl", decode, checked=length is None)

    def partition(self) -> list[NDArray[np.int64]]:
        """Return each client's sample indices; an empty list if there is no file."""
        return self._split()[0]

    def counts(self) -> tuple[str, NDArray[np.int64]] | None:
        """Return `LABELS` or `DECILES`, and each client's samples of each ``(N, C)``; ``None`` if there are none."""
        return self._split()[1]

    def _split(self) -> tuple[list[NDArray[np.int64]], tuple[str, NDArray[np.int64]] | None]:
        return self._read("partition.npz", _split) if self._has("partition.npz") else ([], None)

    def model(self) -> dict[str, NDArray[Any]]:
        """Return the global model's arrays; an empty mapping if there is no file."""
        return self._read("model.safetensors", _model) if self._has("model.safetensors") else {}

    def base(self) -> dict[str, str]:
        """Return the folder and the digest of the pretrained model; an empty mapping if there is none."""
        return self._read("model.safetensors", _base) if self._has("model.safetensors") else {}

    def client_rounds(self) -> list[str]:
        """Return the names of the files in ``clients.parquet``, those that are missing too, in the rounds' order."""
        if refuse_link(self.path / CLIENTS).is_file():
            return [CLIENTS]
        there = {f"{CLIENTS}/{file.name}" for file in (self.path / CLIENTS).glob("round-*.parquet")}
        return sorted(there | {name for name in self._digests if _CLIENT_ROUND.fullmatch(name)})

    def client_table(self, name: str) -> pd.DataFrame:
        """Return one of the tables that `client_rounds` names."""
        return self._read(name, _table)

    def digests(self) -> dict[str, str]:
        """Return the digests of the files that are there, for ``run.json``."""
        return {file.relative_to(self.path).as_posix(): digest_of(read_bytes(file)) for file in self._files()}

    def _files(self) -> list[Path]:
        """Return the files that are there and have digests in ``run.json`` when the run has ended."""
        refuse_link(self.path / CLIENTS)
        return [file for pattern in DIGESTED for file in sorted(self.path.glob(pattern))]

    @property
    def _digests(self) -> Mapping[str, str]:
        digests: Mapping[str, str] = self.info.get("digests", {})
        return digests

    def _has(self, name: str) -> bool:
        return name in self._digests or (self.path / name).exists()

    def _read(self, name: str, decode: Callable[[bytes], T], checked: bool = True) -> T:
        return read_file(self.path / name, decode, self._digests.get(name) if checked else None)


def _info(content: bytes) -> dict[str, Any]:
    try:
        from_records(_Info.model_validate_json(content).measures)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(" ".join([*map(str, first["loc"]), first["msg"]])) from error
    entries: dict[str, Any] = pydantic_core.from_json(content)
    return entries


def _rows(content: bytes) -> list[Row]:
    # A killed process may leave an incomplete last line.
    lines = content.decode().split("\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                rows.append(_ROW.validate_json(line))
            except pydantic.ValidationError as error:
                raise ValueError(f"line {number}: {error.errors()[0]['msg']}") from error
    rounds = [value for row in rows if isinstance(value := row.get("round"), int) and value >= 0]
    if len(rounds) < len(rows):
        raise ValueError("a line has no round")
    if any(late <= early for early, late in pairwise(rounds)):
        raise ValueError("the rounds are not in order")
    return rows


def _split(content: bytes) -> tuple[list[NDArray[np.int64]], tuple[str, NDArray[np.int64]] | None]:
    """Return each client's sample indices, and what counts its samples; earlier versions stored other counts."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        clients = range(len({*arrays.files} - {LABELS, DECILES, VALIDATION}))
        parts: list[NDArray[np.int64]] = [arrays[str(client)] for client in clients]
        counts = next(((name, arrays[name]) for name in (LABELS, DECILES) if name in arrays.files), None)
    for part in parts:
        if part.ndim != 1 or part.dtype.kind != "i" or (part < 0).any():
            raise ValueError("it does not hold sample indices")
    return parts, counts if counts and _are_counts(counts[1], [len(part) for part in parts]) else None


def _are_counts(counts_NC: NDArray[Any], sizes: list[int]) -> bool:
    """Return whether an array counts the samples of each client."""
    if counts_NC.ndim != 2 or counts_NC.dtype.kind != "i":
        return False
    # Larger counts could add up to the size by an overflow.
    inside = (counts_NC >= 0).all() and (counts_NC <= max(sizes, default=0)).all()
    return bool(inside and counts_NC.sum(axis=1).tolist() == sizes)


def _model(content: bytes) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    arrays, tied = load(content), _metadata(content, TIED)
    return {name: value for name, value in arrays.items() if name not in tied}


def _base(content: bytes) -> dict[str, str]:
    base = _metadata(content, BASE)
    if not all(isinstance(value, str) for value in base.values()):
        raise ValueError("it does not name the pretrained model by texts")
    return base


def _metadata(content: bytes, key: str) -> dict[str, Any]:
    """Return an entry of the metadata in the header of a safetensors file."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    entry = json.loads(header.get("__metadata__", {}).get(key, "{}"))
    if not isinstance(entry, dict):
        raise ValueError(f"its metadata {key} is no table")
    return entry


def _table(content: bytes) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_parquet(io.BytesIO(content))
    if not {"round", "client"} <= set(table.columns) or any(
        dtype.kind not in "iuf" for dtype in table.dtypes
    ):
        raise ValueError("it does not hold the numbers of clients")
    return table
