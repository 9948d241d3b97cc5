"""Provenance of a run: versions, machine and start time."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from fedpisa.simulation.stacked.threads import allocator

if TYPE_CHECKING:
    from fedpisa.runs.simulation import Simulation


def provenance_of(simulation: Simulation) -> dict[str, object]:
    """Return what ``run.json`` says of a run before its first round."""
    packages = ("fedpisa", "flwr", "torch", "torchvision", "numpy", "scikit-learn")
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(ModuleNotFoundError):
            versions[package] = version(package)
    machine = {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(simulation.federation.device),
    }
    if simulation.federation.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(simulation.federation.device)
    started = {
        "engine": simulation.engine,
        "process": {"allocator": allocator(), "threads": torch.get_num_threads()},
        "data": simulation.federation.data_digest(),
        "num_parameters": simulation.federation.task.layout.size,
        "layout": simulation.federation.task.layout.fingerprint,
        "started": now(),
    }
    about = {"seed": simulation.config.seed, "versions": versions, "machine": machine, **started}
    return {**about, **simulation.grid.info}


def now() -> str:
    """Return the time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
