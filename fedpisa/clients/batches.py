"""Samples of each local step, for a whole cohort at once.

Shapes: ``S`` clients, ``K`` local steps, ``C`` mini-batches of one step, ``B`` samples of a mini-batch,
``M`` samples of the cohort in total. A client's samples do not depend on the other clients of the cohort.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.rng import hashed, step_keys, stream_key

BatchSize = int | Literal["full"]
"""Samples of a mini-batch, or all samples of a client."""
Ints = NDArray[np.int64]
CarryState = Literal["none", "round", "epoch"]
"""How far a recurrent model's state is carried; see `fedpisa.tasks.recurrent.Recurrence`."""


class BatchIndices(NamedTuple):
    """The samples of a round.

    ``index_SKCB`` are positions within a client's samples. ``weight_SKCB`` are their weights, 0 for padding; see
    `fedpisa.clients.base.MiniBatches`. ``steps_S`` are the numbers of local steps. ``fresh_SKC`` says before which
    mini-batches a client's carried state is zero; see `Streams`. ``key_SK`` are the steps' random bits, see
    `with_keys`.
    """

    index_SKCB: Ints
    weight_SKCB: NDArray[np.float64]
    steps_S: Ints
    fresh_SKC: NDArray[np.bool_] | None = None
    key_SK: Ints | None = None

    @property
    def gradients_S(self) -> Ints:
        """Number of mini-batch gradients each client evaluates."""
        gradients: Ints = (self.weight_SKCB.sum(-1) > 0).sum((1, 2))
        return gradients

    def rows(self, rows_S: Ints) -> BatchIndices:
        """Return the indices of some of the clients."""
        return BatchIndices(
            self.index_SKCB[rows_S],
            self.weight_SKCB[rows_S],
            self.steps_S[rows_S],
            None if self.fresh_SKC is None else self.fresh_SKC[rows_S],
            None if self.key_SK is None else self.key_SK[rows_S],
        )

    def with_keys(self, seed: int, ids_S: Ints, server_round: int) -> BatchIndices:
        """Return the indices with 64 random bits for each step; see `fedpisa.rng.step_keys`."""
        return self._replace(key_SK=step_keys(seed, ids_S, server_round, self.index_SKCB.shape[1]))

    def client(self, row: int) -> BatchIndices:
        """Return the indices of one client, without the padding that other clients' samples need.

        Examples
        --------
        >>> indices = Epochs(batch_size=2).draw(np.array([3, 1]), np.array([0, 1]), server_round=1, seed=0)
        >>> indices.index_SKCB.shape, indices.client(1).index_SKCB.shape
        ((2, 2, 1, 2), (1, 1, 1, 1))
        """
        own = self.rows(np.array([row]))
        if own.weight_SKCB.all():
            return own
        steps = int(own.steps_S[0])
        if own.key_SK is not None:
            own = own._replace(key_SK=own.key_SK[:, :steps])
        if own.fresh_SKC is not None:  # the rows are streams, which keep their numbers
            return own._replace(
                index_SKCB=own.index_SKCB[:, :steps],
                weight_SKCB=own.weight_SKCB[:, :steps],
                fresh_SKC=own.fresh_SKC[:, :steps],
            )
        used_KCB = own.weight_SKCB[0, :steps] > 0
        batches = int(used_KCB.any((0, 2)).sum())
        size = int(used_KCB.any((0, 1)).sum())
        part = (slice(None), slice(steps), slice(batches), slice(size))
        return own._replace(index_SKCB=own.index_SKCB[part], weight_SKCB=own.weight_SKCB[part])


class BatchSampler(ABC):
    """A rule that selects a cohort's samples from the seed, the clients and the round alone."""

    @property
    @abstractmethod
    def batch_size(self) -> BatchSize:
        """Largest number of samples of a mini-batch."""

    @abstractmethod
    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the round's samples.

        Parameters
        ----------
        sizes_S
            Number of samples of each client, at least 1.
        ids_S
            The clients' numbers.
        server_round
            1, 2, ...
        seed
            The run's seed.
        """

    @abstractmethod
    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the rule that takes as many mini-batches of the samples in their order; see `Streams`."""


def num_batches(sizes_S: Ints, batch_size: BatchSize, drop_last: bool = False) -> Ints:
    """Return ``ceil(n_i / b)`` per client, or ``floor(n_i / b)`` without the smaller last one; at least 1.

    Examples
    --------
    >>> num_batches(np.array([7, 2]), 3).tolist(), num_batches(np.array([7, 2]), 3, drop_last=True).tolist()
    ([3, 1], [2, 1])
    """
    if batch_size == "full":
        return np.ones_like(sizes_S)
    return np.maximum(sizes_S // batch_size, 1) if drop_last else -(-sizes_S // batch_size)


def num_used(sizes_S: Ints, batch_size: BatchSize, drop_last: bool) -> Ints:
    """Return how many samples of each client are in its mini-batches: all, unless ``drop_last`` leaves some out."""
    if batch_size == "full" or not drop_last:
        return sizes_S
    return np.minimum(sizes_S, num_batches(sizes_S, batch_size, drop_last) * batch_size)


def _permutations(sizes_S: Ints, ids_S: Ints, epoch: int, seed: int, name: str) -> tuple[Ints, Ints]:
    """Return the shuffled positions of all clients in turn ``(M,)``, and each client's offset ``(S,)``."""
    begin_S = np.cumsum(sizes_S) - sizes_S
    client_M = np.repeat(np.arange(len(sizes_S)), sizes_S)
    position_M = np.arange(int(sizes_S.sum())) - begin_S[client_M]
    key = stream_key(seed, name)
    bits_M = hashed(key, ids_S[client_M], epoch, position_M)
    if (sizes_S == sizes_S[0]).all():  # the same order, ten times as fast
        return np.argsort(bits_M.reshape(len(sizes_S), -1), axis=1).ravel(), begin_S
    return position_M[np.lexsort((bits_M, client_M))], begin_S


def _take(shuffled_M: Ints, begin_S: Ints, start: Ints, stop: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return each client's positions ``start .. stop - 1`` (both ``(S, ...)``), padded along a new axis, and a mask."""
    slot = np.arange(int((stop - start).max()))
    real = slot < (stop - start)[..., None]
    offset = begin_S.reshape(-1, *(1,) * start.ndim) + start[..., None]
    return shuffled_M[np.where(real, offset + slot, offset)], real


@final
@dataclass(frozen=True)
class Periodic(BatchSampler):
    """PISA's (4.4): fixed mini-batches in turn.

    A client's samples are shuffled once and cut into ``count = ceil(n_i / b)`` disjoint mini-batches whose
    sizes differ by at most one. A round takes the next ``local_steps * batches_per_round`` of them,
    ``batches_per_round`` for each local step; ``"all"`` means ``count``. With ``drop_last`` each has ``b`` samples,
    and the ``n_i mod b`` samples left over are in none.

    Examples
    --------
    >>> indices = Periodic(batch_size=2).draw(np.array([4]), np.array([0]), server_round=1, seed=0)
    >>> later = Periodic(batch_size=2).draw(np.array([4]), np.array([0]), server_round=2, seed=0)
    >>> sorted([*indices.index_SKCB.ravel(), *later.index_SKCB.ravel()]) == [0, 1, 2, 3]
    True
    """

    batch_size: BatchSize = "full"
    batches_per_round: int | Literal["all"] = 1
    local_steps: int = 1
    drop_last: bool = False

    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the round's samples; see `BatchSampler.draw`."""
        count_S = num_batches(sizes_S, self.batch_size, self.drop_last)
        per_step_S = (
            count_S if self.batches_per_round == "all" else np.full_like(count_S, self.batches_per_round)
        )
        shuffled_M, begin_S = _permutations(sizes_S, ids_S, 0, seed, "mini-batches")
        c = np.arange(int(per_step_S.max()))
        k = np.arange(self.local_steps)
        done_S = (server_round - 1) * self.local_steps * per_step_S
        number_SKC = done_S[:, None, None] + k[:, None] * per_step_S[:, None, None] + c
        batch_SKC = number_SKC % count_S[:, None, None]
        used_S = num_used(sizes_S, self.batch_size, self.drop_last)
        n, count = used_S[:, None, None], count_S[:, None, None]
        index, real = _take(shuffled_M, begin_S, batch_SKC * n // count, (batch_SKC + 1) * n // count)
        real &= (c < per_step_S[:, None, None])[..., None]
        weight = real / np.maximum(real.sum(-1, keepdims=True), 1) / per_step_S[:, None, None, None]
        return BatchIndices(index, weight, np.full(len(sizes_S), self.local_steps))

    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the same number of mini-batches of a text in its order; see `Streams`."""
        return Streams(
            self.batch_size, carry_state, self.batches_per_round, 0, self.local_steps, self.drop_last
        )


@final
@dataclass(frozen=True)
class Epochs(BatchSampler):
    """Each epoch shuffles the samples and cuts mini-batches of ``batch_size``; the last one may be smaller.

    With ``drop_last`` a smaller last one is left out, unless it is the client's only one.

    A round has ``local_epochs`` epochs, or, if ``local_steps`` is given, exactly that many mini-batches.

    Examples
    --------
    >>> indices = Epochs(batch_size=2).draw(np.array([3, 1]), np.array([0, 1]), server_round=1, seed=0)
    >>> indices.steps_S.tolist(), indices.weight_SKCB[:, :, 0].tolist()
    ([2, 1], [[[0.5, 0.5], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    """

    batch_size: BatchSize = 32
    local_epochs: int = 1
    local_steps: int | None = None
    drop_last: bool = False

    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the round's samples; see `BatchSampler.draw`."""
        count_S = num_batches(sizes_S, self.batch_size, self.drop_last)
        used_S = num_used(sizes_S, self.batch_size, self.drop_last)
        epochs_S = count_S * self.local_epochs
        steps_S = epochs_S if self.local_steps is None else np.full_like(count_S, self.local_steps)
        epochs = int((-(-steps_S // count_S)).max())
        width = int(sizes_S.max() if self.batch_size == "full" else min(self.batch_size, int(sizes_S.max())))
        index = np.zeros((len(sizes_S), int(steps_S.max()), 1, width), dtype=np.int64)
        weight = np.zeros(index.shape)
        for epoch in range(epochs):
            # The epoch number includes the round, so no two epochs share a shuffle.
            number = (server_round - 1) * 2**20 + epoch
            shuffled_M, begin_S = _permutations(sizes_S, ids_S, number, seed, "epochs")
            batch = np.arange(int(count_S.max()))
            step_SK = epoch * count_S[:, None] + batch
            used_SK = (batch < count_S[:, None]) & (step_SK < steps_S[:, None])
            start_SK = np.where(used_SK, batch * width, 0)
            stop_SK = np.where(used_SK, np.minimum(start_SK + width, used_S[:, None]), 0)
            taken, real = _take(shuffled_M, begin_S, start_SK, stop_SK)
            cell = (np.nonzero(used_SK)[0], step_SK[used_SK], 0, slice(taken.shape[-1]))
            index[cell] = taken[used_SK]
            weight[cell] = real[used_SK] / real[used_SK].sum(-1, keepdims=True)
        return BatchIndices(index, weight, steps_S)

    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the same number of mini-batches of a text in its order; see `Streams`."""
        return Streams(
            self.batch_size, carry_state, 1, self.local_epochs, self.local_steps or 0, self.drop_last
        )


@final
@dataclass(frozen=True)
class Streams(BatchSampler):
    """Windows of a text in their order, for a state that is carried from one mini-batch to the next.

    A client's ``n_i`` windows are cut into at most ``b`` streams of ``K = ceil(n_i / b)`` consecutive windows; the last
    stream may be shorter. Mini-batch number ``t`` since the first round has window ``t mod K`` of every stream, so row
    ``r`` of a mini-batch continues row ``r`` of the one before. The state is zero at the beginning of the streams, and
    with ``carry_state = "round"`` also at the beginning of a round. With ``drop_last`` all streams have
    ``K = floor(n_i / b)`` windows.

    Parameters
    ----------
    batch_size
        Number of streams ``b``.
    carry_state
        How far the state is carried.
    batches_per_step
        Number of mini-batches of a local step; ``"all"`` for ``K``.
    local_epochs
        Local steps of a round, in ``K``; 0 if ``local_steps`` says how many.
    local_steps
        Local steps of a round, which takes precedence if it is above 0.
    drop_last
        Whether the windows that do not fill all streams are left out.

    Examples
    --------
    >>> streams = Streams(batch_size=2, local_steps=1)
    >>> [streams.draw(np.array([5]), np.array([0]), t, 0).index_SKCB.ravel().tolist() for t in (1, 2, 3)]
    [[0, 3], [1, 4], [2, 2]]
    >>> streams.draw(np.array([5]), np.array([0]), 3, 0).weight_SKCB.ravel().tolist()
    [1.0, 0.0]
    """

    batch_size: BatchSize = 32
    carry_state: CarryState = "epoch"
    batches_per_step: int | Literal["all"] = 1
    local_epochs: int = 0
    local_steps: int = 0
    drop_last: bool = False

    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the round's samples; see `BatchSampler.draw`."""
        count_S = num_batches(sizes_S, self.batch_size, self.drop_last)
        used_S = num_used(sizes_S, self.batch_size, self.drop_last)
        steps_S = np.full_like(count_S, self.local_steps) if self.local_steps else count_S * self.local_epochs
        per_step_S = (
            count_S if self.batches_per_step == "all" else np.full_like(count_S, self.batches_per_step)
        )
        k, c = np.arange(int(steps_S.max()))[:, None], np.arange(int(per_step_S.max()))
        count, per_step = count_S[:, None, None], per_step_S[:, None, None]
        number_SKC = (server_round - 1) * steps_S[:, None, None] * per_step + k * per_step + c
        place_SKC = number_SKC % count
        taken_SKC = (c < per_step) & (k < steps_S[:, None, None])
        stream = np.arange(int((-(-used_S // count_S)).max()))
        index = stream * count[..., None] + place_SKC[..., None]
        real = (index < used_S[:, None, None, None]) & taken_SKC[..., None]
        # Padding repeats a window of the first stream.
        index = np.where(index < used_S[:, None, None, None], index, place_SKC[..., None])
        weight = real / np.maximum(real.sum(-1, keepdims=True), 1) / per_step[..., None]
        fresh_SKC = place_SKC == 0
        if self.carry_state == "round":
            fresh_SKC = fresh_SKC | (k + c == 0)
        return BatchIndices(index, weight, steps_S, fresh_SKC)

    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the rule itself, with another reach of the state."""
        return replace(self, carry_state=carry_state)
