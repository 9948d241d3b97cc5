"""Partitioners of Flower's package flwr-datasets (extra ``datasets``)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.base import Indices, Targets


def from_flwr_datasets(
    partitioner: Any,
    labels: Targets,
    *,
    label_column: str = "label",
    columns: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> list[Indices]:
    """Split samples among clients with a partitioner of ``flwr_datasets``.

    Parameters
    ----------
    partitioner
        A new ``flwr_datasets.partitioner.Partitioner``, such as ``PathologicalPartitioner``.
    labels
        Targets ``(n,)``; the partitioner reads them as the column ``label_column``.
    label_column
        Name of the column of targets, equal to ``partition_by`` of the partitioner.
    columns
        Further columns ``(n,)`` that the partitioner reads, such as the client of each sample for a natural split.

    Returns
    -------
    list
        Sorted indices of each client.

    Raises
    ------
    ValueError
        If the extra is not installed, or a client gets no sample.
    """
    try:
        datasets = importlib.import_module("datasets")  # Hugging Face's, which has no type stubs
    except ImportError as error:
        raise ValueError(
            "Flower's partitioners need the extra datasets; run pip install 'fedpisa[datasets]'"
        ) from error
    position = "fedpisa-position"
    partitioner.dataset = datasets.Dataset.from_dict(
        {label_column: labels, position: np.arange(len(labels)), **columns}
    )
    parts: list[Indices] = [
        np.sort(np.asarray(partitioner.load_partition(client)[position], np.int64))
        for client in range(partitioner.num_partitions)
    ]
    for client, part in enumerate(parts):
        if not len(part):
            raise ValueError(
                f"{type(partitioner).__name__} gave client {client} no samples; use fewer partitions"
            )
    return parts
