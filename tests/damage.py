"""Ways in which a file can be damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

Damage = Callable[[Path, random.Random], None]


def _rewritten(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    return lambda file, rng: (file.write_bytes(change(file.read_bytes(), rng)), None)[1]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 8])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _removed(file: Path, rng: random.Random) -> None:
    file.unlink()


def _directory(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _other_file(file: Path, rng: random.Random) -> None:
    """Replace the file by another file of the same run."""
    others = sorted(other for other in file.parent.iterdir() if other.is_file() and other != file)
    if others:
        shutil.copyfile(rng.choice(others), file)


JSON: Final = (
    "[]", "{}", "3", "null", "true", '"finished"', "NaN", '{"status": 5}', '{"status": "finished", "digests": 3}',
    '{"status": "finished", "versions": [], "machine": "x", "resumed": 7, "seconds": "long"}',
    '{"round": "one"}\n', '{"round": 0, "test_accuracy": "high"}\n', '{"round": 0}\n{"round": 0}\n', "[0]\n",
    '{"round": 1e400}\n', '{"round": -3}\n', '{"round": 0, "test_loss": ' + "9" * 400 + "}\n",
    '{"round": 0, "test_accuracy": {"a": [1]}}\n', '{"round": true}\n', '{"x": 0}\n', "9" * 5000, "x = " + "9" * 5000,
    'algorithm = 3\n', 'algorithm = [1]\n', 'num-clients = "many"\n', "num-clients = 1979-05-27\n",
    "[dataset]\na = 1\n", "optimizer-options = 3\n", "seed = inf\n", "data-dir = {a = 1}\n",
)  # fmt: skip
"""Content of the wrong types for a run's files."""

DAMAGES: Final[Mapping[str, Damage]] = {
    "missing": _removed,
    "a directory": _directory,
    "another file": _other_file,
    "empty": _rewritten(lambda content, rng: b""),
    "half": _rewritten(lambda content, rng: content[: len(content) // 2]),
    "cut": _rewritten(lambda content, rng: content[: rng.randrange(len(content) + 1)]),
    "a byte more": _rewritten(lambda content, rng: content + bytes([rng.randrange(256)])),
    "a flipped bit": _rewritten(_flipped),
    "zeros": _rewritten(lambda content, rng: bytes(len(content))),
    "noise": _rewritten(lambda content, rng: rng.randbytes(len(content))),
    "twice": _rewritten(lambda content, rng: content + content),
    "another type": _rewritten(lambda content, rng: rng.choice(JSON).encode()),
    "deep JSON": _rewritten(lambda content, rng: b"[" * 200_000),
    "deep objects": _rewritten(lambda content, rng: b'{"status": ' + b'{"a":' * 900 + b"1" + b"}" * 901),
    "deep TOML": _rewritten(lambda content, rng: b"algorithm = " + b"[" * 20_000),
    "deep tables": _rewritten(lambda content, rng: b"[" + b".".join([b"a"] * 5_000) + b"]\n"),
}


def files_of(directory: Path) -> list[Path]:
    """Return all files in a run's directory and its folders."""
    found = (file for file in directory.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(found, key=lambda file: file.relative_to(directory))
