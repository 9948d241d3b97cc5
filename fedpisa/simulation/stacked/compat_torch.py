"""Private parts of PyTorch, and a public replacement for untested versions of PyTorch.

The private functions leave `torch.func.vmap` for a moment: code for one client calls a function of all stacked clients.
The public `torch.autograd.Function` does the same in 0.1 ms per call, as much as the rest of a small model's step.
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
"""Lowest and highest minor version of PyTorch whose private parts are used."""
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
    """Return whether PyTorch's private parts are used; warn once if not."""
    lowest, highest = TESTED
    major, minor = (int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if lowest <= (major, minor) <= highest and all(hasattr(functorch, name) for name in _NAMES):
        return True
    warnings.warn(
        f"fedpisa's stacked engine is tuned for torch {lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}, not "
        f"{torch.__version__}: results are right, but small models train more slowly",
        stacklevel=2,
    )
    return False


def of_all_clients(function: Callable[..., tuple[Tensor, Tensor]], *parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return one client's part of a function of stacked tensors, inside `torch.func.vmap` or outside it.

    The result has no derivative.

    Parameters
    ----------
    function
        Function of tensors ``(S, ...)`` of all ``S`` clients that returns two tensors ``(S, ...)``. Arguments that
        the clients share are ``(1, ...)``; outside `vmap`, all are.
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
    """Return the function's values for a single client."""
    first, second = function(*(part[None] for part in parts))
    return first[0], second[0]


def _stacked(part: Tensor, level: int) -> Tensor:
    """Return the tensor of all clients behind one client's tensor."""
    if not functorch.is_batchedtensor(part) or functorch.maybe_get_level(part) != level:
        return part[None]
    whole: Tensor = functorch.get_unwrapped(part)
    return whole.movedim(functorch.maybe_get_bdim(part), 0)


@final
class _OfAllClients(torch.autograd.Function):
    """The public way out of `vmap`."""

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, Tensor]], *parts: Tensor) -> tuple[Tensor, Tensor]:
        """Return one client's part."""
        return _alone(function, *parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save nothing: there is no derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        """Return the parts of all clients."""
        function, *parts = arguments
        stacked = [
            part[None] if dim is None else part.movedim(dim, 0)
            for part, dim in zip(parts, in_dims[1:], strict=True)
        ]
        return function(*stacked), (0, 0)
