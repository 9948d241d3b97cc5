"""A row for every client: in memory while all of them fit, beyond it in a file of which only the rows in use exist.

Either way it is one tensor ``(N, ...)``. The file is a temporary one, in the folder of the environment's ``TMPDIR``; it
has no name any more once it is mapped, so nothing is left behind however a run ends. Rows of zeros that nobody wrote
to take no room in it, as long as nobody reads them either.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import reduce
from logging import getLogger
from typing import Final

import torch
from torch import Tensor

from fedpisa.memory import advise

_LOG = getLogger("fedpisa")

UNLIMITED: Final = sys.maxsize
ROWS: Final = 64
"""Rows that are worked on at once, so that copies of another type stay small."""
_LONG: Final = 2**15
"""Numbers of a row from which rows are copied one by one, on all cores: `index_copy_` takes one core, and longer."""
# From Linux's mman-common.h; the same on macOS.
_MADV_RANDOM: Final = 1
_MADV_DONTNEED: Final = 4


def zeros(shape: tuple[int, ...], like: Tensor, limit: int = UNLIMITED) -> Tensor:
    """Return a stack of zeros: on the device of ``like``, or in a file if it takes more than ``limit`` bytes.

    Examples
    --------
    >>> here, there = (zeros((3, 2), torch.ones(()), limit) for limit in (24, 23))
    >>> is_mapped(here), is_mapped(there), bool((here == there).all())
    (False, True, True)
    """
    count = math.prod(shape)
    size = count * like.element_size()
    if size <= limit:
        return like.new_zeros(shape)
    handle, name = tempfile.mkstemp(prefix="fedpisa-", suffix=".rows")
    try:
        os.truncate(handle, size)
        free = shutil.disk_usage(name).free
        if size > free:
            _LOG.warning(
                "clients' vectors may come to take %.0f GB in %s, with %.0f GB free: set TMPDIR to a larger folder",
                size / 1e9,
                os.path.dirname(name),
                free / 1e9,
            )
        stack = torch.from_file(name, shared=True, size=count, dtype=like.dtype).view(shape)
        # Rows are far apart: reading ahead would make a hundred times the room that they need.
        _advise(stack, _MADV_RANDOM)
        return stack
    finally:
        os.close(handle)
        os.unlink(name)


def is_mapped(stack: Tensor) -> bool:
    """Tell whether a stack is in a file."""
    return stack.device.type == "cpu" and stack.untyped_storage().filename is not None


def take(stack: Tensor, ids_S: Tensor) -> Tensor:
    """Return copies of rows, on the device of ``ids_S``."""
    if not is_mapped(stack):
        return stack.index_select(0, ids_S)
    rows_S = stack.index_select(0, ids_S.cpu()).to(ids_S.device)
    release(stack)
    return rows_S


def put(stack: Tensor, ids_S: Tensor, rows_S: Tensor) -> Tensor:
    """Write rows, and return the stack."""
    if not is_mapped(stack):
        if stack.device.type != "cpu" or stack[0].numel() < _LONG:
            return stack.index_copy_(0, ids_S, rows_S)
        for row, new in zip(ids_S.tolist(), rows_S.unbind(), strict=True):
            stack[row].copy_(new)
        return stack
    stack.index_copy_(0, ids_S.cpu(), rows_S.cpu())
    release(stack)
    return stack


def release(stack: Tensor) -> None:
    """Let go of the memory through which a file's rows were read or written; what was written stays."""
    _advise(stack, _MADV_DONTNEED)


def _advise(stack: Tensor, advice: int) -> None:
    """Tell the system how a mapped stack is used; of anonymous memory it would forget what is in it."""
    assert is_mapped(stack)
    storage = stack.untyped_storage()
    advise(storage.data_ptr(), storage.nbytes(), advice)


def weighted_sum(weights_S: Tensor, stack: Tensor) -> Tensor:
    """Return ``sum_i weights_i row_i`` ``(P,)`` in float64; rows of weight 0 are not read.

    Examples
    --------
    >>> weighted_sum(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[1.0], [torch.nan], [5.0]]))
    tensor([7.], dtype=torch.float64)
    """
    ids_S = weights_S.nonzero().flatten()
    return _added_up((weights_S[ids_B], take(stack, ids_B)) for ids_B in torch.split(ids_S, ROWS))


def precise_sum(weights_S: Tensor, rows_SP: Tensor) -> Tensor:
    """Return ``sum_i weights_i row_i`` ``(P,)`` in float64, without a copy of all rows in it.

    Examples
    --------
    >>> precise_sum(torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [5.0]]))
    tensor([7.], dtype=torch.float64)
    """
    return _added_up(zip(torch.split(weights_S, ROWS), torch.split(rows_SP, ROWS), strict=True))


def _added_up(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the parts' sums of weighted rows, added up in float64."""
    return reduce(torch.add, (weights_B.double() @ rows_BP.double() for weights_B, rows_BP in parts))
