"""Per-client metrics equal each client's own evaluation on both engines, and their files survive a kill."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.flower.compat import to_tensors
from fedpisa.runs.per_client import evaluate_clients
from fedpisa.runs.results import RunDirectory
from fedpisa.runs.run_files import CLIENTS as FILE
from fedpisa.runs.runner import Simulation

KEYS: dict[str, Any] = {
    "algorithm": "fedavg", "model": "logistic", "num-clients": 7, "dirichlet-alpha": 0.3, "fraction-train": 0.5,
    "num-server-rounds": 5, "eval-every": 2, "learning-rate": 0.3, "per-client": True, "dtype": "float64",
}  # fmt: skip
COLUMNS = ["round", "client", "num_examples", "train_loss", "loss", "accuracy"]


@pytest.mark.parametrize(
    "keys", [KEYS, {**KEYS, "dataset": "quadratic", "partitioner": "natural", "model": "linear"}]
)
@pytest.mark.parametrize("batch_size", [1, 100, 10_000])
def test_one_pass_is_what_each_client_measures_itself(keys: dict[str, Any], batch_size: int) -> None:
    keys = {
        key: value for key, value in keys.items() if "natural" not in keys.values() or "dirichlet" not in key
    }
    simulation = Simulation(RunConfig.from_mapping(keys))
    list(simulation.rows())
    task, data = simulation.federation.task, simulation.federation.data
    params_P = to_tensors(simulation.model, data.x.dtype, data.x.device)["params"]
    got = evaluate_clients(task, data, params_P, params_P.new_zeros(0), batch_size)
    for client in range(data.num_clients):
        wanted = task.evaluate(params_P, params_P.new_zeros(0), *data.client(client))
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert got[name][client] == pytest.approx(value, rel=1e-12)


def test_the_engines_measure_the_same() -> None:
    loop, vmap = (fedpisa.run({**KEYS, "engine": engine}).clients for engine in ("loop", "vmap"))
    exact = ["round", "client", "num_examples", "accuracy"]
    pd.testing.assert_frame_equal(loop[exact], vmap[exact])
    pd.testing.assert_frame_equal(loop, vmap, rtol=1e-12)


def test_rows_and_columns() -> None:
    result = fedpisa.run(KEYS)
    clients = result.clients
    assert clients.columns.tolist() == COLUMNS
    assert clients["round"].tolist() == np.repeat([0, 2, 4, 5], 7).tolist()
    assert clients["client"].tolist() == [*range(7)] * 4
    assert clients["num_examples"].tolist() == [len(part) for part in result.partition] * 4
    trained = clients["train_loss"].notna().groupby(clients["round"]).sum()
    assert trained.tolist() == [0, 4, 4, 4]
    for number, one in clients.groupby("round"):
        train_loss = result.history["train_loss"][number]
        if number:
            present = one.dropna()
            assert np.average(present["train_loss"], weights=present["num_examples"]) == pytest.approx(
                train_loss
            )


def test_nothing_is_measured_unless_asked(tmp_path: Path) -> None:
    result = fedpisa.run({**KEYS, "per-client": False}, tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()
    with pytest.raises(ValueError, match="run with per-client = true"):
        _ = result.clients


def test_it_changes_no_result(tmp_path: Path) -> None:
    for name, asked in (("with", True), ("without", False)):
        fedpisa.run({**KEYS, "per-client": asked}, tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == other


class TestFiles:
    def test_the_folder_is_one_table(self, tmp_path: Path) -> None:
        result = fedpisa.run(KEYS, tmp_path / "run")
        memory = fedpisa.run(KEYS).clients
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / FILE), memory)
        pd.testing.assert_frame_equal(result.clients, memory)
        pd.testing.assert_frame_equal(fedpisa.load_result(tmp_path / "run").clients, memory)
        assert len(list((tmp_path / "run" / FILE).iterdir())) == 4

    def test_an_interrupted_run_leaves_what_it_had_and_half_a_file_is_left_out(self, tmp_path: Path) -> None:
        def stop(event: object) -> None:
            if getattr(event, "row", {}).get("round") == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fedpisa.run(KEYS, tmp_path / "run", on_event=stop)
        (tmp_path / "run" / FILE / ".round-000005.parquet.partial").write_bytes(b"PAR1")
        clients = fedpisa.load_result(tmp_path / "run").clients
        assert clients["round"].unique().tolist() == [0, 2, 4]
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / FILE), clients)

    def test_a_repeated_round_replaces_its_own(self, tmp_path: Path) -> None:
        result = fedpisa.run(KEYS, tmp_path / "run")
        before = {file.name: file.read_bytes() for file in (tmp_path / "run" / FILE).iterdir()}
        simulation = Simulation(result.config)
        for row in simulation.rows():
            if row["round"] in (0, 2, 4, 5):
                RunDirectory(tmp_path / "run").write_clients(simulation.client_table())
        assert {file.name: file.read_bytes() for file in (tmp_path / "run" / FILE).iterdir()} == before

    def test_a_resumed_run_has_the_table_of_one_that_was_not_interrupted(self, tmp_path: Path) -> None:
        def stop(event: object) -> None:
            if getattr(event, "row", {}).get("round") == 4:
                raise KeyboardInterrupt

        keys = {**KEYS, "checkpoint-every": 3}
        whole = fedpisa.run(keys, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            fedpisa.run(keys, tmp_path / "run", on_event=stop)
        pd.testing.assert_frame_equal(fedpisa.run(resume=tmp_path / "run").clients, whole.clients)

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(
            ValueError, match=r"needs the extra parquet: run pip install 'fedpisa\[parquet\]'"
        ):
            fedpisa.run(KEYS, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert len(fedpisa.run(KEYS).clients) == 28
