"""Federated learning on heterogeneous data: PISA and other algorithms, simulated and deployed with Flower."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig, load_config
    from fedpisa.runs.results import Result, load_result
    from fedpisa.runs.runner import run
    from fedpisa.studies.comparison import compare
    from fedpisa.studies.demo import run_demo
    from fedpisa.studies.study import Study, load_study, read_study

__version__ = "0.1.0"
__all__ = [
    "Result",
    "RunConfig",
    "Study",
    "__version__",
    "compare",
    "load_config",
    "load_result",
    "load_study",
    "read_study",
    "run",
    "run_demo",
]

_HOMES = {
    "Result": "runs.results",
    "RunConfig": "config.run",
    "Study": "studies.study",
    "compare": "studies.comparison",
    "load_config": "config.run",
    "load_result": "runs.results",
    "load_study": "studies.study",
    "read_study": "studies.study",
    "run": "runs.runner",
    "run_demo": "studies.demo",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that ``import fedpisa`` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpisa' has no attribute {name!r}")
    value = getattr(import_module(f"fedpisa.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


_MOVED = {
    "diagnostics": "tasks.full_objective",
    "layout": "tasks.layout",
    "runner": "runs.runner",
    "streams": "rng",
    "tracking": "runs.tracking",
}
"""Documented paths of modules that have moved, and their new paths."""


class _Moved(ModuleType):
    """A module under its old path, which imports names from the new path with a warning."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        new = f"fedpisa.{_MOVED[self.__name__.removeprefix('fedpisa.')]}"
        warn(f"{self.__name__} is now {new}: import {name} from there", DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)


for _old in _MOVED:
    globals()[_old] = sys.modules[f"fedpisa.{_old}"] = _Moved(f"fedpisa.{_old}")
