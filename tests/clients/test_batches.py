"""A client's batch indices: disjoint mini-batches in turn or shuffled epochs, for any cohort."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpisa.clients.batches import BatchIndices, BatchSampler, Epochs, Periodic, Streams, num_batches

sizes_of = st.lists(st.integers(1, 30), min_size=1, max_size=5)
batch_sizes = st.one_of(st.integers(1, 12), st.just("full"))
quick = settings(max_examples=60, deadline=None)


def plan_of(
    schedule: BatchSampler, sizes: list[int], server_round: int = 1, seed: int = 0, ids: Any = None
) -> BatchIndices:
    ids = np.arange(len(sizes)) if ids is None else np.asarray(ids)
    return schedule.draw(np.array(sizes), ids, server_round, seed)


def batches(plan: BatchIndices, client: int) -> list[list[list[int]]]:
    """Return a client's samples by local step and mini-batch, without padding."""
    return [
        [
            plan.index_SKCB[client, k, c][plan.weight_SKCB[client, k, c] > 0].tolist()
            for c in range(plan.index_SKCB.shape[2])
            if plan.weight_SKCB[client, k, c].any()
        ]
        for k in range(plan.steps_S[client])
    ]


def assert_well_formed(plan: BatchIndices, sizes: list[int]) -> None:
    """Check that every step's weights are a mean of mini-batch means, and that indices are in range."""
    for client, size in enumerate(sizes):
        assert plan.index_SKCB[client].min() >= 0
        assert plan.index_SKCB[client].max() < size
        for k in range(plan.index_SKCB.shape[1]):
            weight_CB = plan.weight_SKCB[client, k]
            if k >= plan.steps_S[client]:
                assert not weight_CB.any()
                continue
            there = weight_CB.sum(1) > 0
            np.testing.assert_allclose(weight_CB.sum(1)[there], 1 / there.sum(), rtol=1e-12)
            for row in weight_CB[there]:
                assert len(set(row[row > 0])) == 1
    np.testing.assert_array_equal(
        plan.gradients_S, [sum(map(len, batches(plan, client))) for client in range(len(sizes))]
    )


# --------------------------------------------------------------------------------------------- periodic


@quick
@given(sizes_of, batch_sizes, st.integers(0, 3))
def test_periodic_cuts_once_and_takes_in_turn(sizes: list[int], batch_size: Any, seed: int) -> None:
    """``count`` rounds use every sample exactly once, and the next ``count`` rounds repeat them."""
    counts = num_batches(np.array(sizes), batch_size)
    schedule = Periodic(batch_size)
    history: list[list[list[int]]] = [[] for _ in sizes]
    for server_round in range(1, 2 * counts.max() + 1):
        plan = plan_of(schedule, sizes, server_round, seed)
        assert_well_formed(plan, sizes)
        for client in range(len(sizes)):
            ((batch,),) = batches(plan, client)
            history[client].append(batch)
    for client, size in enumerate(sizes):
        count = counts[client]
        cut = history[client][:count]
        assert sorted(chain.from_iterable(cut)) == list(range(size))
        lengths = [len(batch) for batch in cut]
        assert max(lengths) - min(lengths) <= 1
        assert batch_size == "full" or max(lengths) <= batch_size
        assert count == (1 if batch_size == "full" else -(-size // batch_size))
        for server_round, batch in enumerate(history[client]):
            assert batch == cut[server_round % count]


@quick
@given(sizes_of, batch_sizes, st.integers(1, 4), st.integers(1, 3))
def test_more_batches_per_round_continue_where_the_last_round_stopped(
    sizes: list[int], batch_size: Any, per_round: int, local_steps: int
) -> None:
    """The mini-batches are those of one per round, with ``K * k`` of them in a round."""
    many = [
        plan_of(Periodic(batch_size, per_round, local_steps), sizes, server_round)
        for server_round in (1, 2, 3)
    ]
    for plan in many:
        assert_well_formed(plan, sizes)
    for client in range(len(sizes)):
        got = [batch for plan in many for step in batches(plan, client) for batch in step]
        assert [len(step) for step in batches(many[0], client)] == [per_round] * local_steps
        one_by_one = [
            batches(plan_of(Periodic(batch_size), sizes, server_round), client)[0][0]
            for server_round in range(1, len(got) + 1)
        ]
        assert got == one_by_one


@quick
@given(sizes_of, batch_sizes, st.integers(1, 3), st.integers(1, 4))
def test_all_batches_are_one_epoch_per_step(
    sizes: list[int], batch_size: Any, local_steps: int, server_round: int
) -> None:
    plan = plan_of(Periodic(batch_size, "all", local_steps), sizes, server_round)
    assert_well_formed(plan, sizes)
    for client, size in enumerate(sizes):
        for step in batches(plan, client):
            assert sorted(chain.from_iterable(step)) == list(range(size))


# ----------------------------------------------------------------------------------------------- epochs


@quick
@given(sizes_of, batch_sizes, st.integers(1, 3), st.integers(1, 3))
def test_an_epoch_is_a_permutation(
    sizes: list[int], batch_size: Any, local_epochs: int, server_round: int
) -> None:
    plan = plan_of(Epochs(batch_size, local_epochs), sizes, server_round)
    assert_well_formed(plan, sizes)
    counts = num_batches(np.array(sizes), batch_size)
    np.testing.assert_array_equal(plan.steps_S, counts * local_epochs)
    for client, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        steps = batches(plan, client)
        assert all(len(step) == 1 for step in steps)
        for epoch in range(local_epochs):
            own = [step[0] for step in steps[epoch * count : (epoch + 1) * count]]
            assert sorted(chain.from_iterable(own)) == list(range(size))
            whole = size if batch_size == "full" else batch_size
            assert all(len(batch) == whole for batch in own[:-1])


@quick
@given(sizes_of, batch_sizes, st.integers(1, 12))
def test_local_steps_cross_epochs(sizes: list[int], batch_size: Any, local_steps: int) -> None:
    """``K`` local steps use the first ``K`` mini-batches of enough epochs."""
    plan = plan_of(Epochs(batch_size, 1, local_steps), sizes)
    long = plan_of(Epochs(batch_size, local_steps), sizes)
    assert_well_formed(plan, sizes)
    assert plan.steps_S.tolist() == [local_steps] * len(sizes)
    for client in range(len(sizes)):
        assert batches(plan, client) == batches(long, client)[:local_steps]


def test_epochs_differ_from_each_other() -> None:
    """Every epoch, client, round and seed has a different shuffle."""
    shuffles = [
        tuple(plan_of(Epochs("full", 3), [40, 40], server_round, seed).index_SKCB[client, epoch, 0])
        for server_round in (1, 2)
        for seed in (0, 1)
        for client in (0, 1)
        for epoch in range(3)
    ]
    assert len(set(shuffles)) == len(shuffles) == 24


# ---------------------------------------------------------------------------------- the cohort, the seed


@quick
@given(
    sizes_of.filter(lambda sizes: len(sizes) > 1),
    st.sampled_from([Periodic(4), Periodic(4, 3, 2), Periodic(4, "all"), Epochs(4, 2), Epochs(4, 1, 5)]),
    st.integers(1, 5),
)
def test_a_client_is_given_the_same_in_every_cohort(
    sizes: list[int], schedule: BatchSampler, server_round: int
) -> None:
    ids = [3 * client + 7 for client in range(len(sizes))]
    together = plan_of(schedule, sizes, server_round, ids=ids)
    backwards = plan_of(schedule, sizes[::-1], server_round, ids=ids[::-1])
    for client, size in enumerate(sizes):
        alone = batches(plan_of(schedule, [size], server_round, ids=[ids[client]]), 0)
        assert batches(together, client) == alone
        assert batches(backwards, len(sizes) - 1 - client) == alone


@quick
@given(
    sizes_of,
    st.sampled_from([
        *(Periodic(4), Periodic("full"), Periodic(4, 3, 2), Periodic(4, "all"), Periodic(3, "all", drop_last=True)),
        *(Epochs(4, 2), Epochs("full", 2), Epochs(4, 1, 5), Epochs(4, 2, drop_last=True)),
        *(Streams(3, local_steps=2), Streams(2, "round", "all"), Streams(2, "epoch", 1, 2, 0, True)),
    ]),
    st.integers(1, 5),
)  # fmt: skip
def test_a_cohort_without_padding_is_what_the_client_draws_alone(
    sizes: list[int], schedule: BatchSampler, server_round: int
) -> None:
    together = plan_of(schedule, sizes, server_round)
    for client, size in enumerate(sizes):
        alone, taken = plan_of(schedule, [size], server_round, ids=[client]), together.client(client)
        assert batches(taken, 0) == batches(alone, 0)
        assert taken.steps_S == alone.steps_S
        if taken.fresh_SKC is None:
            assert taken.weight_SKCB.shape == alone.weight_SKCB.shape
        else:
            assert alone.fresh_SKC is not None
            used_KC = alone.weight_SKCB[0].any(-1)
            assert (taken.fresh_SKC[0, :, : used_KC.shape[1]] == alone.fresh_SKC[0])[used_KC].all()


@pytest.mark.parametrize("kind", ["periodic", "epochs"])
def test_shuffles_are_uniform(kind: str) -> None:
    """Every sample is equally likely at every position, by a chi-square test of 4000 clients.

    Counts of sample s at position p are multinomial with mean 500; the statistic has (8 - 1)^2 = 49 degrees
    of freedom, mean 49, standard deviation 9.9. The threshold 120 is seven of them away. A second test takes
    the first two positions together.
    """
    n, many = 8, 4000
    if kind == "epochs":
        order = plan_of(Epochs("full"), [n] * many).index_SKCB[:, 0, 0]
    else:
        rounds = [plan_of(Periodic(1), [n] * many, server_round) for server_round in range(1, n + 1)]
        order = np.stack([plan.index_SKCB[:, 0, 0, 0] for plan in rounds], 1)
    assert (np.sort(order, 1) == np.arange(n)).all()
    counts = np.stack([(order == sample).sum(0) for sample in range(n)])
    assert ((counts - many / n) ** 2 / (many / n)).sum() < 120
    pairs = np.bincount(order[:, 0] * n + order[:, 1], minlength=n * n).reshape(n, n)
    expected = many / (n * (n - 1))
    off_diagonal = pairs[~np.eye(n, dtype=bool)]
    assert (np.diag(pairs) == 0).all()
    assert ((off_diagonal - expected) ** 2 / expected).sum() < 55 + 7 * np.sqrt(110)


def test_rounds_and_epochs_of_a_client_are_uniform_too() -> None:
    """Over 4000 rounds the first sample is uniform: 9 degrees of freedom, threshold mean + 7 sigma."""
    firsts = [
        int(plan_of(Epochs("full", 2), [10], server_round).index_SKCB[0, epoch, 0, 0])
        for server_round in range(1, 2001)
        for epoch in range(2)
    ]
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 9 + 7 * np.sqrt(18)
