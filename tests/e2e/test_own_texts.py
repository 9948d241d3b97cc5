"""A language model on SuperNodes with a text each: the model is that of a simulation with the same texts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import fedpisa
from fedpisa.config.flower import NodeSettings, to_run_config
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset
from fedpisa.datasets.text import own_windows
from fedpisa.deployment import processes
from fedpisa.deployment.local import CONNECTION, Deployment, free_port, write_app
from fedpisa.families.data import load
from fedpisa.runs.results import load_result

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="processes are found in /proc"
)
VOCABULARY = tuple(" abcde")
OWN: list[Dataset] = []
PATIENCE = 600.0


def own() -> Dataset:
    return OWN[-1]


def written(file: Path, seed: int, size: int) -> Path:
    file.write_text("".join(np.random.default_rng(seed).choice(VOCABULARY, size)))
    return file


def test_nodes_with_a_text_each_train_a_language_model(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{node}.txt", node, size) for node, size in enumerate((61, 130))]
    keys: dict[str, object] = {
        "dataset": "text",
        "data-file": str(written(tmp_path / "server.txt", 9, 300)),
        "window": 5,
        "task": "language",
        "carry-state": "epoch",
        "model": "lstm",
        "hidden": 4,
        "algorithm": "sisa",
        "num-clients": len(files),
        "num-server-rounds": 4,
        "batch-size": 4,
        "partitioner": "consecutive",
        "dtype": "float64",
        "device": "cpu",
    }
    on_nodes(RunConfig.from_mapping(keys), files, tmp_path)
    result = load_result(tmp_path / "run")

    parts = [own_windows(file, VOCABULARY, False, 5) for file in files]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    groups = np.repeat(np.arange(len(files)), [len(x) for x, _ in parts])
    server = load("text", data_file=keys["data-file"], window=5)
    OWN.append(
        Dataset.of(
            "own", (x, y), (server.x_test, server.y_test), num_classes=6, vocabulary=VOCABULARY, groups=groups
        )
    )
    simulated = {name: value for name, value in keys.items() if name not in ("data-file", "window")}
    wanted = fedpisa.run({**simulated, "dataset": f"{__name__}:own", "partitioner": "natural"})
    for name, value in wanted.parameters.items():
        np.testing.assert_allclose(result.parameters[name], value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        result.history["test_perplexity"], wanted.history["test_perplexity"], rtol=1e-10
    )


def on_nodes(config: RunConfig, files: list[Path], folder: Path) -> None:
    """Run a configuration on a SuperLink and on a SuperNode for each file."""
    configs: list[dict[str, int | str]] = [
        {"partition-id": node, "num-partitions": len(files), "data": str(file)}
        for node, file in enumerate(files)
    ]
    deployment = Deployment.prepare(folder / "private", f"127.0.0.1:{free_port()}", configs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        )
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            deployment.up()
            settings = NodeSettings(out=str(folder / "run"), node_data="own")
            app = write_app(deployment.folder / "app", to_run_config(settings, config))
            deployment.ask("flwr", "run", str(app), CONNECTION)
            deadline = time.monotonic() + PATIENCE
            while (status := status_of(folder / "run")) not in ("finished", "failed", "interrupted"):
                assert time.monotonic() < deadline, f"the run is {status}"
                time.sleep(0.1)
            assert status == "finished", (deployment.folder / "superlink.log").read_text()[-5000:]
        finally:
            deployment.down()
    assert processes.end(deployment.folder, deployment.processes()) == 0


def status_of(run: Path) -> str:
    """Return a run's status, read from its files; empty before there are any."""
    return load_result(run).status if (run / "metrics.jsonl").exists() else ""
