"""Conversion between a module's buffers and a flat vector of the run's dtype, without loss of digits.

A floating-point number is one entry of the vector, a complex number two. An integer or boolean would lose digits as a
float; its bits are split into pieces that a float represents exactly.

Shapes: ``Q`` entries, ``S`` clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final, final

import torch
from torch import Tensor, nn

from fedpisa.tasks.layout import ParamLayout

PIECE: Final = 22
"""Number of bits of one piece; float32 represents integers of up to 24 bits exactly."""


@final
@dataclass(frozen=True)
class BufferLayout:
    """Names, shapes and dtypes of a module's buffers, in the order of the flat vector.

    Parameters
    ----------
    names, shapes, dtypes
        One entry per buffer, in the module's order.

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
        """Return the layout of a module's buffers; a buffer with two names appears once."""
        layout = ParamLayout.of(module.named_buffers())
        return cls(layout.names, layout.shapes, layout.dtypes)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each buffer."""
        return [prod(shape) * _entries(dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    @cached_property
    def size(self) -> int:
        """Length ``Q`` of the flat vector."""
        return sum(self.sizes)

    @property
    def is_averaged(self) -> Tensor:
        """Whether each entry of the flat vector is averaged ``(Q,)``; integers and booleans are not."""
        flags = [dtype.is_floating_point or dtype.is_complex for dtype in self.dtypes]
        return torch.tensor(flags, dtype=torch.bool).repeat_interleave(torch.tensor(self.sizes))

    def flatten(self, buffers: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the buffers as a flat vector ``(Q,)`` of a floating-point dtype."""
        parts = [_encode(buffers[name]).reshape(-1).to(dtype) for name in self.names]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)

    def unflatten(self, vector_Q: Tensor) -> dict[str, Tensor]:
        """Return the buffers under the module's names; for a stack of vectors ``(S, Q)`` they are ``(S, *shape)``."""
        parts = torch.split(vector_Q, self.sizes, dim=-1)
        entries = zip(self.names, parts, self.shapes, self.dtypes, strict=True)
        return {name: _decode(part, shape, dtype) for name, part, shape, dtype in entries}

    def combine(self, weights_S: Tensor, vectors_SQ: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Return the clients' buffers as one vector ``(Q,)``, and the names of the integer buffers that differ.

        Floating-point and complex buffers are averaged: ``sum_i weights_i b_i``. Integers and booleans, such as
        counters, have no mean; the result is their maximum over the clients.

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
        """Return a stored vector in this layout; older versions stored each integer as a single entry.

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
    """Return the number of entries per value of a dtype."""
    if dtype.is_floating_point:
        return 1
    return 2 if dtype.is_complex else -(-8 * dtype.itemsize // PIECE)


def _encode(buffer: Tensor) -> Tensor:
    """Return the entries of a buffer's values, floats or small integers, along a new last axis."""
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
    """Invert `_encode` for a flat ``part`` of the vector; leading axes stay."""
    values = part.reshape(*part.shape[:-1], *shape, _entries(dtype))
    if dtype.is_floating_point:
        return values.squeeze(-1)
    if dtype.is_complex:
        return torch.complex(values[..., 0], values[..., 1]).to(dtype)
    pieces = values.round().to(torch.int64)
    shifts = PIECE * torch.arange(pieces.shape[-1], device=part.device)
    return (pieces << shifts).sum(-1).to(dtype)
