"""Samples that are already sorted by client are not copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpisa.datasets.client_data import ClientData


def test_samples_in_order_are_shared_and_others_copied() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6)
    in_order = ClientData.of(x, y, [np.arange(4), np.arange(4, 6)], torch.float32)
    other = ClientData.of(x, y, [np.arange(4, 6), np.arange(4)], torch.float32)
    assert in_order.x.data_ptr() == x.ctypes.data
    assert other.x.data_ptr() != x.ctypes.data
    assert torch.equal(in_order.client(0)[0], other.client(1)[0])
    assert torch.equal(in_order.client(1)[1], other.client(0)[1])


@pytest.mark.filterwarnings("error")
def test_read_only_samples_are_copied() -> None:
    x, y = np.ones((3, 2), np.float32), np.arange(3)
    x.flags.writeable = False
    assert ClientData.of(x, y, [np.arange(3)], torch.float32).x.data_ptr() != x.ctypes.data


def test_a_part_of_the_samples_is_copied() -> None:
    x, y = np.ones((3, 2), np.float32), np.arange(3)
    assert ClientData.of(x, y, [np.arange(2)], torch.float32).num_samples == 2
