"""Plans shared by the tests of tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpisa.tuning.plan import Plan

BASE: Mapping[str, Any] = {
    "dataset": "quadratic",
    "partitioner": "natural",
    "num-clients": 3,
    "dimension": 4,
    "dtype": "float64",
    "batch-size": "full",
    "num-server-rounds": 9,
}
TABLES: Mapping[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "tune": {"trials": 5, "metric": "test_loss", "seeds": [2]},
    "base": BASE,
    "search": {"learning-rate": {"low": 0.01, "high": 1, "log": True}},
    "variant": [
        {"name": "sgd", "algorithm": "fedsgd"},
        {
            "name": "sisa",
            "algorithm": "sisa",
            "search": {"sigma": [0.1, 1, 10], "local-steps": {"low": 1, "high": 9}},
        },
    ],
}


def tables_of(**changes: Any) -> dict[str, Any]:
    tables = {**TABLES, **changes}
    return {
        **tables,
        "base": {**BASE, **changes.get("base", {})},
        "tune": {**TABLES["tune"], **changes.get("tune", {})},
    }


def plan_of(**changes: Any) -> Plan:
    return Plan.from_mapping(tables_of(**changes))


def write(path: Path, **changes: Any) -> Path:
    import tomli_w

    path.write_text(tomli_w.dumps(tables_of(**changes)))
    return path


SGD: Mapping[str, Any] = {"variant": [TABLES["variant"][0]]}
GRID: Mapping[str, Any] = {
    "tune": {"sampler": "grid", "trials": 6},
    "search": {"learning-rate": [0.1, 0.3, 1]},
    "variant": [{"name": "sgd", "algorithm": "fedsgd", "search": {"momentum": [0, 0.5]}}],
}
