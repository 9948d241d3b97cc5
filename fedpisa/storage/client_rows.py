"""Stacks of one row per client, in memory or in a file.

In memory a stack is a tensor ``(N, ...)``. In a file it is an `OnDisk`, a tensor that has a shape but no values. `read`
and `write` work on both. The row of a client that has never been written is zero and takes no space in a file.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final, final

import torch
from torch import Tensor

from fedpisa.storage.row_file import RowFile

UNLIMITED: Final = sys.maxsize
ROWS: Final = 64
"""Number of rows in one operation, which bounds the memory of float64 copies."""
_LONG_ROW: Final = 2**15
"""Row length from which one operation per row is faster."""
_SHAPE_QUERIES: Final = {"__get__", "__len__", "__hash__", "dim", "size", "numel", "element_size"}
"""Functions of a tensor that need no values; ``__get__`` reads an attribute."""
_NO_VALUES: Final = (
    "clients' vectors are in a file: use client_rows.read and write for its rows, or raise state-memory"
)


@final
class OnDisk(Tensor):
    """A stack in a file: a tensor with a shape and a dtype, whose values `read` and `write` access.

    Raises
    ------
    ValueError
        If an operation needs the values.

    Examples
    --------
    >>> stack = zeros((3, 2), torch.ones(()), limit=0)
    >>> stack, stack.shape
    (OnDisk((3, 2), torch.float32), torch.Size([3, 2]))
    >>> stack[0]
    Traceback (most recent call last):
    ValueError: clients' vectors are in a file: use client_rows.read and write for its rows, or raise state-memory
    """

    file: RowFile

    @staticmethod
    def of(file: RowFile, shape: tuple[int, ...], dtype: torch.dtype) -> OnDisk:
        """Return the stack of a file's rows."""
        stack = torch.empty(shape, dtype=dtype, device="meta").as_subclass(OnDisk)
        stack.file = file
        return stack

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run functions that need no values, and raise a ValueError for all others."""
        if func is Tensor.__repr__:
            return f"OnDisk({tuple(args[0].shape)}, {args[0].dtype})"
        if func.__name__ not in _SHAPE_QUERIES:
            raise ValueError(_NO_VALUES)
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if isinstance(result, Tensor):  # an attribute with values, such as the transpose
            raise ValueError(_NO_VALUES)
        return result


def zeros(shape: tuple[int, ...], like: Tensor, limit: int = UNLIMITED) -> Tensor:
    """Return a stack of zeros: on the device of ``like``, or in a file if it takes more than ``limit`` bytes.

    Examples
    --------
    >>> in_memory, in_file = (zeros((3, 2), torch.ones(()), limit) for limit in (24, 23))
    >>> is_on_disk(in_memory), is_on_disk(in_file), read(in_file, torch.tensor([2]))
    (False, True, tensor([[0., 0.]]))
    """
    size = math.prod(shape) * like.element_size()
    if size <= limit:
        return like.new_zeros(shape)
    return OnDisk.of(RowFile(shape[0], size // shape[0]), shape, like.dtype)


def is_on_disk(stack: Tensor) -> bool:
    """Return whether a stack is in a file."""
    return isinstance(stack, OnDisk)


def grown(stack: Tensor, length: int, limit: int = UNLIMITED) -> Tensor:
    """Return a stack extended to ``length`` rows by rows of zeros, for clients that join during a run.

    Examples
    --------
    >>> grown(torch.ones(2), 3)
    tensor([1., 1., 0.])
    """
    if len(stack) == length:
        return stack
    if isinstance(stack, OnDisk):
        stack.file.grow(length)
        return OnDisk.of(stack.file, (length, *stack.shape[1:]), stack.dtype)
    longer = zeros((length, *stack.shape[1:]), stack, limit if stack.dim() > 1 else UNLIMITED)
    return write(longer, torch.arange(len(stack), device=stack.device), stack)


def read(stack: Tensor, ids_S: Tensor) -> Tensor:
    """Return copies of rows, on the device of ``ids_S``."""
    if not isinstance(stack, OnDisk):
        return stack.index_select(0, ids_S)
    rows_S = torch.zeros(len(ids_S), *stack.shape[1:], dtype=stack.dtype)
    stack.file.read(ids_S.cpu().numpy(), _bytes(rows_S))
    return rows_S.to(ids_S.device)


def write(stack: Tensor, ids_S: Tensor, rows_S: Tensor) -> Tensor:
    """Write rows, and return the stack.

    A file is written in the background: do not change ``rows_S`` until the next call with the same stack.

    Raises
    ------
    OSError
        If the disk was too full for the rows of the previous call, with the folder and the fix.
    """
    if isinstance(stack, OnDisk):
        written_S = rows_S.to("cpu", stack.dtype).contiguous()
        # The rows of a single client may share memory with the server's vectors, such as the model.
        written_S = written_S.clone() if len(ids_S) == 1 else written_S
        stack.file.write(ids_S.cpu().numpy(), _bytes(written_S))
        return stack
    if not _one_by_one(stack, stack.device):
        return stack.index_copy_(0, ids_S, rows_S)
    for client_id, row in zip(ids_S.tolist(), rows_S.unbind(), strict=True):
        stack[client_id].copy_(row)
    return stack


def weighted_sum(weights_N: Tensor, stack: Tensor) -> Tensor:
    """Return ``sum_i weights_i row_i`` ``(P,)`` in float64, without reading rows of weight 0.

    Examples
    --------
    >>> weighted_sum(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[1.0], [torch.nan], [5.0]]))
    tensor([7.], dtype=torch.float64)
    """
    ids_S = weights_N.nonzero().flatten()
    return sum_of_rows(weights_N[ids_S], stack, ids_S)


def sum_of_rows(weights_S: Tensor, stack: Tensor, ids_S: Tensor) -> Tensor:
    """Return ``sum_i weights_i row_(ids_i)`` ``(P,)`` in float64, without a float64 copy of all rows.

    Stacks in memory and in files give bit-equal sums.

    Examples
    --------
    >>> sum_of_rows(torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [torch.nan], [5.0]]), torch.tensor([2, 0]))
    tensor([11.], dtype=torch.float64)
    """
    total_P = torch.zeros(stack.shape[1:], dtype=torch.float64, device=weights_S.device)
    for weights_B, ids_B in zip(torch.split(weights_S, ROWS), torch.split(ids_S, ROWS), strict=True):
        if not _one_by_one(stack, ids_S.device):
            total_P += weights_B.double() @ read(stack, ids_B).double()
            continue
        # Rows in memory need no copy.
        rows_BP = read(stack, ids_B) if is_on_disk(stack) else [stack[i] for i in ids_B.tolist()]
        for weight, row_P in zip(weights_B.tolist(), rows_BP, strict=True):
            total_P.add_(row_P, alpha=weight)
    return total_P


def _one_by_one(stack: Tensor, device: torch.device) -> bool:
    """Return whether one operation per row is faster: it uses all cores, an operation on several rows only one."""
    return device.type == "cpu" and math.prod(stack.shape[1:]) >= _LONG_ROW


def _bytes(rows_S: Tensor) -> Any:
    """Return the memory of rows as an array of bytes ``(S, bytes of a row)``."""
    return rows_S.view(len(rows_S), math.prod(rows_S.shape[1:])).view(torch.uint8).numpy()
