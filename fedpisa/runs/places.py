"""Where a run's directory may be made."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from fedpisa.storage.files import OccupiedError, is_leftover, shortened

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig


def require_free(directory: str | Path) -> Path:
    """Return ``directory`` as a path; a run may write there if it does not exist or is empty.

    Raises
    ------
    OccupiedError
        If ``directory`` is a file or not empty: results are never overwritten.
    """
    path = Path(directory)
    if path.is_dir():
        if any(not is_leftover(file.name) for file in path.iterdir()):
            raise OccupiedError(
                f"directory {path} exists and is not empty: name another one, because nothing is overwritten"
            )
    elif path.exists() or path.is_symlink():
        raise OccupiedError(f"{path} exists and is not a directory: name another directory for the result")
    return path


def directory_for(config: RunConfig) -> Path:
    """Return a new directory ``runs/<algorithm>-<dataset>-<seed>`` for a run."""
    name = re.sub(r"[^\w.-]+", "-", f"{config.algorithm}-{config.dataset}-{config.seed}")
    return free_directory(Path("runs") / shortened(name))


def free_directory(path: str | Path) -> Path:
    """Return the first of ``path``, ``path-2``, ``path-3``, ... that does not exist."""
    base = Path(path)
    candidates = chain([base], (base.with_name(f"{base.name}-{number}") for number in count(2)))
    return next(file for file in candidates if not (file.exists() or file.is_symlink()))
