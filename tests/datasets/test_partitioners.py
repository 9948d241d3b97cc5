"""Partitioners: the rules of every split, each one's properties, and the errors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpisa.datasets import Dataset, heterogeneity, margins
from fedpisa.datasets import partitioners as ps
from fedpisa.families import available
from fedpisa.families.data import partition

Partitioner = Callable[..., list[np.ndarray]]

BY_LABEL: list[tuple[Partitioner, dict[str, Any]]] = [
    (ps.label_dirichlet, {"dirichlet_alpha": 0.5, "min_partition_size": 1}),
    (ps.client_dirichlet, {"dirichlet_alpha": 0.3}),
    (ps.client_dirichlet_sequential, {"dirichlet_alpha": 0.3}),
    (ps.labels_per_client, {"labels_per_client": 2}),
    (ps.shards, {"shards_per_client": 2}),
]
ALL: list[tuple[Partitioner, dict[str, Any]]] = [
    (ps.iid, {}),
    (ps.consecutive, {}),
    *BY_LABEL,
    (ps.quantity_dirichlet, {"dirichlet_alpha": 0.5, "min_partition_size": 1}),
    (ps.feature_noise, {"noise_std": 0.1}),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def balanced(n: int, num_classes: int) -> np.ndarray:
    return rng(99).permutation(np.arange(n) % num_classes)


def sizes(parts: list[np.ndarray]) -> np.ndarray:
    return np.array([len(part) for part in parts])


def counts(labels: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def name(case: object) -> str | None:
    return case.__name__ if callable(case) else None


def test_every_partitioner_is_tested_here() -> None:
    tested = {partitioner.__name__.replace("_", "-") for partitioner, _ in ALL} | {"natural"}
    assert tested == set(available("partitioner"))


class TestContract:
    @pytest.mark.parametrize(("partitioner", "keys"), ALL, ids=name)
    @pytest.mark.parametrize("num_clients", [1, 3, 10, 40])
    def test_disjoint_sorted_int64_and_nobody_left_empty(
        self, partitioner: Partitioner, keys: dict[str, Any], num_clients: int
    ) -> None:
        labels = balanced(1000, 10)
        parts = partitioner(labels, num_clients, rng(), **keys)
        assert len(parts) == num_clients
        assert all(part.dtype == np.int64 for part in parts)
        assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
        together = np.concatenate(parts)
        assert len(np.unique(together)) == len(together)
        if partitioner is not ps.labels_per_client or num_clients >= 10:
            assert len(together) == len(labels)

    @pytest.mark.parametrize(("partitioner", "keys"), ALL, ids=name)
    def test_same_seed_same_split_other_seed_other_split(
        self, partitioner: Partitioner, keys: dict[str, Any]
    ) -> None:
        labels = balanced(500, 5)
        first, again, other = (partitioner(labels, 4, rng(seed), **keys) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        is_same = all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
        assert is_same == (partitioner is ps.consecutive)

    @pytest.mark.parametrize(("partitioner", "keys"), ALL, ids=name)
    def test_the_labels_are_not_changed(self, partitioner: Partitioner, keys: dict[str, Any]) -> None:
        labels = balanced(200, 4)
        labels.flags.writeable = False
        partitioner(labels, 4, rng(), **keys)

    @settings(max_examples=40, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array),
        num_clients=st.integers(1, 12),
        alpha=st.sampled_from([0.01, 0.5, 100.0]),
        seed=st.integers(0, 2**32 - 1),
        case=st.sampled_from(ALL),
    )
    def test_any_input_gives_a_disjoint_cover_or_is_refused(
        self,
        labels: np.ndarray,
        num_clients: int,
        alpha: float,
        seed: int,
        case: tuple[Partitioner, dict[str, Any]],
    ) -> None:
        partitioner, keys = case
        if "dirichlet_alpha" in keys:
            keys = keys | {"dirichlet_alpha": alpha}
        try:
            parts = partitioner(labels, num_clients, rng(seed), **keys)
        except ValueError:  # too few samples for this split; the error is tested below
            return
        together = np.concatenate(parts)
        assert len(parts) == num_clients
        assert min(map(len, parts)) >= 1
        assert len(np.unique(together)) == len(together)
        if partitioner is not ps.labels_per_client:
            assert np.array_equal(np.sort(together), np.arange(len(labels)))

    @pytest.mark.parametrize(
        ("partitioner", "keys"),
        [(f, k | ({"dirichlet_alpha": 5.0} if f is ps.quantity_dirichlet else {})) for f, k in ALL],
        ids=name,
    )
    def test_ten_thousand_clients_are_quick(self, partitioner: Partitioner, keys: dict[str, Any]) -> None:
        labels = rng().integers(0, 10, 600_000)
        start = time.process_time()
        parts = partitioner(labels, 10_000, rng(), **keys)
        assert time.process_time() - start < 2.0
        assert len(parts) == 10_000


class TestRefusals:
    @pytest.mark.parametrize(("partitioner", "keys"), ALL, ids=name)
    def test_fewer_samples_than_clients(self, partitioner: Partitioner, keys: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="3 training samples are too few for 4 clients; set num-clients"):
            partitioner(np.array([0, 1, 0]), 4, rng(), **keys)

    @pytest.mark.parametrize(("partitioner", "keys"), ALL, ids=name)
    def test_no_clients(self, partitioner: Partitioner, keys: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="num-clients = 0; set it to at least 1"):
            partitioner(np.array([0, 1, 0]), 0, rng(), **keys)

    @pytest.mark.parametrize(("partitioner", "keys"), BY_LABEL, ids=name)
    def test_regression_targets(self, partitioner: Partitioner, keys: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="has regression targets; use partitioner iid"):
            partitioner(np.linspace(0, 1, 50), 4, rng(), **keys)

    @pytest.mark.parametrize("partitioner", [ps.label_dirichlet, ps.quantity_dirichlet], ids=name)
    def test_impossible_minimum(self, partitioner: Partitioner) -> None:
        with pytest.raises(ValueError, match=r"at most 25 or num-clients to at most 3$"):
            partitioner(balanced(100, 2), 4, rng(), min_partition_size=26)

    @pytest.mark.parametrize("partitioner", [ps.label_dirichlet, ps.quantity_dirichlet], ids=name)
    def test_minimum_that_no_draw_reaches(self, partitioner: Partitioner) -> None:
        with pytest.raises(ValueError, match=r"no draw of 1000 .*the best gave \d+.*raise dirichlet-alpha"):
            partitioner(balanced(1000, 2), 10, rng(), dirichlet_alpha=0.05, min_partition_size=99)

    def test_more_labels_per_client_than_classes(self) -> None:
        with pytest.raises(ValueError, match="set labels-per-client to at most 3"):
            ps.labels_per_client(balanced(30, 3), 4, rng(), labels_per_client=4)

    def test_class_with_fewer_samples_than_holders(self) -> None:
        labels = np.repeat([0, 1], [2, 50])
        with pytest.raises(ValueError, match="class 0 has 2 samples for 5 clients that hold it"):
            ps.labels_per_client(labels, 10, rng(), labels_per_client=1)

    def test_more_shards_than_samples(self) -> None:
        with pytest.raises(ValueError, match=r"12 shards .* there are 10; lower num-clients to at most 3"):
            ps.shards(balanced(10, 2), 4, rng(), shards_per_client=3)

    def test_natural_without_groups(self) -> None:
        with pytest.raises(ValueError, match="needs data with natural clients"):
            ps.natural(balanced(10, 2), 2, rng(), groups=None)

    @pytest.mark.parametrize("num_clients", [2, 4])
    def test_natural_with_another_number_of_clients(self, num_clients: int) -> None:
        with pytest.raises(ValueError, match="set num-clients = 3"):
            ps.natural(balanced(9, 2), num_clients, rng(), groups=np.arange(9) % 3)


class TestIid:
    def test_sizes_differ_by_at_most_one(self) -> None:
        assert sizes(ps.iid(balanced(103, 10), 10, rng())).tolist() == [11] * 3 + [10] * 7

    def test_label_counts_are_hypergeometric(self) -> None:
        """Client 0 gets n/N of n samples: class c appears with the hypergeometric mean and variance."""
        labels, repeats = balanced(200, 4), 2000
        drawn = np.array([np.sum(labels[ps.iid(labels, 5, rng(s))[0]] == 0) for s in range(repeats)])
        mean, variance = 40 * 50 / 200, 40 * 0.25 * 0.75 * (160 / 199)
        assert abs(drawn.mean() - mean) < 4 * np.sqrt(variance / repeats)
        assert abs(drawn.var() / variance - 1) < 4 * np.sqrt(2 / repeats)

    def test_regression_targets_are_fine(self) -> None:
        assert sizes(ps.iid(np.linspace(0, 1, 8), 4, rng())).tolist() == [2, 2, 2, 2]


class TestLabelDirichlet:
    def test_minimum_is_kept(self) -> None:
        for seed in range(20):
            assert sizes(ps.label_dirichlet(balanced(1000, 10), 10, rng(seed))).min() >= 10

    def test_first_class_has_dirichlet_moments(self) -> None:
        """The first class's shares have mean 1/N and the Dirichlet's variance: balancing does not act yet."""
        n, num_clients, alpha, repeats = 4000, 4, 0.7, 1500
        labels = balanced(n, 2)
        shares = np.array(
            [
                np.sum(
                    labels[
                        ps.label_dirichlet(
                            labels, num_clients, rng(s), dirichlet_alpha=alpha, min_partition_size=1
                        )[0]
                    ]
                    == 0
                )
                / (n // 2)
                for s in range(repeats)
            ]
        )
        mean = 1 / num_clients
        variance = mean * (1 - mean) / (num_clients * alpha + 1)
        assert abs(shares.mean() - mean) < 4 * np.sqrt(variance / repeats)
        assert abs(shares.var() / variance - 1) < 0.15

    def test_balancing_gives_nothing_more_to_a_full_client(self) -> None:
        """A client with n/N samples or more gets no samples of the next class."""
        labels = balanced(1200, 6)
        for seed in range(30):
            parts = ps.label_dirichlet(labels, 4, rng(seed), dirichlet_alpha=0.2, min_partition_size=1)
            before = np.cumsum(counts(labels, parts), axis=1) - counts(labels, parts)
            assert not counts(labels, parts)[before >= 300].any()

    def test_small_alpha_is_more_heterogeneous_than_large(self) -> None:
        labels = balanced(5000, 10)
        small, large = (
            heterogeneity(labels, ps.label_dirichlet(labels, 10, rng(), dirichlet_alpha=a), 10)
            for a in (0.1, 100.0)
        )
        assert small.jensen_shannon is not None
        assert large.jensen_shannon is not None
        assert small.jensen_shannon > 0.4 > 0.1 > large.jensen_shannon

    def test_a_class_that_does_not_occur_is_no_trouble(self) -> None:
        labels = 3 * balanced(400, 2)  # classes 0 and 3
        assert sizes(ps.label_dirichlet(labels, 4, rng())).sum() == 400

    def test_extreme_alpha_ends_in_a_split_or_a_clear_error(self) -> None:
        labels = balanced(1000, 9)
        with pytest.raises(ValueError, match="raise dirichlet-alpha"):  # nine whole classes for ten clients
            ps.label_dirichlet(labels, 10, rng(), dirichlet_alpha=1e-8)
        near_even = ps.label_dirichlet(labels, 10, rng(), dirichlet_alpha=1e8)
        assert np.abs(counts(labels, near_even) - 1000 / 90).max() <= 2


def distances(labels: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Return the total-variation distance of each client's labels to all labels."""
    table = counts(labels, parts)
    return np.abs(table / table.sum(axis=1, keepdims=True) - table.sum(axis=0) / table.sum()).sum(axis=1) / 2


class TestClientDirichlet:
    @settings(deadline=None)
    @given(
        class_sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
        num_clients=st.integers(1, 40),
        alpha=st.floats(1e-300, 1e300),
        seed=st.integers(0, 2**32),
    )
    def test_margins_are_exact(
        self, class_sizes: list[int], num_clients: int, alpha: float, seed: int
    ) -> None:
        labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
        num_clients = min(num_clients, len(labels))
        table = counts(labels, ps.client_dirichlet(labels, num_clients, rng(seed), dirichlet_alpha=alpha))
        larger, smaller = -(-len(labels) // num_clients), len(labels) // num_clients
        wanted = [larger] * (len(labels) % num_clients) + [smaller] * (
            num_clients - len(labels) % num_clients
        )
        assert table.sum(axis=1).tolist() == wanted
        assert table.sum(axis=0).tolist() == class_sizes

    @pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
    def test_no_client_comes_last(self, alpha: float) -> None:
        """Each position has the same mean distance, and the farthest client is an ordinary one."""
        labels, num_clients, seeds = balanced(1000, 10), 20, 200
        found = np.array(
            [
                distances(labels, ps.client_dirichlet(labels, num_clients, rng(seed), dirichlet_alpha=alpha))
                for seed in range(seeds)
            ]
        )
        error = found.std() / np.sqrt(seeds)
        assert np.abs(found.mean(axis=0) - found.mean()).max() < 4 * error
        farthest = found.max(axis=1) / np.median(found, axis=1)
        assert farthest.mean() < 1.7  # of the sequential form 2.3 at alpha = 10

    def test_large_alpha_is_iid_to_rounding(self) -> None:
        for seed, class_sizes in enumerate([(3000, 1000), (100,) * 10, (7, 1, 91, 20), (333, 333, 334)]):
            labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
            for num_clients in (3, 4, 11):
                parts = ps.client_dirichlet(labels, num_clients, rng(seed), dirichlet_alpha=1e9)
                wanted = sizes(parts)[:, None] * np.array(class_sizes) / len(labels)
                assert np.abs(counts(labels, parts) - wanted).max() < 1.1

    def test_tiny_alpha_gives_one_or_few_classes(self) -> None:
        labels = balanced(1000, 10)
        held = [
            (counts(labels, ps.client_dirichlet(labels, 20, rng(s), dirichlet_alpha=1e-3)) > 0).sum(axis=1)
            for s in range(20)
        ]
        # A vertex of the tables with these margins has at most 20 + 10 - 1 entries.
        assert np.mean(held) < 2
        assert np.median(held) <= 2

    def test_mean_mixture_is_the_global_one(self) -> None:
        labels = np.repeat([0, 1, 2], [60, 30, 10])
        tables = [
            counts(labels, ps.client_dirichlet(labels, 10, rng(seed), dirichlet_alpha=0.5))
            for seed in range(400)
        ]
        mean, error = np.mean(tables, axis=0), np.std(tables, axis=0).max() / 20
        assert np.abs(mean - [6, 3, 1]).max() < 4 * error


def test_fitting_keeps_the_odds_ratios_of_the_weights() -> None:
    """A table with the wanted margins is the fitted one if and only if it has the odds ratios of the weights."""
    weights = rng(1).gamma(1.0, size=(6, 4)) + 1e-3
    rows, columns = np.array([500, 100, 70, 30, 200, 100]), np.array([400, 300, 200, 100])
    table = margins.fitted(weights, rows, columns)
    assert np.allclose(table.sum(axis=1), rows, rtol=1e-12)
    assert np.abs(table.sum(axis=0) - columns).sum() < 0.5
    scaled = np.log(table / weights)
    assert np.allclose(scaled - scaled[:1] - scaled[:, :1] + scaled[0, 0], 0, atol=1e-9)


class TestClientDirichletSequential:
    def test_equal_sizes_and_every_sample_dealt(self) -> None:
        parts = ps.client_dirichlet_sequential(balanced(1003, 10), 10, rng(), dirichlet_alpha=0.1)
        assert sizes(parts).tolist() == [101] * 3 + [100] * 7

    def test_mixture_has_dirichlet_multinomial_moments(self) -> None:
        """The first client draws from full pools, so its counts are Dirichlet-multinomial."""
        num_classes, num_clients, alpha, repeats, size = 4, 20, 0.8, 1500, 10
        labels = balanced(num_clients * size, num_classes)
        drawn = []
        for seed in range(repeats):
            twin = rng(seed)  # draws what the partitioner draws: the mixtures, then the clients' order
            twin.dirichlet(np.full(num_classes, alpha), num_clients)
            first = int(twin.permutation(num_clients)[0])
            parts = ps.client_dirichlet_sequential(labels, num_clients, rng(seed), dirichlet_alpha=alpha)
            drawn.append(np.sum(labels[parts[first]] == 0))
        p, total = 1 / num_classes, num_classes * alpha
        variance = size * p * (1 - p) * (total + size) / (total + 1)
        assert abs(np.mean(drawn) - size * p) < 4 * np.sqrt(variance / repeats)
        assert abs(np.var(drawn) / variance - 1) < 0.15

    def test_large_alpha_gives_everyone_the_global_mixture(self) -> None:
        labels = np.repeat([0, 1], [3000, 1000])
        mixtures = (
            counts(labels, ps.client_dirichlet_sequential(labels, 4, rng(), dirichlet_alpha=1e6)) / 1000
        )
        assert np.abs(mixtures - [0.75, 0.25]).max() < 0.06

    def test_tiny_alpha_gives_pure_clients_until_pools_run_out(self) -> None:
        mixtures = counts(
            balanced(1000, 5),
            ps.client_dirichlet_sequential(balanced(1000, 5), 10, rng(), dirichlet_alpha=1e-3),
        )
        assert np.median(np.sort(mixtures, axis=1)[:, -1]) == 100

    def test_the_split_is_that_of_earlier_versions(self) -> None:
        parts = ps.client_dirichlet_sequential(balanced(100, 5), 4, rng(3), dirichlet_alpha=0.5)
        assert hashlib.sha256(np.concatenate(parts).tobytes()).hexdigest()[:16] == "e4ba7abd816ed79f"


class TestLabelsPerClient:
    @pytest.mark.parametrize("k", [1, 2, 3, 10])
    def test_exactly_k_labels_and_its_own_first(self, k: int) -> None:
        labels = balanced(3000, 10)
        held = counts(labels, ps.labels_per_client(labels, 20, rng(), labels_per_client=k)) > 0
        assert (held.sum(axis=1) == k).all()
        assert held[np.arange(20), np.arange(20) % 10].all()

    def test_holders_share_a_class_evenly(self) -> None:
        labels = balanced(3000, 10)
        table = counts(labels, ps.labels_per_client(labels, 20, rng(), labels_per_client=3))
        for column in table.T:
            held = column[column > 0]
            assert held.sum() == 300
            assert held.max() - held.min() <= 1

    def test_further_classes_are_uniform(self) -> None:
        labels, repeats = balanced(400, 5), 2000
        picks = sum(
            counts(labels, ps.labels_per_client(labels, 5, rng(s), labels_per_client=2))[0] > 0
            for s in range(repeats)
        )
        assert picks[0] == repeats
        assert np.abs(picks[1:] / repeats - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / repeats)

    def test_classes_without_holder_are_left_out(self) -> None:
        labels = balanced(100, 10)
        parts = ps.labels_per_client(labels, 3, rng(), labels_per_client=1)
        assert [np.unique(labels[part]).tolist() for part in parts] == [[0], [1], [2]]

    def test_two_classes_and_four_clients_alternate(self) -> None:
        labels = np.repeat([0, 1], [76, 24])
        table = counts(labels, ps.labels_per_client(labels, 4, rng(), labels_per_client=1))
        assert table.tolist() == [[38, 0], [0, 12], [38, 0], [0, 12]]


class TestShards:
    def test_at_most_one_label_per_shard_where_shards_fit(self) -> None:
        labels = balanced(6000, 10)
        table = counts(labels, ps.shards(labels, 100, rng(), shards_per_client=2))
        assert (table.sum(axis=1) == 60).all()
        assert ((table > 0).sum(axis=1) <= 2).all()
        assert set(np.unique(table)) <= {0, 30, 60}

    def test_one_shard_per_client_is_the_sorted_order_cut(self) -> None:
        labels = balanced(40, 4)
        owned = [
            np.unique(labels[part]).tolist() for part in ps.shards(labels, 4, rng(), shards_per_client=1)
        ]
        assert sorted(owned) == [[0], [1], [2], [3]]


class TestQuantityDirichlet:
    def test_sizes_have_dirichlet_moments(self) -> None:
        n, num_clients, alpha, repeats = 10_000, 5, 2.0, 1000
        drawn = np.array(
            [
                len(ps.quantity_dirichlet(np.zeros(n, int), num_clients, rng(s), dirichlet_alpha=alpha)[0])
                for s in range(repeats)
            ]
        )
        mean = 1 / num_clients
        variance = mean * (1 - mean) / (num_clients * alpha + 1)
        assert abs(drawn.mean() / n - mean) < 4 * np.sqrt(variance / repeats)
        assert abs((drawn / n).var() / variance - 1) < 4 * np.sqrt(2.5 / repeats)

    def test_labels_stay_alike(self) -> None:
        labels = balanced(20_000, 2)
        table = counts(labels, ps.quantity_dirichlet(labels, 4, rng(), min_partition_size=500))
        assert np.abs(table[:, 0] / table.sum(axis=1) - 0.5).max() < 4 * 0.5 / np.sqrt(500)

    def test_regression_targets_are_fine(self) -> None:
        assert sizes(ps.quantity_dirichlet(np.linspace(0, 1, 200), 3, rng())).sum() == 200


class TestFeatureNoise:
    def test_indices_are_those_of_iid(self) -> None:
        labels = balanced(100, 4)
        pairs = zip(ps.feature_noise(labels, 5, rng(3)), ps.iid(labels, 5, rng(3)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_level_grows_linearly_with_the_client(self, dtype: type) -> None:
        x = np.ones((500, 3, 40), dtype)
        parts = ps.iid(np.zeros(500), 5, rng())
        noisy = ps.add_feature_noise(x, parts, rng(), noise_std=0.4)
        assert noisy.dtype == dtype
        assert (x == 1).all()
        levels = [float((noisy - x)[part].std()) for part in parts]
        # A standard deviation estimated from m = 12,000 draws is off by about sigma / sqrt(2 m).
        assert np.allclose(levels, [0.0, 0.1, 0.2, 0.3, 0.4], rtol=4 / np.sqrt(2 * 12_000), atol=1e-9)

    def test_one_client_and_no_noise(self) -> None:
        x = np.ones((10, 2), np.float32)
        assert np.array_equal(ps.add_feature_noise(x, [np.arange(10)], rng(), noise_std=1.0), x)
        halves = [np.arange(5), np.arange(5, 10)]
        assert np.array_equal(ps.add_feature_noise(x, halves, rng(), noise_std=0.0), x)


class TestNatural:
    def test_groups_in_order_of_their_number(self) -> None:
        groups = np.array([5, 1, 5, 9, 1])
        parts = ps.natural(np.zeros(5), 3, rng(), groups=groups)
        assert [part.tolist() for part in parts] == [[1, 4], [0, 2], [3]]


def tiny(n: int = 40) -> Dataset:
    x = np.zeros((n, 3), np.float32)
    y = balanced(n, 4)
    return Dataset(
        name="tiny", x_train=x, y_train=y, x_test=x, y_test=y, num_classes=4, groups=np.arange(n) % 5
    )


class TestByName:
    def test_seed_alone_decides(self) -> None:
        (_, a), (_, b), (_, c) = (partition(tiny(), "iid", num_clients=4, seed=s) for s in (0, 0, 1))
        assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
        assert not all(np.array_equal(p, q) for p, q in zip(a, c, strict=True))

    def test_groups_reach_natural(self) -> None:
        _, parts = partition(tiny(), "natural", num_clients=5)
        assert parts[0].tolist() == list(range(0, 40, 5))

    def test_only_feature_noise_changes_the_data(self) -> None:
        data = tiny()
        assert partition(data, "shards", num_clients=4)[0] is data
        noisy, parts = partition(data, "feature-noise", num_clients=4, noise_std=1.0)
        assert not data.x_train.any()
        assert [bool(noisy.x_train[part].any()) for part in parts] == [False, True, True, True]
        assert np.array_equal(noisy.x_test, data.x_test)

    def test_unknown_name_and_key_name_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"label-dirichle.*did you mean 'label-dirichlet'"):
            partition(tiny(), "label-dirichle", num_clients=4)
        with pytest.raises(ValueError, match=r"dirichlet-alph.*did you mean 'dirichlet-alpha'"):
            partition(tiny(), "label-dirichlet", num_clients=4, dirichlet_alph=1.0)

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([np.arange(40)], "made 1 parts for 2 clients"),
            ([np.arange(40), np.arange(0)], "gave client 1 no samples"),
            ([np.arange(20), np.arange(20, 41)], "indices outside 0 to 39"),
            ([np.arange(21), np.arange(20, 40)], "gave sample 20 twice"),
        ],
    )
    def test_a_users_partitioner_is_checked(
        self, parts: list[np.ndarray], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def own(labels: object, num_clients: int) -> list[np.ndarray]:
            return parts

        monkeypatch.setattr(ps, "own", own, raising=False)
        with pytest.raises(ValueError, match=message):
            partition(tiny(), "fedpisa.datasets.partitioners:own", num_clients=2)


def test_flwr_datasets_partitioners() -> None:
    partitioner_module = pytest.importorskip(
        "flwr_datasets.partitioner", reason="extra datasets not installed"
    )
    from fedpisa.datasets.flower import from_flwr_datasets

    labels = balanced(300, 3)
    even = from_flwr_datasets(partitioner_module.IidPartitioner(num_partitions=4), labels)
    assert np.array_equal(np.sort(np.concatenate(even)), np.arange(300))
    pathological = partitioner_module.PathologicalPartitioner(
        num_partitions=6, partition_by="target", num_classes_per_partition=1
    )
    parts = from_flwr_datasets(pathological, labels, label_column="target")
    assert all(len(np.unique(labels[part])) == 1 and (np.diff(part) > 0).all() for part in parts)
    natural = partitioner_module.NaturalIdPartitioner(partition_by="writer")
    by_writer = from_flwr_datasets(natural, labels, columns={"writer": np.arange(300) % 7})
    assert sorted(len(part) for part in by_writer) == [42, 43, 43, 43, 43, 43, 43]
