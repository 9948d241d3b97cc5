"""Fixtures: run directories with made-up numbers and known statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpisa.config.run import RunConfig
from fedpisa.runs.results import RunDirectory

WriteRun = Callable[..., Path]

ROUNDS = 4


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Return a function that writes a run's directory, with an accuracy that rises linearly to ``final``."""

    def write(
        name: str,
        final: float | None = 0.9,
        *,
        status: str = "finished",
        keys: Mapping[str, Any] = {},
        columns: Mapping[str, Sequence[float]] = {},
        info: Mapping[str, Any] = {},
        rounds: int = ROUNDS,
    ) -> Path:
        config = RunConfig.from_mapping(
            {
                "algorithm": "fedavg",
                "model": "logistic",
                "num-clients": 3,
                "num-server-rounds": ROUNDS,
                **keys,
            }
        )
        about = {"versions": {"fedpisa": "0.1.0"}, "machine": {"device": "cpu"}, **info}
        parts = [np.arange(3), np.arange(3, 5), np.arange(5, 6)]
        directory = RunDirectory.create(tmp_path / "runs" / name, config=config, info=about, partition=parts)
        for number in range(rounds + 1):
            row: dict[str, Any] = {"round": number, "test_loss": 2.0 / (number + 1)}
            if final is not None:
                row["test_accuracy"] = final * number / rounds
            if number:
                row |= {"train_loss": 1.0 / number, "bytes_up": 2e6, "bytes_down": 1e6}
                row |= {"local_steps": 30, "seconds": 0.5}
                row |= {column: values[number - 1] for column, values in columns.items()}
            directory.append(row)
        directory.update(status=status)
        return directory.path

    return write
