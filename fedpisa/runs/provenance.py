"""Provenance of a run: versions, machine and start time."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import sysconfig
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedpisa.tasks.measures import as_records

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
    privacy, majority = simulation.privacy, simulation.federation.majority_share()
    return {
        "seed": simulation.config.seed,
        "versions": versions,
        "machine": machine,
        "engine": simulation.engine,
        "process": {"threads": torch.get_num_threads()},
        "data": simulation.federation.data_digest(),
        "model_source": source_digest(simulation.config.model or "", task.module),
        "task_source": source_digest(simulation.config.task or "", task.module),
        "num_parameters": task.layout.size,
        "layout": task.layout.fingerprint,
        "measures": as_records(task.measures),
        "started": now(),
        **({} if privacy is None else {"privacy": privacy.record(simulation.config.num_server_rounds)}),
        **({} if majority is None else {"majority_share": majority}),
        **({"reference": simulation.reference} if simulation.reference else {}),
        **simulation.grid.info,
    }


def source_digest(own: str, module: nn.Module) -> str | None:
    """Return a digest of the files that define a user's own model or task; ``None`` for one of ours.

    The files are those of the module that ``own`` names and of the layers' classes, without installed packages.

    Examples
    --------
    >>> source_digest("mlp", torch.nn.Linear(1, 1)) is None
    True
    """
    if ":" not in own:
        return None
    names = {own.partition(":")[0], *(type(layer).__module__ for layer in module.modules())}
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    digest, found = hashlib.sha256(), False
    for name in sorted(names - {"__main__"}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or file.startswith(installed) or name.partition(".")[0] == "fedpisa":
            continue
        with suppress(OSError):
            digest.update(name.encode() + Path(file).read_bytes())
            found = True
    return digest.hexdigest()[:32] if found else None


def now() -> str:
    """Return the current UTC time in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
