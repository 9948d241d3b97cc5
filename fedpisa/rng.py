"""Named random streams: the seed alone determines every random choice of a run.

A word and counters, such as round and client, name a stream. The draws therefore do not depend on the order in which an
engine works. Inside a loss, `uniform` and `normal` are functions of a step's key.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64
"""SplitMix64's step from state to state, as an int64."""


def stream_key(seed: int, name: str, *counters: int) -> int:
    """Return the 128-bit key of the stream ``name`` with these ``counters``.

    Examples
    --------
    >>> stream_key(0, "sampling", 3) == stream_key(0, "sampling", 3)
    True
    >>> stream_key(0, "sampling", 3) == stream_key(0, "sampling", 4)
    False
    """
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Return the NumPy generator of a named stream.

    Parameters
    ----------
    seed
        The run's seed.
    name
        Purpose of the stream: ``partition``, ``sampling``, ``batches``, ...
    counters
        Numbers that distinguish streams of one purpose, such as the server round or the client.

    Examples
    --------
    >>> int(generator(0, "partition").integers(10)) == int(generator(0, "partition").integers(10))
    True
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, name, *counters)))


def torch_seed(seed: int, name: str, *counters: int) -> int:
    """Return a 63-bit seed for ``torch.manual_seed`` from a named stream.

    Examples
    --------
    >>> 0 <= torch_seed(0, "initial-weights") < 2**63
    True
    """
    return stream_key(seed, name, *counters) >> 65


@contextmanager
def torch_seeded(seed: int, name: str, *counters: int) -> Iterator[None]:
    """Seed torch's global generators from a named stream, and restore them afterwards.

    Examples
    --------
    >>> import torch
    >>> def draw():
    ...     with torch_seeded(0, "noise", 1):
    ...         return float(torch.rand(()))
    >>> draw() == draw()
    True
    """
    import torch

    key = torch_seed(seed, name, *counters)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        with torch.random.fork_rng():
            torch.manual_seed(key)
            yield
        return
    # Without a device there is one generator, and forking takes longer than a small round.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(key)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextmanager
def seeded(seed: int, name: str, *counters: int, restore: bool = True) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and `random` from a named stream, and restore them afterwards.

    ``restore = False`` is for a block inside another one, which restores them.

    Users' models and Flower's strategies draw from these generators; fedpisa itself does not.

    Examples
    --------
    >>> def draw():
    ...     with seeded(0, "noise", 1):
    ...         return random.random()
    >>> draw() == draw()
    True
    """
    key = stream_key(seed, name, *counters)
    before = (random.getstate(), np.random.get_state()) if restore else None  # noqa: NPY002
    random.seed(key)
    np.random.seed([key >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)])  # noqa: NPY002
    try:
        with torch_seeded(seed, name, *counters):
            yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def hashed(key: int, *counters: np.ndarray | int) -> np.ndarray:
    """Return 64 random bits per entry of the broadcast ``counters``, each a pure function of its counters.

    The bits come from a chain of SplitMix64 finalisers (Steele, Lea and Flood 2014). One call for many clients gives
    the same bits as one call per client.

    Examples
    --------
    >>> both = hashed(1, np.array([[0], [7]]), np.arange(3))
    >>> bool((both[1] == hashed(1, 7, np.arange(3))).all())
    True
    """
    state = np.asarray(key & (2**64 - 1), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for counter in counters:
            state = _mix(state ^ _mix(np.asarray(counter).astype(np.uint64)))
    return state


def step_keys(seed: int, ids_S: np.ndarray, server_round: int, num_steps: int) -> np.ndarray:
    """Return 64 random bits, as int64 ``(S, K)``, for every local step of every client of a round.

    Examples
    --------
    >>> both = step_keys(0, np.array([3, 5]), server_round=1, num_steps=2)
    >>> bool((both[1] == step_keys(0, np.array([5]), 1, 2)[0]).all()), len(set(both.ravel()))
    (True, 4)
    """
    key = stream_key(seed, "steps")
    return hashed(key, ids_S[:, None], server_round, np.arange(num_steps)).view(np.int64)


def mix(key: Tensor, counter: Tensor | int) -> Tensor:
    """Return 64 random bits, int64, for each entry of the broadcast ``key`` and ``counter``: `hashed` in torch.

    Integer arithmetic works under `torch.func.vmap`, where each client has a different key; a generator does not.

    Examples
    --------
    >>> import torch
    >>> int(mix(torch.tensor(1), 7)) == int(hashed(1, 7).view(np.int64))
    True
    """
    import torch

    return splitmix(key ^ splitmix(torch.as_tensor(counter, device=key.device)))


def uniform(key: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return uniform numbers in [0, 1) that depend on ``key`` ``()`` alone, float32 or ``dtype``.

    The numbers are multiples of ``2^-24``, or of ``2^-53`` for float64, and all of them are equally likely. Number
    ``i`` is a function of the key and ``i``, so a longer draw begins with the shorter one. The bits are the same on
    every device, under `torch.func.vmap`, and with any number of threads.

    Examples
    --------
    >>> import torch
    >>> uniform(torch.tensor(7), 2, 2)
    tensor([[0.3935, 0.4652],
            [0.1078, 0.9082]])
    """
    import torch

    dtype = dtype or torch.float32
    kept = 53 if dtype is torch.float64 else 24
    return _bits(key, shape, kept).to(dtype) * 2.0**-kept


def normal(key: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return standard normal numbers that depend on ``key`` ``()`` alone, float32 or ``dtype``.

    They are the normal quantiles of numbers in (0, 1), computed in float64. On one kind of device the bits are the
    same under `torch.func.vmap` and with any number of threads. Otherwise see `uniform`.

    Examples
    --------
    >>> import torch
    >>> normal(torch.tensor(7), 2, 2)
    tensor([[-0.2701, -0.0874],
            [-1.2384,  1.3298]])
    """
    import torch

    # Half a step away from 0 and 1, and symmetric: 52 bits and the half are exact in float64.
    centred = (_bits(key, shape, 52).double() + 0.5) * 2.0**-52
    drawn: Tensor = torch.special.ndtri(centred)
    return drawn.to(dtype or torch.float32)


def _bits(key: Tensor, shape: tuple[int, ...], kept: int) -> Tensor:
    """Return the highest ``kept`` bits of a mixed key for each entry of a shape."""
    import torch

    counters = torch.arange(prod(shape), device=key.device).view(shape)
    return _shifted(mix(key, counters), 64 - kept)


def splitmix(bits: Tensor) -> Tensor:
    """Return the output of SplitMix64 for each state, int64: products and sums wrap around.

    Examples
    --------
    >>> import torch
    >>> f"{int(splitmix(torch.tensor(0))) % 2**64:x}"
    'e220a8397b1dcdaf'
    """
    bits = bits + GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Return a logical shift to the right: one of int64 keeps the sign, and the mask removes it."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    """Return the int64 with the same 64 bits."""
    return bits - (bits >> 63 << 64)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed
