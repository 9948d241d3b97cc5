"""A fixture that finds real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Callable[..., Path]:
    """Return the folder that holds the named files, or skip the test."""
    given = os.environ.get("FEDPISA_DATA")
    folders = [Path(given)] if given else []
    folders.append(Path(__file__).parents[3] / "shared" / "data")

    def find(*names: str) -> Path:
        for folder in folders:
            if all((folder / name).is_file() for name in names):
                return folder
        pytest.skip(f"{' and '.join(names)} not in FEDPISA_DATA nor in ../shared/data")

    return find
