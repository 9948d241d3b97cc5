"""Provenance of a run: versions, machine and start time."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fedpisa.runs.simulation import Simulation


def provenance_of(simulation: Simulation) -> dict[str, object]:
    """Return the entries of ``run.json`` that are known before the first round."""
    task, device = simulation.federation.task, simulation.federation.device
    versions = {"python": platform.python_version()}
    for package in ("fedpisa", "flwr", "torch", "torchvision", "numpy", "scikit-learn"):
        with suppress(ModuleNotFoundError):
            versions[package] = version(package)
    machine = {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return {
        "seed": simulation.config.seed,
        "versions": versions,
        "machine": machine,
        "engine": simulation.engine,
        "process": {"threads": torch.get_num_threads()},
        "data": simulation.federation.data_digest(),
        "num_parameters": task.layout.size,
        "layout": task.layout.fingerprint,
        "started": now(),
        **simulation.grid.info,
    }


def now() -> str:
    """Return the current UTC time in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
