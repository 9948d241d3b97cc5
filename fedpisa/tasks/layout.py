"""Conversion between a module's tensors and the flat vector of the algorithms.

Shapes: ``P`` parameters, ``Q`` buffer entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class ParamLayout:
    """Names, shapes and dtypes of a module's tensors, in the order of the flat vector.

    Parameters
    ----------
    names, shapes, dtypes
        One entry per tensor, in the module's order.

    Examples
    --------
    >>> layout = ParamLayout.of_parameters(nn.Linear(3, 2))
    >>> layout.size, layout.names
    (8, ('weight', 'bias'))
    >>> layout.unflatten(torch.arange(8.0))["bias"]
    tensor([6., 7.])
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> ParamLayout:
        """Return the layout of named tensors."""
        entries = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]
        return cls(
            names=tuple(name for name, _, _ in entries),
            shapes=tuple(shape for _, shape, _ in entries),
            dtypes=tuple(dtype for _, _, dtype in entries),
        )

    @classmethod
    def of_parameters(cls, module: nn.Module) -> ParamLayout:
        """Return the layout of a module's trainable parameters: tied parameters once, and no frozen parameters."""
        return cls.of((name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad)

    @property
    def dtype(self) -> torch.dtype:
        """The real dtype of the flat vector."""
        return self.dtypes[0].to_real()

    @cached_property
    def real_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each tensor's part of the vector; a complex number is two real ones, along a last axis."""
        return [
            (*shape, 2) if dtype.is_complex else shape
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor in the vector."""
        return [prod(shape) for shape in self.real_shapes]

    @cached_property
    def size(self) -> int:
        """Length of the flat vector, ``P``."""
        return sum(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """Short digest of names, shapes and dtypes; vectors can be combined only if their digests are equal."""
        text = repr((self.names, self.shapes, tuple(map(str, self.dtypes))))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector ``(P,)`` of ``tensors``."""
        parts = [_real(tensors[name]).reshape(-1) for name in self.names]
        return torch.cat(parts) if parts else torch.zeros(0)

    def unflatten(self, vector_P: Tensor) -> dict[str, Tensor]:
        """Return views of ``vector_P`` under the module's names; for a stack ``(S, P)`` they are ``(S, *shape)``.

        Complex tensors are copies.
        """
        parts = torch.split(vector_P, self.sizes, dim=-1)
        views = {
            name: part.view(vector_P.shape[:-1] + shape)
            for name, part, shape in zip(self.names, parts, self.real_shapes, strict=True)
        }
        complex_ = [name for name, dtype in zip(self.names, self.dtypes, strict=True) if dtype.is_complex]
        return views | {name: torch.complex(*views[name].unbind(-1)) for name in complex_}

    def blocks(self, memory_SP: Tensor) -> dict[str, Tensor]:
        """Return contiguous views ``(S, *shape)`` of the memory of a stack, one tensor's block after the other.

        A stack of one vector has this order already. While the blocks are in use, a longer stack does not hold its
        vectors as rows; `rows` returns them.

        Examples
        --------
        >>> layout, memory_SP = ParamLayout.of_parameters(nn.Linear(1, 1)), torch.zeros(2, 2)
        >>> layout.blocks(memory_SP)["bias"].fill_(1.0).shape, layout.rows(memory_SP)
        (torch.Size([2, 1]), tensor([[0., 1.],
                [0., 1.]]))
        """
        count = len(memory_SP)
        parts = torch.split(memory_SP.view(-1), [count * size for size in self.sizes])
        return {
            name: part.view(count, *shape)
            for name, shape, part in zip(self.names, self.real_shapes, parts, strict=True)
        }

    def rows(self, memory_SP: Tensor) -> Tensor:
        """Return the vectors ``(S, P)`` from memory in the order of `blocks`."""
        if len(memory_SP) == 1:
            return memory_SP
        return torch.cat([block.flatten(1) for block in self.blocks(memory_SP).values()], 1)


def _real(tensor: Tensor) -> Tensor:
    """Return a tensor, or the real and imaginary parts of a complex one along a new last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
