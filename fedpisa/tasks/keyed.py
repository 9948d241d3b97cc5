"""Random numbers as functions of a key, the same in every engine.

A key holds 64 random bits, such as those of a local step. Counters make further keys of it, and a key makes numbers.
There is no generator and no order: stacked clients, one client alone and clients on several threads get the same bits.

Shapes: ``C`` mini-batches of a step, ``B`` samples of a mini-batch; ``...`` stands for any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedpisa.rng import mix


def sample_keys(key: Tensor, batches: int, size: int) -> Tensor:
    """Return a key ``(..., C, B)`` for each sample of a step, from the step's key ``(...)``; padding changes none.

    Examples
    --------
    >>> key = torch.tensor(7)
    >>> bool((sample_keys(key, 2, 3) == sample_keys(key, 2, 5)[:, :3]).all())
    True
    """
    of_batch = mix(key[..., None], torch.arange(batches, device=key.device))
    return mix(of_batch[..., None], torch.arange(size, device=key.device))


def below(keys: Tensor, number: int, ends: tuple[int, ...]) -> Tensor:
    """Return independent integers ``(..., len(ends))``, each uniform in ``0 .. end - 1``.

    Parameters
    ----------
    keys
        Keys ``(...)``.
    number
        Which of a key's draws these are; other numbers give independent draws.
    ends
        The numbers of values, small beside ``2**31``: the chances differ by less than ``end / 2**31``.

    Examples
    --------
    >>> below(torch.tensor([7, 8]), 0, (9, 9, 2)).shape
    torch.Size([2, 3])
    """
    counters = torch.arange(len(ends), device=keys.device) + (number << 16)
    bits = (mix(keys[..., None], counters) >> 33) & (2**31 - 1)
    drawn: Tensor = bits * torch.tensor(ends, device=keys.device) >> 31
    return drawn
