"""A federation of token data: the clients' tensors, the share of the majority class and the counts of the split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedpisa.config.run import RunConfig
from fedpisa.datasets import Dataset
from fedpisa.simulation.federation import Federation


def built(keys: dict[str, object] | None = None, **fields: Any) -> Federation:
    x = np.arange(60).reshape(20, 3) % 5
    y_test = np.array([[1, 1, -100], [1, 4, -100]])
    data = Dataset(name="text", x_train=x, y_train=x, x_test=x[:2], y_test=y_test, num_classes=5, **fields)
    split = {"partitioner": "iid", "num-clients": 2, "model": "bigram"}
    return Federation(RunConfig.from_mapping(split | (keys or {})), dataset=data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tokens_stay_integers_and_parameters_take_the_dtype(dtype: str) -> None:
    made = built({"dtype": dtype})
    client = made.client(1)
    assert client.data.x.dtype == client.data.y.dtype == made.test.x.dtype == torch.int64
    assert made.task.initial_params().dtype == made.task.layout.dtype == getattr(torch, dtype)


def test_majority_share_of_the_labels_that_count() -> None:
    assert built().majority_share() == 3 / 4


def test_a_split_without_labels_has_no_counts() -> None:
    assert built().split_arrays() == {}
    assert list(built({"validation-fraction": 0.2}).split_arrays()) == ["validation"]


def test_counts_of_labels_that_are_not_the_targets() -> None:
    labels = np.arange(20) % 4
    keys = {"partitioner": "labels-per-client", "labels-per-client": 2, "validation-fraction": 0.2}
    made = built(keys, labels=labels)
    counts = made.split_arrays()["labels"]
    for client, part in enumerate(made.partition):
        assert counts[client].tolist() == np.bincount(labels[part], minlength=4).tolist()
    assert (counts > 0).sum(axis=1).tolist() == [2, 2]
