"""Helpers: runs that are interrupted, and the files that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedpisa.runs.events import Event, RoundFinished
from fedpisa.runs.results import load_result
from fedpisa.runs.runner import run
from fedpisa.storage import checkpoint

SMALL: Mapping[str, object] = {
    "model": "logistic",
    "num-clients": 5,
    "fraction-train": 0.5,
    "num-server-rounds": 7,
    "checkpoint-every": 2,
    "eval-every": 2,
}
STATEFUL: list[dict[str, object]] = [
    {"algorithm": "sisa"},
    {"algorithm": "scaffold", "local-steps": 3},
    {"algorithm": "fedsgd", "optimizer": "adam"},
]


class KilledError(Exception):
    """The simulated end of the process."""


def killed_after(server_round: int) -> Callable[[Event], None]:
    """Return a listener that ends the run once a round's row is on the disk."""

    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.row["round"] == server_round:
            raise KilledError

    return listen


def cut_short(config: Mapping[str, object], out: Path, server_round: int) -> Path:
    with pytest.raises(KilledError):
        run(config, out, on_event=killed_after(server_round))
    return out


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl`` without measured seconds; every line must be complete."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in kept]


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("model.safetensors", "partition.npz", "config.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert load_result(one).status == load_result(other).status == "finished"


def forget_digests(directory: Path) -> Path:
    """Turn a run into one of an earlier version, whose files may be edited."""
    info = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**info, "digests": {}}))
    return directory


def checkpoints(directory: Path) -> list[int]:
    """Return the rounds of the run's checkpoints, the newest first."""
    files = checkpoint.newest_first(directory / "checkpoint")
    return [checkpoint.read(file).server_round for file in files]
