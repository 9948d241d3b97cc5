"""Distances between two sets of samples, by the features of a network.

Shapes: ``n`` samples, ``D`` features, ``R`` rows of a root of a covariance.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(one_nD: Tensor, other_nD: Tensor) -> float:
    r"""Return the Frechet distance of the Gaussians with the samples' means and covariances, in float64.

    ``||m - m'||^2 + tr(S + S' - 2 (S S')^(1/2))`` with the unbiased covariances ``S``, ``S'``. On the features of
    Inception-v3 it is the FID.

    Raises
    ------
    ValueError
        If a set has fewer than two samples.

    References
    ----------
    Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, NeurIPS 2017.

    Examples
    --------
    Variances 2 and 8, means 0 and 3: ``9 + (sqrt(8) - sqrt(2))^2``.

    >>> round(frechet_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])), 12)
    11.0
    """
    return gaussian_distance(*_gaussian(one_nD), *_gaussian(other_nD))


def gaussian_distance(mean_D: Tensor, root_RD: Tensor, other_D: Tensor, other_RD: Tensor) -> float:
    r"""Return the Frechet distance of two Gaussians from means and roots of covariances, ``S = root^T root``.

    ``tr (S S')^(1/2)`` is the sum of the singular values of ``root root'^T``. Unlike a matrix square root, they have
    small errors for covariances without full rank too.
    """
    cross = torch.linalg.svdvals(root_RD @ other_RD.T).sum()
    spread = (mean_D - other_D).square().sum() + root_RD.square().sum() + other_RD.square().sum()
    return max(float(spread - 2 * cross), 0.0)


def _gaussian(features_nD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean ``(D,)`` and a root ``(R, D)`` of the covariance."""
    count = len(features_nD)
    if count < 2:
        raise ValueError(f"a covariance needs two samples or more, and here is {count}: give more samples")
    mean_D = features_nD.double().mean(0)
    centred_nD = (features_nD.double() - mean_D) / (count - 1) ** 0.5
    return mean_D, torch.linalg.qr(centred_nD, mode="r").R


def kernel_distance(one_nD: Tensor, other_nD: Tensor) -> float:
    r"""Return the unbiased estimate of the squared maximum mean discrepancy with ``k(a, b) = (a^T b / D + 1)^3``.

    On the features of Inception-v3 it is the KID. It is 0 on average for two sets of one distribution, and may be
    negative.

    References
    ----------
    Binkowski, Sutherland, Arbel, Gretton, Demystifying MMD GANs, ICLR 2018.

    Examples
    --------
    >>> kernel_distance(torch.zeros(2, 1), torch.ones(2, 1))
    7.0
    """
    a, b = one_nD.double(), other_nD.double()
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(
            f"the kernel distance needs two samples or more of each set, and here are {n} and {m}"
        )

    def total(left: Tensor, right: Tensor) -> Tensor:
        # In parts, so that no matrix of all pairs is stored.
        parts = [((part @ right.T) / right.shape[1] + 1).pow(3).sum() for part in torch.split(left, 1024)]
        return torch.stack(parts).sum()

    def within(rows: Tensor) -> Tensor:
        count = len(rows)
        own = (rows.square().sum(1) / rows.shape[1] + 1).pow(3).sum()
        return (total(rows, rows) - own) / (count * (count - 1))

    return float(within(a) + within(b) - 2 * total(a, b) / (n * m))
