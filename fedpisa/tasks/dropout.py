"""Dropout whose masks are functions of a step's key: equal on all engines and with any number of threads.

A generator's numbers depend on the order of the calls, which differs between stacked clients and clients one after the
other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import sqrt
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fedpisa.rng import mix, uniform
from fedpisa.tasks.modules import is_unchanged

_APART: Final = -1
"""What a mini-batch's key is mixed with for dropout, so that other noise has other bits."""


@final
@dataclass
class _Pass:
    """The key of a pass, and the keys that its calls of each layer got."""

    key: Tensor
    given: dict[nn.Module, list[Tensor]] = field(default_factory=dict)

    def next_key(self, layer: nn.Module) -> Tensor:
        """Return the key of the pass's next call, mixed with the call's number."""
        key = mix(self.key, sum(map(len, self.given.values())))
        self.given.setdefault(layer, []).append(key)
        return key


_backward_pass: Final[Callable[[], int]] = getattr(torch._C, "_current_graph_task_id", lambda: -1)
"""The number of the backward pass that is running, -1 outside of one; private, so a later torch may lack it."""
_current: ContextVar[_Pass | None] = ContextVar("current", default=None)
_latest: ContextVar[_Pass | None] = ContextVar("latest", default=None)


@contextmanager
def masks_from(key: Tensor | None) -> Iterator[None]:
    """Let the dropout layers of one pass draw from a key ``()``; for ``None`` they draw from torch's generator."""
    this = None if key is None else _Pass(mix(key, _APART))
    token = _current.set(this)
    _latest.set(this)
    try:
        yield
    finally:
        _current.reset(token)


def _key_of(layer: nn.Module) -> Tensor | None:
    """Return the key of a layer's call; ``None`` outside `masks_from`."""
    if _backward_pass() == -1:
        current = _current.get()
        return None if current is None else current.next_key(layer)
    # `torch.utils.checkpoint` calls the layer again in the backward pass, and needs the same mask.
    latest = _latest.get()
    keys = [] if latest is None else latest.given.get(layer, [])
    if len(keys) != 1:
        raise ValueError(
            f"a {type(layer).__name__} inside torch.utils.checkpoint cannot repeat its mask, because it is called "
            "more than once or on a GPU: leave the layer out of the checkpoint"
        )
    return keys[0]


class Keyed(_DropoutNd, ABC):
    """A dropout layer with a key for its masks; without one it is torch's layer."""

    @abstractmethod
    def mask_shape(self, x: Tensor) -> tuple[int, ...] | None:
        """Return the shape of the mask; ``None`` for inputs that are left to torch."""

    def apply_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``x mask / (1 - p)``."""
        factor = mask.to(x.dtype) * (1 / (1 - self.p) if self.p < 1 else 0.0)
        return x.mul_(factor) if self.inplace else x * factor

    def forward(self, input: Tensor) -> Tensor:
        """Drop values in training."""
        shape = self.mask_shape(input)
        if self.training and self.p > 0 and shape is not None:
            key = _key_of(self)
            if key is not None:
                return self.apply_mask(input, uniform(key, *shape) < 1 - self.p)
        plain: Tensor = super().forward(input)
        return plain


class _OfChannels(Keyed, ABC):
    """Drops whole channels ``(B, C)``."""

    axes: int

    def mask_shape(self, x: Tensor) -> tuple[int, ...] | None:
        """Return one entry for each channel, if the input has samples, channels and all of its spatial axes."""
        return (*x.shape[:2], *(1,) * (x.dim() - 2)) if x.dim() == self.axes else None


@final
class KeyedDropout(Keyed, nn.Dropout):
    """`torch.nn.Dropout` with a key; see `key_dropouts`.

    Examples
    --------
    >>> layer, x = key_dropouts(nn.Dropout(0.5)), torch.ones(6)
    >>> with masks_from(torch.tensor(0)):
    ...     first, second = layer(x), layer(x)
    >>> with masks_from(torch.tensor(0)):
    ...     again = layer(x)
    >>> torch.equal(first, again), torch.equal(first, second)
    (True, False)
    """

    def mask_shape(self, x: Tensor) -> tuple[int, ...] | None:
        """Return one entry for each value."""
        return tuple(x.shape)


@final
class KeyedDropout1d(_OfChannels, nn.Dropout1d):
    """`torch.nn.Dropout1d` with a key; see `key_dropouts`."""

    axes = 3


@final
class KeyedDropout2d(_OfChannels, nn.Dropout2d):
    """`torch.nn.Dropout2d` with a key; see `key_dropouts`."""

    axes = 4


@final
class KeyedDropout3d(_OfChannels, nn.Dropout3d):
    """`torch.nn.Dropout3d` with a key; see `key_dropouts`."""

    axes = 5


@final
class KeyedAlphaDropout(Keyed, nn.AlphaDropout):
    """`torch.nn.AlphaDropout` with a key; see `key_dropouts`."""

    def mask_shape(self, x: Tensor) -> tuple[int, ...] | None:
        """Return one entry for each value."""
        return tuple(x.shape)

    def apply_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``a (x m + s (1 - m)) - a s p``, which keeps mean 0 and variance 1; ``s`` is SELU's limit."""
        if self.p == 1:
            return x * 0
        m, limit = mask.to(x.dtype), -1.7580993408473766
        a = 1 / sqrt((1 - self.p) * (1 + self.p * limit**2))
        return a * (x * m + limit * (1 - m)) - a * limit * self.p


_KEYED: Final[dict[type[nn.Module], type[Keyed]]] = {
    nn.Dropout: KeyedDropout,
    nn.Dropout1d: KeyedDropout1d,
    nn.Dropout2d: KeyedDropout2d,
    nn.Dropout3d: KeyedDropout3d,
    nn.AlphaDropout: KeyedAlphaDropout,
}
_FORWARDS: Final = {plain: plain.forward for plain in _KEYED}


def key_dropouts(module: nn.Module) -> nn.Module:
    """Let every plain dropout layer of a module draw from `masks_from`, and return the module.

    The layer object stays. A layer is plain if it is of exactly one of torch's classes, without hooks, and neither the
    object nor the class has another ``forward``.
    """
    for layer in module.modules():
        kind = type(layer)
        if kind in _KEYED and kind.forward is _FORWARDS[kind] and is_unchanged(layer):
            layer.__class__ = _KEYED[kind]
    return module


def keyed_dropouts(module: nn.Module) -> tuple[Keyed, ...]:
    """Return the module's layers that drop values by a key."""
    return tuple(layer for layer in module.modules() if isinstance(layer, Keyed))
