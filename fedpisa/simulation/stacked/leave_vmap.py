"""A way out of `torch.func.vmap`: what is written for all stacked clients at once, called where one client is meant.

`torch.autograd.Function` has the same way out, at a tenth of a millisecond a call: as much as all the rest of a small
model's local step. This module alone uses what `torch.func` keeps to itself.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack


def of_all_clients(function: Callable[..., tuple[Tensor, Tensor]], *parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return one client's part of a function of stacked tensors, inside `torch.func.vmap` or outside it.

    Nothing is differentiated.

    Parameters
    ----------
    function
        Takes the parts of all ``S`` clients, ``(S, ...)``, and returns two tensors ``(S, ...)``. What the clients
        share, and outside `vmap` everything, is ``(1, ...)``.
    parts
        One client's arguments.

    Examples
    --------
    >>> import torch
    >>> def means(x_SB, one_1B):
    ...     return x_SB.mean(1), (x_SB + one_1B).mean(1)
    >>> x_SB, one_B = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.ones(2)
    >>> torch.func.vmap(lambda x_B: of_all_clients(means, x_B, one_B))(x_SB)
    (tensor([2., 6.]), tensor([3., 7.]))
    >>> of_all_clients(means, x_SB[0], one_B)
    (tensor(2.), tensor(3.))
    """
    level = functorch.maybe_current_level()
    if level is None:
        first, second = function(*(part[None] for part in parts))
        return first[0], second[0]
    stacked = [_stacked(part, level) for part in parts]
    with temporarily_pop_interpreter_stack():
        first, second = function(*stacked)
    return functorch._add_batch_dim(first, 0, level), functorch._add_batch_dim(second, 0, level)


def _stacked(part: Tensor, level: int) -> Tensor:
    """Return what a tensor is for all clients."""
    if not functorch.is_batchedtensor(part) or functorch.maybe_get_level(part) != level:
        return part[None]
    return functorch.get_unwrapped(part).movedim(functorch.maybe_get_bdim(part), 0)
