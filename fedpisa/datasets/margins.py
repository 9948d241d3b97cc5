"""Tables of counts whose rows and columns have given sums, such as clients x classes.

Shapes: ``N`` rows, ``K`` columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_STEPS = 5000
"""Steps of proportional fitting after which `rounded` corrects what is left."""


def fitted(
    weights_NK: NDArray[np.float64], rows_N: NDArray[np.int64], columns_K: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scale the rows and columns of a positive table in turn, until they have the given sums.

    This is iterative proportional fitting: of all tables with these sums, it returns the one with the smallest
    relative entropy to ``weights_NK``. The rows' sums are exact, those of the columns exact to half a sample in all.

    Examples
    --------
    >>> fitted(np.array([[1.0, 1.0], [1.0, 3.0]]), np.array([200, 200]), np.array([200, 200])).round()
    array([[127.,  73.],
           [ 73., 127.]])
    """
    row_factor_N = rows_N / weights_NK.sum(axis=1)
    for _ in range(MOST_STEPS):
        sums_K = row_factor_N @ weights_NK
        column_factor_K = columns_K / sums_K
        row_factor_N = rows_N / (weights_NK @ column_factor_K)
        if np.abs(column_factor_K * (row_factor_N @ weights_NK) - columns_K).sum() < 0.5:
            break
    table_NK: NDArray[np.float64] = row_factor_N[:, None] * weights_NK * column_factor_K
    return table_NK


def rounded(table_NK: NDArray[np.float64], columns_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round a table to integers, and keep the sums of its rows, which are integers, and the sums of its columns.

    Each row is rounded by largest remainders. Then rows move units from columns with too many to columns with too few:
    first those rows that the moves bring nearest to the table.

    Examples
    --------
    >>> rounded(np.full((3, 3), 1 / 3), np.array([1, 1, 1])).sum(axis=0)
    array([1, 1, 1])
    """
    counts_NK = np.floor(table_NK).astype(np.int64)
    missing_N = np.rint(table_NK.sum(axis=1)).astype(np.int64) - counts_NK.sum(axis=1)
    rank_NK = (counts_NK - table_NK).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    counts_NK += rank_NK < missing_N[:, None]
    while (surplus_K := counts_NK.sum(axis=0) - columns_K).any():
        source, target = int(surplus_K.argmax()), int(surplus_K.argmin())
        excess_N = (counts_NK - table_NK)[:, source] - (counts_NK - table_NK)[:, target]
        able = np.flatnonzero(counts_NK[:, source])
        moves = min(int(surplus_K[source]), -int(surplus_K[target]), len(able))
        chosen = able[np.argsort(-excess_N[able], kind="stable")[:moves]]
        counts_NK[chosen, source] -= 1
        counts_NK[chosen, target] += 1
    return counts_NK
