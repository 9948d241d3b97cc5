"""The clients' samples: held once, client after client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@final
@dataclass(frozen=True)
class ClientData:
    """All clients' samples as contiguous tensors; a client is a range of rows.

    Parameters
    ----------
    x
        Features ``(n, *shape)``, client after client.
    y
        Labels or targets ``(n,)``.
    begin_N
        First row of each client.
    sizes_N
        Sample counts ``n_i``.
    """

    x: Tensor
    y: Tensor
    begin_N: NDArray[np.int64]
    sizes_N: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        x: NDArray[np.floating],
        y: NDArray[np.generic],
        partition: Sequence[NDArray[np.int64]],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> ClientData:
        """Gather the samples of a partition.

        Examples
        --------
        >>> x, y = np.arange(3.0)[:, None], np.arange(3)
        >>> data = ClientData.of(x, y, [np.array([2]), np.array([0, 1])], torch.float32)
        >>> data.client(1)[0].flatten().tolist()
        [0.0, 1.0]
        """
        sizes_N = np.array([len(indices) for indices in partition], dtype=np.int64)
        order = np.concatenate([np.asarray(indices, dtype=np.int64) for indices in partition])
        y_n = torch.from_numpy(np.ascontiguousarray(y[order]))
        return cls(
            x=torch.from_numpy(np.ascontiguousarray(x[order])).to(device=device, dtype=dtype),
            y=y_n.to(device=device, dtype=dtype if y_n.is_floating_point() else torch.int64),
            begin_N=np.cumsum(sizes_N) - sizes_N,
            sizes_N=sizes_N,
        )

    @property
    def num_clients(self) -> int:
        """``N``."""
        return len(self.sizes_N)

    def client(self, client_id: int) -> tuple[Tensor, Tensor]:
        """Return one client's features and labels, as views."""
        rows = slice(self.begin_N[client_id], self.begin_N[client_id] + self.sizes_N[client_id])
        return self.x[rows], self.y[rows]


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]``; copying whole rows takes half the time of looking up each of their numbers.

    Examples
    --------
    >>> rows(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1], [0]]))
    tensor([[[3, 4]],
    <BLANKLINE>
            [[1, 2]]])
    """
    return values.index_select(0, index.flatten()).view(*index.shape, *values.shape[1:])
