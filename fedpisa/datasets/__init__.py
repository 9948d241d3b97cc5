"""Federated data: sources by name, ways to split them among clients, and how unlike the clients are."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedpisa.datasets.base import Dataset, Indices

__all__ = ["Dataset", "Indices", "load"]

_SOURCES = ("embedded", "synthetic", "libsvm")


def load(
    name: str, *, seed: int = 0, data_dir: str | Path | None = None, num_clients: int = 10, **options: Any
) -> Dataset:
    """Load a data set by name."""
    sources: dict[str, Callable[..., Dataset]] = {}
    for module_name in _SOURCES:
        module = importlib.import_module(f"{__name__}.{module_name}")
        for key, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_"):
                sources[key.replace("_", "-")] = value
    if name not in sources:
        near = difflib.get_close_matches(name, sources, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown dataset {name}{hint} (known: {', '.join(sorted(sources))})")
    source = sources[name]
    given = {
        "seed": seed,
        "num_clients": num_clients,
        "data_dir": Path(data_dir or os.environ.get("FEDPISA_DATA") or "data"),
    }
    wanted = inspect.signature(source).parameters
    return source(**{key: value for key, value in given.items() if key in wanted}, **options)
