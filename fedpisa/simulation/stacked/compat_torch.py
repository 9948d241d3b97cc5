"""All that the package takes of PyTorch's private parts, and what takes its place where they may have changed.

Private is the short way out of `torch.func.vmap`: what is written for all stacked clients at once is called where one
client is meant. `torch.autograd.Function` has the same way out, at a tenth of a millisecond a call: as much as all the
rest of a small model's local step.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Final, final

import torch
from torch import Tensor

try:
    from torch._C import _functorch
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

    functorch: Any = _functorch
except ImportError:
    functorch = None

TESTED: Final = ((2, 14), (2, 14))
"""The lowest and the highest minor version of PyTorch whose private parts are used."""
_NAMES: Final = (
    "_add_batch_dim",
    "get_unwrapped",
    "is_batchedtensor",
    "maybe_current_level",
    "maybe_get_bdim",
    "maybe_get_level",
)


@cache
def private() -> bool:
    """Whether PyTorch's private parts are used; warn once if not."""
    lowest, highest = TESTED
    major, minor = (int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if lowest <= (major, minor) <= highest and all(hasattr(functorch, name) for name in _NAMES):
        return True
    warnings.warn(
        f"torch {torch.__version__} is not one that fedpisa's stacked engine is tuned for "
        f"({lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}): results are right, small models train more slowly",
        stacklevel=2,
    )
    return False


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
    if not private():
        public: Callable[..., tuple[Tensor, Tensor]] = _OfAllClients.apply
        return public(function, *parts)
    level = functorch.maybe_current_level()
    if level is None:
        return _alone(function, *parts)
    stacked = [_stacked(part, level) for part in parts]
    with temporarily_pop_interpreter_stack():
        first, second = function(*stacked)
    return functorch._add_batch_dim(first, 0, level), functorch._add_batch_dim(second, 0, level)


def _alone(function: Callable[..., tuple[Tensor, Tensor]], *parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the function of one client as a stack of one."""
    first, second = function(*(part[None] for part in parts))
    return first[0], second[0]


def _stacked(part: Tensor, level: int) -> Tensor:
    """Return what a tensor is for all clients."""
    if not functorch.is_batchedtensor(part) or functorch.maybe_get_level(part) != level:
        return part[None]
    whole: Tensor = functorch.get_unwrapped(part)
    return whole.movedim(functorch.maybe_get_bdim(part), 0)


@final
class _OfAllClients(torch.autograd.Function):
    """The public way out of `vmap`."""

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, Tensor]], *parts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one client's part."""
        return _alone(function, *parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: there is no derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        """Compute the parts of all clients."""
        function, *parts = arguments
        stacked = [
            part[None] if dim is None else part.movedim(dim, 0)
            for part, dim in zip(parts, in_dims[1:], strict=True)
        ]
        return function(*stacked), (0, 0)
