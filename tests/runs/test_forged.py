"""Runs whose digests are right and whose content no run writes: a report on others goes on, and nothing leaks."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpisa.report import write_report
from fedpisa.runs.results import load_result
from fedpisa.runs.run_files import RunReader
from fedpisa.runs.runner import run
from fedpisa.storage.files import digest_of
from tests.runs.test_damage import require_line

KEYS = {
    "algorithm": "fedavg",
    "model": "logistic",
    "num-clients": 3,
    "num-server-rounds": 2,
    "per-client": True,
}
SAMPLES = {str(client): np.arange(4) for client in range(3)}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good") / "good"
    run(KEYS, directory)
    return directory


def forged(good: Path, place: Path, name: str, content: bytes) -> Path:
    """Return a copy of a run with another file, whose digest is right."""
    shutil.copytree(good, place)
    (place / name).write_bytes(content)
    info = json.loads((place / "run.json").read_text())
    info["digests"][name] = digest_of(content)
    (place / "run.json").write_text(json.dumps(info))
    return place


def reported(good: Path, folder: Path) -> str:
    page = write_report([good, folder], folder / "report.html").page.read_text()
    assert "fedavg" in page
    return page


COUNTS: Mapping[str, Any] = {
    "negative": np.array([[5, -1]] * 3),
    "of other samples": np.array([[5, 1]] * 3),
    "of fewer clients": np.array([[3, 1]] * 2),
    "NaN": np.full((3, 2), np.nan),
    "words": np.array([["a", "b"]] * 3),
    "complex": np.ones((3, 4), complex),
    "dates": np.ones((3, 4), "M8[s]"),
    "too large": np.full((3, 2), 2**63 - 1),
    "right after an overflow": np.array([[2**63 - 1, 2**63 - 1, 6]] * 3),
    "a number": np.int64(3),
    "in three dimensions": np.ones((3, 4, 1), int),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_counts_that_are_none_are_left_out(kind: str, good: Path, tmp_path: Path) -> None:
    """Each of these ended a report on all runs in a traceback, or was drawn."""
    for name in ("labels", "deciles"):
        content = io.BytesIO()
        np.savez(content, **SAMPLES, **{name: COUNTS[kind]})
        directory = forged(good, tmp_path / name, "partition.npz", content.getvalue())
        assert RunReader(directory).counts() is None
        assert len(load_result(directory).partition) == 3
    page = write_report([tmp_path / "labels"], tmp_path / "report.html").page.read_text()
    assert "no labels by client" in page


SPLITS: Mapping[str, Mapping[str, Any]] = {
    "other names": {"a": np.arange(2), "b": np.arange(2)},
    "negative indices": {**SAMPLES, "0": np.array([-1])},
    "indices in two dimensions": {**SAMPLES, "0": np.ones((2, 2), int)},
    "indices in words": {**SAMPLES, "0": np.array(["a"])},
}


@pytest.mark.parametrize("kind", SPLITS)
def test_a_split_that_is_none_is_named(kind: str, good: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, **SPLITS[kind])
    directory = forged(good, tmp_path / "bad", "partition.npz", content.getvalue())
    with pytest.raises(ValueError, match=r"partition\.npz is damaged") as caught:
        load_result(directory)
    require_line(caught.value, "partition.npz")
    assert "partition.npz is damaged" in reported(good, tmp_path)


ROUNDS: Mapping[str, Callable[[Rows], Rows]] = {
    "round 0 three times": lambda rows: [{**row, "round": 0} for row in rows],
    "round 0 again": lambda rows: [*rows, {"round": 0}],
    "the last round twice": lambda rows: [*rows, rows[-1]],
    "no round": lambda rows: [*rows, {"round": None}],
    "half a round": lambda rows: [*rows, {"round": 9.5}],
}


@pytest.mark.parametrize("kind", ROUNDS)
def test_rounds_that_are_not_in_order_are_named(kind: str, good: Path, tmp_path: Path) -> None:
    directory = forged(good, tmp_path / "bad", "metrics.jsonl", lines(ROUNDS[kind](rows_of(good))))
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        load_result(directory)
    assert "metrics.jsonl is damaged" in reported(good, tmp_path)


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324, 2**63, 2**64 - 1, -(2**63)])
@pytest.mark.parametrize("column", ["test_accuracy", "train_loss", "bytes_up", "local_steps", "seconds"])
def test_sums_of_huge_numbers_are_no_error(column: str, value: float, good: Path, tmp_path: Path) -> None:
    rows = [{**row, column: value} for row in rows_of(good)]
    directory = forged(good, tmp_path / "bad", "metrics.jsonl", lines(rows))
    assert load_result(directory).total(column) == float(sum(float(value) for _ in rows))


def test_a_report_on_huge_numbers(good: Path, tmp_path: Path) -> None:
    columns = ("test_accuracy", "test_loss", "train_loss", "bytes_up", "bytes_down", "local_steps", "seconds")
    for column in columns:
        rows = [{**row, column: 1e308} for row in rows_of(good)]
        forged(good, tmp_path / "runs" / column, "metrics.jsonl", lines(rows))
    assert "cannot be read" not in reported(good, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.parquet",
        "clients.parquet/../../secret.parquet",
        "clients.parquet",
        "clients.parquet/x/round-1.parquet",
    ],
)
def test_only_a_runs_own_files_are_read(name: str, good: Path, tmp_path: Path) -> None:
    """A digest in ``run.json`` names a file, and this name comes from the run."""
    shutil.copytree(good, tmp_path / "runs" / "bad")
    (tmp_path / "secret.parquet").write_bytes(
        (good / "clients.parquet" / "round-000002.parquet").read_bytes()
    )
    file = tmp_path / "runs" / "bad" / "run.json"
    info = json.loads(file.read_text())
    info["digests"][name] = digest_of((tmp_path / "secret.parquet").read_bytes())
    file.write_text(json.dumps(info))
    assert name not in RunReader(file.parent).client_rounds()
    assert len(load_result(file.parent).clients) == 9


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_folder_whose_name_is_no_text(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "runs" / os.fsdecode(b"\xff\xfe"))
    assert reported(good, tmp_path / "runs")


@pytest.mark.parametrize("share", [-0.1, 1.1, 1e300])
def test_a_share_is_at_most_all(share: float, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "bad")
    file = tmp_path / "bad" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "majority_share": share}))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(majority_share"):
        load_result(tmp_path / "bad")


def rows_of(directory: Path) -> Rows:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
