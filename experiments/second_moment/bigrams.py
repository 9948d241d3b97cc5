"""Bigrams of a random text as a strictly convex problem: predict the next letter from the letter."""

from __future__ import annotations

import numpy as np

from fedpisa.authoring import Dataset, PositiveInt, generator


def bigrams(*, seed: int, letters: PositiveInt = 20, length: PositiveInt = 4000) -> Dataset:
    """Letters as one-hot vectors, and the letter after each as the label; a few letters are frequent.

    Parameters
    ----------
    letters
        Size of the alphabet.
    length
        Letters of the training text; the test text has a quarter of them.
    """
    rng = generator(seed, "bigrams")
    frequency = 1 / np.arange(1, letters + 1)
    after = 0.7 * rng.dirichlet(np.full(letters, 0.2), letters) + 0.3 * frequency / frequency.sum()
    text = [0]
    for _ in range(length + length // 4):
        text.append(int(rng.choice(letters, p=after[text[-1]])))
    x, y = np.eye(letters, dtype=np.float32)[text[:-1]], np.array(text[1:])
    return Dataset(
        name="bigrams",
        x_train=x[:length],
        y_train=y[:length],
        x_test=x[length:],
        y_test=y[length:],
        num_classes=letters,
    )
