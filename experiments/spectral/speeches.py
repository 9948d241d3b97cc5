"""Speeches of Shakespeare's roles: predict the next character from those before it. Each role is a client."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedpisa.authoring import Dataset, PositiveInt, generator


def speeches(
    *,
    seed: int,
    data_dir: Path,
    roles: PositiveInt = 10,
    context: PositiveInt = 8,
    samples: PositiveInt = 2000,
) -> Dataset:
    """Return the roles that speak most; the test samples come from the last tenth of each role's text.

    Parameters
    ----------
    roles
        Number of roles.
    context
        Characters before the one to predict, each as a one-hot vector.
    samples
        Training samples of each role; there are a quarter as many test samples.
    """
    file = data_dir / "tinyshakespeare.txt"
    if not file.exists():
        raise ValueError(f"{file} does not exist: set data-dir to the folder that has it")
    text = file.read_text(encoding="utf-8")
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    spoken: dict[str, str] = {}
    for role, speech in re.findall(r"^([^\n:]+):\n(.+?)(?=\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL):
        spoken[role] = f"{spoken.get(role, '')}{speech}\n"
    most = sorted(spoken, key=lambda role: (-len(spoken[role]), role))[:roles]
    unit, rng = np.eye(len(letters), dtype=np.float32), generator(seed, "speeches")
    train: list[tuple[np.ndarray, np.ndarray]] = []
    test: list[tuple[np.ndarray, np.ndarray]] = []
    for role in most:
        codes = np.array([letters[letter] for letter in spoken[role]])
        border = len(codes) * 9 // 10
        for part, first, end, size in ((train, 0, border, samples), (test, border, len(codes), samples // 4)):
            places = rng.choice(np.arange(first + context, end), size, replace=False)
            before = codes[places[:, None] + np.arange(-context, 0)]
            part.append((unit[before].reshape(size, -1), codes[places]))
    (x_train, y_train), (x_test, y_test) = (
        map(np.concatenate, zip(*part, strict=True)) for part in (train, test)
    )
    return Dataset(
        name="speeches",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        num_classes=len(letters),
        groups=np.repeat(np.arange(roles), samples),
        default_model="mlp",
    )
