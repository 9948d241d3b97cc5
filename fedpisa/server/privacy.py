"""Central differential privacy: the server clips each client's increment and releases only their mean with noise.

Shapes: ``S`` replies, ``P`` parameters.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedpisa.rng import generator

Delta = Annotated[float, Field(gt=0, lt=1)]
"""A number in (0, 1)."""
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number greater than 0."""
GRID_BITS: Final = 40
"""The released sum is a multiple of ``2^-40`` of the clipping norm or of the noise, whichever is larger."""


@final
@dataclass(frozen=True)
class CentralPrivacy:
    """Clip each client's increment to the broadcast model, and add Gaussian noise to their mean on the server.

    The server's step sees the noised mean in place of every upload, so what follows is post-processing. The unit of
    privacy is one client. The server is trusted; the nodes, and those who see models, are not.

    Parameters
    ----------
    clipping_norm
        Largest Euclidean norm ``C`` of an increment; longer ones are scaled down to it.
    noise_multiplier
        Standard deviation of the noise on the sum of the increments, in units of ``C``. 0 clips only.
    epsilon
        Target at ``delta`` after ``num-server-rounds`` rounds, in place of ``noise-multiplier``, which is solved for.
    delta
        Probability with which the bound ``epsilon`` may fail. Take well below 1 / number of clients.
    amplification
        Whether ``epsilon`` counts on the cohorts being secret. Real servers then draw them from the operating system.
        Needs the extra ``privacy``. By default the cohorts are public, as the seed is.
    secure_noise
        Whether the noise comes from the operating system and not from the seed: by default if clients are real nodes.
    """

    clipping_norm: Size
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    epsilon: Size | None = None
    delta: Delta = 1e-5
    amplification: bool = False
    secure_noise: bool | None = None

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            number = "neither" if self.epsilon is None else "both"
            raise ValueError(
                f'differential-privacy = "central" has {number} of noise-multiplier and epsilon: set one of them'
            )


@final
@dataclass(frozen=True)
class PrivateMean:
    """The mean of clipped increments with Gaussian noise, of which the server's step is a function.

    Parameters
    ----------
    clipping_norm, noise_multiplier
        See `CentralPrivacy`.
    seed
        Seed of the noise; ``None`` takes it from the operating system.
    secret_cohorts
        Whether the cohorts come from the operating system too.
    """

    clipping_norm: float
    noise_multiplier: float
    seed: int | None = None
    secret_cohorts: bool = False

    def __call__(self, server_round: int, centre_P: Tensor, uploads_SP: Tensor, num_asked: int) -> Tensor:
        """Return ``centre + (sum_i clip(upload_i - centre) + noise) / num_asked`` ``(P,)``."""
        size = len(centre_P)
        noise_P = (
            secure_normal(size)
            if self.seed is None
            else generator(self.seed, "privacy-noise", server_round).standard_normal(size)
        )
        return noised_mean(
            centre_P, uploads_SP, num_asked, self.clipping_norm, self.noise_multiplier, noise_P
        )


def noised_mean(
    centre_P: Tensor,
    uploads_SP: Tensor,
    num_asked: int,
    clipping_norm: float,
    noise_multiplier: float,
    noise_P: NDArray[np.float64],
) -> Tensor:
    """Return ``centre + (sum_i clip(upload_i - centre) + z C noise) / num_asked`` ``(P,)`` for standard normal noise.

    The divisor counts the clients that were asked, so a lost reply is an increment of 0 and one client changes the sum
    by at most ``clipping_norm``. An increment that is not finite counts as 0 too.

    The last bits of floating-point noise betray what it was added to (Mironov 2012). Here increments are truncated
    towards 0 to multiples of a grid, and the noise is rounded to the same grid. A sum of integers is exact. It equals
    the rounded sum of increments and unrounded noise, which is post-processing of the Gaussian mechanism.

    Examples
    --------
    >>> zero_P, uploads_SP = torch.zeros(2).double(), torch.tensor([[3.0, 4.0], [0.0, 0.5]]).double()
    >>> noised_mean(zero_P, uploads_SP, 2, 1.0, 1.0, np.zeros(2)).round(decimals=9).tolist()
    [0.3, 0.65]
    """
    deviation = noise_multiplier * clipping_norm
    grid = 2.0 ** (math.floor(math.log2(max(clipping_norm, deviation))) - GRID_BITS)
    centre = centre_P.double().cpu().numpy()
    total = np.rint(deviation / grid * noise_P).astype(np.int64)
    for upload_P in uploads_SP:
        increment = upload_P.double().cpu().numpy() - centre
        length = float(np.linalg.norm(increment))
        if math.isfinite(length):
            factor = min(1.0, clipping_norm / length) if length else 1.0
            total += np.trunc(increment * factor / grid).astype(np.int64)
    return torch.from_numpy(centre + total * (grid / num_asked)).to(centre_P)


def secure_normal(size: int) -> NDArray[np.float64]:
    """Return standard normal numbers ``(size,)`` from the operating system's cryptographic generator.

    The generators of NumPy and torch are not cryptographic: enough of their output tells their state, even if their
    seed is secret. So all bits come from ``os.urandom``, and there is no seed. Each number is half the sum of four
    draws by Box and Muller, as in Opacus' secure mode (Holohan and Braghin 2021). Of each pair that the method gives,
    only one number is used.

    Examples
    --------
    >>> secure_normal(3).shape, bool((secure_normal(3) != secure_normal(3)).all())
    ((3,), True)
    """
    total = np.zeros(size)
    for _ in range(4):
        bits = np.frombuffer(os.urandom(16 * size), np.uint64).reshape(2, size) >> np.uint64(11)
        uniform, turn = (bits[0] + np.uint64(1)) * 2.0**-53, bits[1] * 2.0**-53
        total += np.sqrt(-2 * np.log(uniform)) * np.cos(2 * np.pi * turn)
    return total / 2


def secretly_sampled(nodes: Sequence[int], size: int) -> list[int]:
    """Return a uniform sample of ``nodes`` without replacement, in their order, from the operating system's generator.

    Examples
    --------
    >>> secretly_sampled([3, 5, 8], 3)
    [3, 5, 8]
    """
    return [nodes[position] for position in sorted(random.SystemRandom().sample(range(len(nodes)), size))]
