"""The bigrams of tinyshakespeare's roles as counts: the objective of the model ``bigram``, at a fraction of the cost.

A client is a role, and a sample a pair of characters. Its loss is weighted by how often the role has it, so that the
mean over all samples is the mean over all positions of the text.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedpisa.authoring import Dataset
from fedpisa.families.data import load

NUM_ROLES = 10


@cache
def pairs() -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the different pairs of each role ``(n, 2)``, their weights ``(n,)``, and the roles ``(n,)``."""
    text = load("tinyshakespeare", num_clients=NUM_ROLES)
    assert text.groups is not None
    found, weights, roles = [], [], []
    for role in range(NUM_ROLES):
        rows = text.groups == role
        both = np.stack([text.x_train[rows].ravel(), text.y_train[rows].ravel()], 1)
        different, counts = np.unique(both, axis=0, return_counts=True)
        found.append(different)
        weights.append(counts / text.x_train.size)
        roles.append(np.full(len(different), role))
    number = sum(map(len, found))
    return np.concatenate(found), number * np.concatenate(weights), np.concatenate(roles)


def counted(*, data_dir: Path) -> Dataset:
    """Return a sample for each pair; its target is its number, by which `Counted` finds the rest."""
    found, _, roles = pairs()
    samples = found[:, :1], np.arange(len(found))
    test: Any = tuple(part[:2] for part in samples)
    return Dataset.of("counted", samples, test, num_classes=len(found), groups=roles)


class Counted:
    """Cross-entropy of a pair, times its weight."""

    def __init__(self) -> None:
        found, weights, _ = pairs()
        self.target_n, self.weight_n = torch.from_numpy(found[:, 1]), torch.from_numpy(weights)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, 0], self.target_n[y], reduction="none") * self.weight_n[y]


def table(shape: tuple[int, ...], num_outputs: int) -> torch.nn.Module:
    """Return the model ``bigram`` of 65 characters."""
    from fedpisa.models.language import bigram

    return bigram(shape, 65)
