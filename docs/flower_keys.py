"""Write the keys of a run into ``pyproject.toml``, where Flower looks for them: ``python docs/flower_keys.py``."""

from __future__ import annotations

import re
from pathlib import Path

from fedpisa.config.flower import UNSET, all_keys

FILE = Path(__file__).parents[1] / "pyproject.toml"
HEAD = """\
[tool.flwr.app.config]
# Every key that a run can have, because Flower refuses others; "" is not given. Made by docs/flower_keys.py.
"""


def text() -> str:
    """Return ``pyproject.toml`` with the table of keys up to date."""
    table = HEAD + "".join(f'{key} = "{UNSET}"\n' for key in all_keys())
    before = FILE.read_text(encoding="utf-8")
    return re.sub(r"^\[tool\.flwr\.app\.config\]\n(?:[^\[\n].*\n)*", lambda _: table, before, flags=re.M)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
