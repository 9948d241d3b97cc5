"""Federated learning under data heterogeneity: PISA and its competitors, simulated and deployed on Flower."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    """Import a public name when it is first used: ``import fedpisa`` itself stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpisa' has no attribute {name!r}")
    value = getattr(import_module(f"fedpisa.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
