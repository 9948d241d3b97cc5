"""The sets on which the server evaluates, and which of their samples it uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset, Generated, Indices, Samples
from fedpisa.datasets.client_data import ClientData
from fedpisa.rng import generator
from fedpisa.tasks.criterion import trial_rows


@final
class Evaluated(NamedTuple):
    """A set on which the server evaluates: samples, stored or generated on demand, and which of them are the set's.

    ``groups`` tells which samples are of one text, if the data has several.
    """

    samples: Samples | Generated
    rows: Indices
    groups: Indices | None

    def used(self, config: RunConfig, part: int, carry: object) -> list[Indices]:
        """Return the samples that evaluations use, those of each text apart if ``carry`` is not ``none``.

        Raises
        ------
        ValueError
            If only some windows of texts are used whose state is carried.
        """
        some = eval_rows(self.rows, config.eval_samples, config.seed, part)
        if carry == "none":
            return [some]
        if len(some) < len(self.rows):
            raise ValueError(
                f"eval-samples = {config.eval_samples} takes windows that do not follow each other, and carry-state = "
                f"{carry!r} evaluates texts in their order: set eval-samples = 0"
            )
        groups_n = np.zeros(len(some)) if self.groups is None else self.groups[some]
        return [some[groups_n == group] for group in np.unique(groups_n)]

    def data(self, rows: Sequence[Indices], dtype: torch.dtype, device: torch.device) -> ClientData:
        """Return some of the samples, each part's as one client's."""
        if isinstance(self.samples, Generated):
            return ClientData.made_by(self.samples.split(rows), dtype, device)
        return ClientData.of(*self.samples, rows, dtype, device)


def evaluated_sets(dataset: Dataset, validation_rows: Indices) -> dict[str, Evaluated]:
    """Return the test set, and the validation set if there are ``validation_rows`` of the training set."""
    test = dataset.generated_test or (dataset.x_test, dataset.y_test)
    sets = {"test": Evaluated(test, np.arange(dataset.num_test), dataset.test_groups)}
    if len(validation_rows):
        train = dataset.generated or (dataset.x_train, dataset.y_train)
        sets["validation"] = Evaluated(train, validation_rows, dataset.groups)
    return sets


def examples(data: ClientData) -> tuple[Tensor, Tensor]:
    """Return the samples of a set, or a few if they are generated on demand."""
    if data.generated is None:
        return data.x, data.y
    return data.samples(torch.from_numpy(trial_rows(data.num_samples, 16)))


def pixel_range(data: ClientData) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value ``(channels,)`` of each channel in all images of a set.

    Examples
    --------
    >>> images = np.array([[[[1.0, 2.0]]], [[[0.5, 1.5]]]])
    >>> data = ClientData.of(images, np.zeros(2, np.int64), [np.array([0]), np.array([1])], torch.float32)
    >>> pixel_range(data)
    (tensor([0.5000]), tensor([2.]))
    """
    bounds = [(x.amin((0, 2, 3)), x.amax((0, 2, 3))) for x, _ in data.batches(data.bounded(8192))]
    lows, highs = zip(*bounds, strict=True)
    return torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def eval_rows(rows: Indices, count: int, seed: int, part: int) -> Indices:
    """Return the samples that evaluations use: ``count`` of ``rows`` in their order; all for 0, or if there are fewer.

    ``part`` is 0 for the test set and 1 for the validation set.

    Examples
    --------
    >>> len(eval_rows(np.arange(9), 4, seed=0, part=0)), len(eval_rows(np.arange(9), 0, seed=0, part=0))
    (4, 9)
    """
    if not 0 < count < len(rows):
        return rows
    chosen = generator(seed, "eval-samples", part).choice(len(rows), count, replace=False)
    return rows[np.sort(chosen)]
