"""A row for every client: in memory while all of them fit, beyond it in a file of which only the rows in use exist.

Either way it is one tensor ``(N, ...)``; in a file, rows are read and written by `take` and `put`, one call of the
system's for each: through the mapping it would be one interruption for each page. The file is a temporary one, in the
folder of the environment's ``TMPDIR``; it has no name any more once it is mapped, so nothing is left behind however a
run ends. Rows of zeros that nobody wrote to take no room in it, as long as nobody reads them either.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from logging import getLogger
from typing import Any, Final, final
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor

_LOG = getLogger("fedpisa")

UNLIMITED: Final = sys.maxsize
ROWS: Final = 64
"""Rows that are worked on at once, so that copies of another type stay small."""
_LONG: Final = 2**15
"""Numbers of a row from which rows are worked on one by one."""


@final
class _File(mmap.mmap):
    """A mapped file without a name, and the number under which it is open for as long as it is mapped."""

    number: int


_files: Final[WeakValueDictionary[int, _File]] = WeakValueDictionary()
"""By the address at which they are mapped, and a stack's storage begins."""


def zeros(shape: tuple[int, ...], like: Tensor, limit: int = UNLIMITED) -> Tensor:
    """Return a stack of zeros: on the device of ``like``, or in a file if it takes more than ``limit`` bytes.

    Examples
    --------
    >>> here, there = (zeros((3, 2), torch.ones(()), limit) for limit in (24, 23))
    >>> is_mapped(here), is_mapped(there), bool((here == there).all())
    (False, True, True)
    """
    size = math.prod(shape) * like.element_size()
    if size <= limit:
        return like.new_zeros(shape)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        _LOG.warning(
            "clients' vectors may come to take %.0f GB in %s, with %.0f GB free: set TMPDIR to a larger folder",
            size / 1e9,
            folder,
            free / 1e9,
        )
    number, name = tempfile.mkstemp(prefix="fedpisa-", suffix=".rows", dir=folder)
    with ExitStack() as undo:
        undo.callback(os.close, number)
        os.unlink(name)
        os.truncate(number, size)
        file = _File(number, size)
        file.number = number
        finalize(file, undo.pop_all().close)
    # Rows are far apart: reading ahead would make a hundred times the room that they need.
    file.madvise(mmap.MADV_RANDOM)
    stack = torch.frombuffer(file, dtype=like.dtype)
    _files[stack.data_ptr()] = file
    return stack.view(shape)


def _file(stack: Tensor) -> _File | None:
    return _files.get(stack.untyped_storage().data_ptr()) if stack.device.type == "cpu" else None


def is_mapped(stack: Tensor) -> bool:
    """Tell whether a stack is in a file."""
    return _file(stack) is not None


def take(stack: Tensor, ids_S: Tensor) -> Tensor:
    """Return copies of rows, on the device of ``ids_S``."""
    file = _file(stack)
    if file is None:
        return stack.index_select(0, ids_S)
    rows_S = torch.empty(len(ids_S), *stack.shape[1:], dtype=stack.dtype)
    for begin, row in _bytes(stack, ids_S, rows_S):
        _all_of(row, begin, lambda rest, at: os.preadv(file.number, [rest], at))
    return rows_S.to(ids_S.device)


def put(stack: Tensor, ids_S: Tensor, rows_S: Tensor) -> Tensor:
    """Write rows, and return the stack.

    Raises
    ------
    OSError
        If the disk of a stack in a file is full, with the folder and the fix.
    """
    file = _file(stack)
    if file is not None:
        for begin, row in _bytes(stack, ids_S, rows_S.to("cpu", stack.dtype).contiguous()):
            _all_of(row, begin, lambda rest, at: os.pwrite(file.number, rest, at))
        return stack
    if not _one_by_one(stack):
        return stack.index_copy_(0, ids_S, rows_S)
    for client_id, row in zip(ids_S.tolist(), rows_S.unbind(), strict=True):
        stack[client_id].copy_(row)
    return stack


def _all_of(row: Any, begin: int, move: Callable[[Any, int], int]) -> None:
    """Read or write a row, from where it begins in its file: one call of the system's moves 2 GB at most."""
    while len(row):
        try:
            moved = move(row, begin)
        except OSError as error:
            text = f"clients' vectors cannot be kept ({error.strerror}): set TMPDIR to a larger folder"
            raise OSError(error.errno, text, tempfile.gettempdir()) from error
        assert moved, "the file is as long as all its rows"
        row, begin = row[moved:], begin + moved


def put_all(stacks: Mapping[str, Tensor], ids_S: Tensor, rows_S: Mapping[str, Tensor]) -> None:
    """Write rows into several stacks by name: into files side by side, because each of them is locked meanwhile."""
    in_files = [name for name, stack in stacks.items() if is_mapped(stack)]
    for name in stacks.keys() - in_files:
        put(stacks[name], ids_S, rows_S[name])
    if in_files:
        with ThreadPoolExecutor(len(in_files)) as pool:
            list(pool.map(lambda name: put(stacks[name], ids_S, rows_S[name]), in_files))


def _bytes(stack: Tensor, ids_S: Tensor, rows_S: Tensor) -> Iterable[tuple[int, Any]]:
    """Return of each row where it begins in the stack's file, and its memory."""
    size = math.prod(stack.shape[1:]) * stack.element_size()
    memory = rows_S.view(-1).view(torch.uint8).view(len(ids_S), size).numpy()
    return zip((ids_S * size).tolist(), memory, strict=True)


def weighted_sum(weights_N: Tensor, stack: Tensor) -> Tensor:
    """Return ``sum_i weights_i row_i`` ``(P,)`` in float64; rows of weight 0 are not read.

    Examples
    --------
    >>> weighted_sum(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[1.0], [torch.nan], [5.0]]))
    tensor([7.], dtype=torch.float64)
    """
    ids_S = weights_N.nonzero().flatten()
    return sum_of_rows(weights_N[ids_S], stack, ids_S)


def sum_of_rows(weights_S: Tensor, stack: Tensor, ids_S: Tensor) -> Tensor:
    """Return ``sum_i weights_i row_(ids_i)`` ``(P,)`` in float64, without a copy of all these rows in it.

    Examples
    --------
    >>> sum_of_rows(torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [torch.nan], [5.0]]), torch.tensor([2, 0]))
    tensor([11.], dtype=torch.float64)
    """
    total_P = torch.zeros(stack.shape[1:], dtype=torch.float64, device=weights_S.device)
    if _one_by_one(stack) and not is_mapped(stack):
        for weight, client_id in zip(weights_S.tolist(), ids_S.tolist(), strict=True):
            total_P.add_(stack[client_id], alpha=weight)
        return total_P
    for weights_B, ids_B in zip(torch.split(weights_S, ROWS), torch.split(ids_S, ROWS), strict=True):
        total_P += weights_B.double() @ take(stack, ids_B).double()
    return total_P


def _one_by_one(stack: Tensor) -> bool:
    """Tell whether rows are worth a call each: all cores share it, where calls for several rows take one core."""
    return stack.device.type == "cpu" and math.prod(stack.shape[1:]) >= _LONG
