"""The clients' samples: stored once, sorted by client, or generated on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.base import Generated, is_integers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE: Final = 256 * 2**20
"""Bytes of generated samples that an evaluation holds at once, so that memory does not grow with large images."""


@final
@dataclass(frozen=True)
class ClientData:
    """The samples of all clients, sorted by client: each client has a range of rows.

    The rows are contiguous tensors, or they are generated on demand.

    Parameters
    ----------
    x
        Features ``(n, *shape)``, sorted by client: of the parameters' dtype, or int64 if they are integers.
    y
        Labels or targets ``(n, ...)``.
    begin_N
        First row of each client.
    sizes_N
        Sample counts ``n_i``.
    generated
        Generator of the samples, if they are not stored; ``x`` and ``y`` then hold only the first sample.
    """

    x: Tensor
    y: Tensor
    begin_N: NDArray[np.int64]
    sizes_N: NDArray[np.int64]
    generated: Generated | None = None

    @classmethod
    def of(
        cls,
        x: NDArray[np.generic],
        y: NDArray[np.generic],
        partition: Sequence[NDArray[np.int64]],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> ClientData:
        """Return the samples of a partition.

        Numbers get the ``dtype`` of the parameters. Integers of more than 8 bits stay integers; 8 bits are pixels.

        Examples
        --------
        >>> import torch
        >>> x, y = np.arange(3.0)[:, None], np.arange(3)
        >>> data = ClientData.of(x, y, [np.array([2]), np.array([0, 1])], torch.float32)
        >>> data.client(1)[0].flatten().tolist()
        [0.0, 1.0]
        """
        sizes_N = np.array([len(indices) for indices in partition], dtype=np.int64)
        order = np.concatenate([np.asarray(indices, dtype=np.int64) for indices in partition])
        # Samples that are already sorted by client are not copied.
        if not (np.array_equal(order, np.arange(len(x))) and x.flags.writeable and y.flags.writeable):
            x, y = x[order], y[order]
        return cls(*_tensors(x, y, dtype, device), np.cumsum(sizes_N) - sizes_N, sizes_N)

    @property
    def num_clients(self) -> int:
        """``N``."""
        return len(self.sizes_N)

    @property
    def num_samples(self) -> int:
        """Number of samples of all clients."""
        return int(self.sizes_N.sum())

    @classmethod
    def made_by(
        cls, generated: Generated, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> ClientData:
        """Return samples that are generated on demand.

        Examples
        --------
        >>> import torch
        >>> odd = Generated(np.array([1, 2]), lambda client_n, k_n: (1.0 + 2 * k_n[:, None], client_n))
        >>> data = ClientData.made_by(odd, torch.float32)
        >>> data.client(1)[0].tolist(), data.samples(torch.tensor([[0, 2]]))[1].tolist()
        ([[1.0], [3.0]], [[0, 1]])
        """
        sizes_N = generated.sizes_N
        first = _tensors(*generated.make(np.zeros(1, np.int64), np.zeros(1, np.int64)), dtype, device)
        return cls(*first, np.cumsum(sizes_N) - sizes_N, sizes_N, generated)

    def client(self, client_id: int) -> tuple[Tensor, Tensor]:
        """Return one client's features and labels, as views if they are stored."""
        begin = int(self.begin_N[client_id])
        return self._range(begin, begin + int(self.sizes_N[client_id]))

    def only(self, client_id: int) -> ClientData:
        """Return the data of one client alone, as views if the samples are stored.

        Examples
        --------
        >>> import torch
        >>> data = ClientData.of(np.eye(3), np.arange(3), [np.array([0]), np.array([1, 2])], torch.float32)
        >>> data.only(1).samples(torch.tensor([1, 0]))[1].tolist()
        [2, 1]
        """
        begin, size_1 = int(self.begin_N[client_id]), self.sizes_N[client_id : client_id + 1]
        if self.generated is None:
            rows = slice(begin, begin + int(size_1[0]))
            return ClientData(self.x[rows], self.y[rows], np.zeros(1, np.int64), size_1)
        make = self.generated.make
        own = Generated(size_1, lambda client_n, position_n: make(client_n + client_id, position_n))
        return ClientData(self.x, self.y, np.zeros(1, np.int64), size_1, own)

    def samples(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``(*index.shape, *shape)`` and labels ``(*index.shape, ...)`` of the rows ``index``."""
        if self.generated is None:
            return rows(self.x, index), rows(self.y, index)
        row_n = index.flatten().cpu().numpy()
        client_n = np.searchsorted(self.begin_N, row_n, side="right") - 1
        made = self.generated.make(client_n, row_n - self.begin_N[client_n])
        dtype = self.y.dtype if self.y.is_floating_point() else self.x.dtype
        x, y = _tensors(*made, dtype, self.x.device)
        return x.view(*index.shape, *x.shape[1:]), y.view(*index.shape, *y.shape[1:])

    def all(self) -> tuple[Tensor, Tensor]:
        """Return the features and labels of all samples, sorted by client."""
        return self._range(0, self.num_samples)

    def bounded(self, batch_size: int) -> int:
        """Return the batch size, lower if so many samples would have to be generated in more than `PIECE` bytes."""
        if self.generated is None:
            return batch_size
        return min(batch_size, max(2, PIECE // (self.x[0].numel() * self.x.element_size())))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all samples, sorted by client, at most ``batch_size`` at a time."""
        for begin in range(0, self.num_samples, batch_size):
            yield self._range(begin, min(begin + batch_size, self.num_samples))

    def _range(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        if self.generated is None:
            return self.x[begin:end], self.y[begin:end]
        import torch

        return self.samples(torch.arange(begin, end))


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]``, in half the time because it copies whole rows.

    Examples
    --------
    >>> import torch
    >>> rows(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1], [0]]))
    tensor([[[3, 4]],
    <BLANKLINE>
            [[1, 2]]])
    """
    return values.index_select(0, index.flatten()).view(*index.shape, *values.shape[1:])


def _tensors(
    x: NDArray[np.generic], y: NDArray[np.generic], dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    import torch

    # Not all of PyTorch's operations know each of NumPy's integers.
    x, y = (np.ascontiguousarray(part, np.int64 if is_integers(part) else None) for part in (x, y))
    x_n, y_n = torch.from_numpy(x), torch.from_numpy(y)
    return (
        x_n.to(device=device, dtype=x_n.dtype if is_integers(x) else dtype),
        y_n.to(device=device, dtype=dtype if y_n.is_floating_point() else torch.int64),
    )
