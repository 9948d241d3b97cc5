"""Images that the runs' generators made."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_LARGEST: Final = 4_000_000
"""Bytes above which a file is left out of the page."""


def images(collection: Collection) -> list[tuple[str, str]]:
    """Return a caption and a ``data:`` address for each group with ``samples.png``: of its first finished run."""
    found = []
    for group in collection.groups:
        for seed, run in group.finished.items():
            file = run.directory / "samples.png"
            if not file.is_file() or file.is_symlink() or file.stat().st_size > _LARGEST:
                continue
            content = file.read_bytes()
            if content.startswith(_PNG):
                names = collection.variants[group.variant], collection.splits[group.split]
                caption = f"{', '.join(names)}, seed {seed}"
                found.append((caption, f"data:image/png;base64,{base64.b64encode(content).decode()}"))
                break
    return found
