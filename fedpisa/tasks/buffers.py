"""A module's buffers as one flat vector of the run's dtype, each value exact.

Floating-point buffers are entries of the vector and are averaged. A complex number is two entries. Integers and
booleans would lose digits as floats, so their bits are cut into pieces that every float holds exactly.

Shapes: ``Q`` entries, ``S`` clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, final

import torch
from torch import Tensor, nn

PIECE: Final = 22
"""Bits of one piece: float32 holds integers of up to 24 bits."""


@final
@dataclass(frozen=True)
class BufferLayout:
    """Names, shapes and dtypes of a module's buffers, in the order in which they lie in the flat vector.

    Parameters
    ----------
    names, shapes, dtypes
        One entry per buffer, in the module's own order.

    Examples
    --------
    >>> layout = BufferLayout.of(nn.BatchNorm1d(2))
    >>> buffers = {"running_mean": torch.tensor([0.5, 1.5]), "running_var": torch.ones(2)}
    >>> vector_Q = layout.flatten({**buffers, "num_batches_tracked": torch.tensor(2**40 + 1)}, torch.float32)
    >>> layout.unflatten(vector_Q)["num_batches_tracked"].item() - 2**40
    1
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, module: nn.Module) -> BufferLayout:
        """Return the layout of a module's buffers; a buffer under two names appears once."""
        entries = [(name, tuple(buffer.shape), buffer.dtype) for name, buffer in module.named_buffers()]
        return cls(
            names=tuple(name for name, _, _ in entries),
            shapes=tuple(shape for _, shape, _ in entries),
            dtypes=tuple(dtype for _, _, dtype in entries),
        )

    @property
    def sizes(self) -> list[int]:
        """Entries of each buffer."""
        return [prod(shape) * _entries(dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    @property
    def size(self) -> int:
        """Length ``Q`` of the flat vector."""
        return sum(self.sizes)

    def flatten(self, buffers: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the buffers as a flat vector ``(Q,)`` of a floating-point dtype."""
        parts = [_encode(buffers[name]).reshape(-1).to(dtype) for name in self.names]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)

    def unflatten(self, vector_Q: Tensor) -> dict[str, Tensor]:
        """Return the buffers under the module's names; of a stack of vectors ``(S, Q)`` they are ``(S, *shape)``."""
        parts = torch.split(vector_Q, self.sizes, dim=-1)
        entries = zip(self.names, parts, self.shapes, self.dtypes, strict=True)
        return {name: _decode(part, shape, dtype) for name, part, shape, dtype in entries}

    def combine(self, weights_S: Tensor, vectors_SQ: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Return the clients' buffers as one vector ``(Q,)``, and the names of integer ones that differ.

        Floating-point and complex buffers are averaged, ``sum_i weights_i b_i``. Integers and booleans, such as
        counters, have no mean: their maximum over the clients is taken.

        Examples
        --------
        >>> layout = BufferLayout(("seen",), ((),), (torch.int64,))
        >>> vectors_SQ = torch.stack([layout.flatten({"seen": torch.tensor(n)}, torch.float32) for n in (-3, 7)])
        >>> vector_Q, differing = layout.combine(torch.tensor([0.5, 0.5]), vectors_SQ)
        >>> layout.unflatten(vector_Q)["seen"].item(), differing
        (7, ('seen',))
        """
        parts, differing = [], []
        columns = torch.split(vectors_SQ, self.sizes, dim=-1)
        for name, part_SQ, dtype in zip(self.names, columns, self.dtypes, strict=True):
            if dtype.is_floating_point or dtype.is_complex:
                parts.append(weights_S.to(part_SQ.dtype) @ part_SQ)
            elif bool((part_SQ == part_SQ[0]).all()):
                parts.append(part_SQ[0])
            else:
                differing.append(name)
                values_S = _decode(part_SQ, (part_SQ.shape[1] // _entries(dtype),), dtype)
                largest = values_S.any(0) if dtype is torch.bool else values_S.amax(0)
                parts.append(_encode(largest).reshape(-1).to(part_SQ.dtype))
        return torch.cat(parts), tuple(differing)

    def adopt(self, vector_Q: Tensor) -> Tensor:
        """Return a kept vector in this layout: one of an older version had a single entry for each integer.

        Raises
        ------
        ValueError
            If the vector has another length.
        """
        if len(vector_Q) == self.size:
            return vector_Q
        old_sizes = [prod(shape) for shape in self.shapes]
        if len(vector_Q) != sum(old_sizes):
            raise ValueError(
                f"the checkpoint has {len(vector_Q)} buffer entries and the model {self.size}: "
                "resume with the model that the run was started with"
            )
        parts = torch.split(vector_Q, old_sizes)
        old = {
            name: part.view(shape) if dtype.is_floating_point else part.view(shape).round().to(dtype)
            for name, part, shape, dtype in zip(self.names, parts, self.shapes, self.dtypes, strict=True)
        }
        return self.flatten(old, vector_Q.dtype)


def _entries(dtype: torch.dtype) -> int:
    """Return how many entries of the flat vector a value of a dtype takes."""
    if dtype.is_floating_point:
        return 1
    return 2 if dtype.is_complex else -(-8 * dtype.itemsize // PIECE)


def _encode(buffer: Tensor) -> Tensor:
    """Return a buffer's values as floats or small integers, those of one value along a new last axis."""
    if buffer.is_floating_point():
        return buffer[..., None]
    if buffer.is_complex():
        return torch.view_as_real(buffer)
    bits, mask = buffer.to(torch.int64), (1 << PIECE) - 1
    # The highest piece keeps the sign: shifts of int64 are arithmetic.
    count = _entries(buffer.dtype)
    pieces = [(bits >> (PIECE * k)) & mask for k in range(count - 1)]
    return torch.stack([*pieces, bits >> (PIECE * (count - 1))], -1)


def _decode(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return what `_encode` was given; leading axes before the entries stay."""
    values = part.reshape(*part.shape[:-1], *shape, _entries(dtype))
    if dtype.is_floating_point:
        return values.squeeze(-1)
    if dtype.is_complex:
        return torch.complex(values[..., 0], values[..., 1]).to(dtype)
    pieces = values.round().to(torch.int64)
    shifts = PIECE * torch.arange(pieces.shape[-1], device=part.device)
    return (pieces << shifts).sum(-1).to(dtype)
