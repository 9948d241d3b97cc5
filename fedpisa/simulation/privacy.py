"""Differential privacy of a run: the noise, what it protects, and the combinations for which that does not hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, final

import numpy as np
import torch

from fedpisa import families
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.config.run import RunConfig
from fedpisa.server.base import cohort_size, sampled
from fedpisa.server.privacy import CentralPrivacy, PrivateMean
from fedpisa.server.privacy_accounting import (
    gaussian_epsilon,
    gaussian_mu,
    sampled_epsilon,
    sampled_noise_multiplier,
)
from fedpisa.strategies.admm import ConsensusADMM
from fedpisa.strategies.averaging import ModelAveraging
from fedpisa.strategies.base import Algorithm, Cohort
from fedpisa.tasks.layout import ParamLayout

OPTIMIZERS: Final = ("none", "fed-avg", "fed-avg-m", "fed-adam", "fed-yogi", "fed-adagrad")
"""Values of ``server-strategy`` that are functions of the mean of the clients' models alone."""
LARGEST: Final = 1e150
"""The largest clipping norm and deviation of the noise; its inverse is the smallest clipping norm."""


@final
@dataclass(frozen=True)
class Privacy:
    """Differential privacy of a run, with one client as the unit.

    Parameters
    ----------
    name
        Value of ``differential-privacy``.
    clipping_norm
        Largest norm of an increment; ``None`` if it adapts.
    noise_multiplier
        Noise on the sum of the increments, in units of the clipping norm. With adaptive clipping, that of one release
        that reveals as much as the sum and the noised count of clipped increments together.
    delta
        Probability with which epsilon may fail.
    num_clients, fraction, seed
        Those of the run, which decide the cohorts.
    public_cohorts
        Whether every client's number of rounds follows from the seed.
    amplification
        Whether epsilon counts on secret cohorts.
    secure
        Whether the noise comes from the operating system.
    """

    name: str
    clipping_norm: float | None
    noise_multiplier: float
    delta: float
    num_clients: int
    fraction: float
    seed: int
    public_cohorts: bool = True
    amplification: bool = False
    secure: bool = False

    @property
    def mean(self) -> PrivateMean | None:
        """What clips and adds noise on the server; ``None`` if Flower's wrapper does."""
        if self.name != "central":
            return None
        assert self.clipping_norm is not None
        seed = None if self.secure else self.seed
        return PrivateMean(
            self.clipping_norm, self.noise_multiplier, seed, self.secure and self.amplification
        )

    def participations(self, rounds: int) -> int:
        """Return the largest number of rounds in which one client takes part."""
        cohort = cohort_size(self.num_clients, self.fraction)
        if cohort == self.num_clients or not self.public_cohorts:
            return rounds
        counts_N = np.zeros(self.num_clients, dtype=np.int64)
        for server_round in range(1, rounds + 1):
            counts_N[sampled(range(self.num_clients), self.fraction, self.seed, server_round)] += 1
        return int(counts_N.max())

    def epsilon(self, rounds: int) -> float:
        """Return epsilon at ``delta`` after some rounds."""
        cohort = cohort_size(self.num_clients, self.fraction)
        if rounds == 0:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        if self.amplification and cohort < self.num_clients:
            return sampled_epsilon(self.noise_multiplier, self.num_clients, cohort, rounds, self.delta)
        return gaussian_epsilon(math.sqrt(self.participations(rounds)) / self.noise_multiplier, self.delta)

    def record(self, rounds: int) -> dict[str, object]:
        """Return the entry ``privacy`` of ``run.json`` after some rounds; epsilon ``null`` is no bound."""
        sampling = self.amplification and cohort_size(self.num_clients, self.fraction) < self.num_clients
        return {
            "mechanism": self.name,
            "epsilon": self.epsilon(rounds),
            "delta": self.delta,
            "rounds": rounds,
            "rounds_of_a_client": self.participations(rounds),
            "noise_multiplier": self.noise_multiplier,
            "clipping_norm": self.clipping_norm,
            "unit": "client",
            "neighbours": "one client replaced" if sampling else "one client's increments set to zero",
            "accounting": "Renyi, sampling without replacement" if sampling else "Gaussian mechanism, exact",
            "noise": "operating system" if self.secure else "seed",
            "covers": "models, not metrics",
        }


def sentence(record: Mapping[str, Any]) -> str:
    """Return an entry ``privacy`` of ``run.json`` as a line; epsilon is rounded up.

    Examples
    --------
    >>> sentence(Privacy("central", 1.0, 2.0, 1e-5, 10, 1.0, 0).record(9)).partition(",")[0]
    'differential privacy central: epsilon 7.052 at delta 1e-05 after 9 rounds'
    """
    epsilon = record["epsilon"]
    if epsilon is None or not math.isfinite(epsilon):
        return f"differential privacy {record['mechanism']}: increments are clipped without noise, epsilon is infinite"
    digits = min(3 - math.floor(math.log10(epsilon)), 300) if epsilon > 0 else 0
    shown = math.ceil(epsilon * 10.0**digits) / 10.0**digits
    noise = (
        "noise from the operating system"
        if record["noise"] == "operating system"
        else "noise from the seed: repeatable, and no protection of real clients"
    )
    return (
        f"differential privacy {record['mechanism']}: epsilon {shown:.4g} at delta {record['delta']:g} after "
        f"{record['rounds']} rounds, noise multiplier {record['noise_multiplier']:.4g}, {noise}"
    )


def build_privacy(config: RunConfig, algorithm: Algorithm, *, deployed: bool = False) -> Privacy | None:
    """Return the privacy of a configuration; ``None`` without.

    Parameters
    ----------
    config
        The run's configuration.
    algorithm
        The algorithm.
    deployed
        Whether clients are real nodes.

    Raises
    ------
    ValueError
        If the noise would not be right for the combination.
    """
    name = config.differential_privacy
    if name == "none":
        return None
    component = config.component("differential-privacy")
    values: Mapping[str, Any] = config.values_of(component)
    common: dict[str, Any] = {
        "name": name,
        "num_clients": config.num_clients,
        "fraction": config.fraction_train,
        "seed": config.seed,
        "public_cohorts": config.availability == "always",
    }
    if name != "central":
        multiplier = _of_wrapper(values, cohort_size(config.num_clients, config.fraction_train))
        privacy = Privacy(
            clipping_norm=values.get("clipping-norm"),
            noise_multiplier=multiplier,
            delta=values["delta"],
            **common,
        )
        if multiplier > 0:
            _require_wrapper(config, algorithm, deployed)
        return privacy
    keys = families.build(component, values)
    assert isinstance(keys, CentralPrivacy)
    _require_central(config, algorithm, keys)
    secure = deployed if keys.secure_noise is None else keys.secure_noise
    privacy = Privacy(
        clipping_norm=keys.clipping_norm,
        noise_multiplier=keys.noise_multiplier or 0.0,
        delta=keys.delta,
        amplification=keys.amplification,
        secure=secure,
        **common,
    )
    if keys.epsilon is not None:
        privacy = _solved(privacy, keys.epsilon, config.num_server_rounds)
    _require_range(keys.clipping_norm, privacy.noise_multiplier)
    return privacy


def _solved(privacy: Privacy, epsilon: float, rounds: int) -> Privacy:
    """Return the privacy with the noise multiplier that reaches a target."""
    cohort = cohort_size(privacy.num_clients, privacy.fraction)
    if privacy.amplification and cohort < privacy.num_clients:
        multiplier = sampled_noise_multiplier(epsilon, privacy.num_clients, cohort, rounds, privacy.delta)
    else:
        multiplier = math.sqrt(privacy.participations(rounds)) / gaussian_mu(epsilon, privacy.delta)
    return replace(privacy, noise_multiplier=multiplier)


def _require_range(clipping_norm: float, noise_multiplier: float) -> None:
    """Refuse noise and increments that floating-point numbers cannot hold."""
    deviation = clipping_norm * noise_multiplier
    if clipping_norm < 1 / LARGEST or max(clipping_norm, deviation) > LARGEST:
        raise ValueError(
            f"clipping-norm = {clipping_norm:g} with the noise multiplier {noise_multiplier:g} is out of the range of "
            f"floating-point numbers: take a clipping-norm and a standard deviation of the noise, which is "
            f"{deviation:g}, from {1 / LARGEST:g} to {LARGEST:g}"
        )


def _of_wrapper(values: Mapping[str, Any], cohort: int) -> float:
    """Return the noise multiplier of Flower's wrapper, which for adaptive clipping covers the count too.

    Flower's ``z`` puts ``(z^-2 - (2 s)^-2)^-1/2`` on the sum and ``s`` on the count. One client changes the count by at
    most 1, so both together are a release with ``(z^-2 - (2 s)^-2 + s^-2)^-1/2``.
    """
    multiplier: float = values["noise-multiplier"]
    if "initial-clipping-norm" not in values or multiplier <= 0:
        return multiplier
    given = values.get("clipped-count-stddev")
    count: float = cohort / 20 if given is None else given
    total: float = (multiplier**-2 + 0.75 * count**-2) ** -0.5 if count > 0 else 0.0
    return total


def _require_wrapper(config: RunConfig, algorithm: Algorithm, deployed: bool) -> None:
    name, strategy = config.differential_privacy, config.server_strategy
    if deployed:
        raise ValueError(
            f"differential-privacy = {name!r} draws its noise from the seed, which every node reads: set "
            'differential-privacy = "central"'
        )
    if strategy not in ("none", "fed-avg"):
        before = 'differential-privacy = "central", which adds it before'
        fix = before if strategy in OPTIMIZERS else 'server-strategy = "none"'
        raise ValueError(
            f"differential-privacy = {name!r} adds the noise after server-strategy {strategy!r}, whose result one "
            f"client may change by more than the noise hides: set {fix}"
        )
    _require_equal_weights(config, algorithm)
    _require_no_norm_bound(config)


def _require_central(config: RunConfig, algorithm: Algorithm, keys: CentralPrivacy) -> None:
    is_pisa = isinstance(algorithm, ConsensusADMM) and isinstance(algorithm.local_update, PisaUpdate)
    if not (is_pisa or isinstance(algorithm, ModelAveraging)):
        raise ValueError(
            f'differential-privacy = "central" releases one noised mean, and the server of {config.algorithm} needs '
            "more than that: use algorithm = localsgd, pisa or sisa"
        )
    if config.server_strategy not in OPTIMIZERS:
        raise ValueError(
            f'differential-privacy = "central" releases one noised mean, and server-strategy '
            f"{config.server_strategy!r} reads each client's reply: use one of {', '.join(OPTIMIZERS)}"
        )
    if algorithm.local_update.incremental:
        raise ValueError(
            'differential-privacy = "central" adds noise in each round, and absent = "fresh" would add the noise of '
            'all rounds up in its dual: set absent = "drop"'
        )
    if isinstance(algorithm.local_update, PisaUpdate) and algorithm.local_update.automatic:
        key = algorithm.local_update.automatic[0]
        raise ValueError(
            f'differential-privacy = "central" adds noise to models, and an automatic {key} sends measurements without '
            f"noise: give {key} a number"
        )
    partial = cohort_size(config.num_clients, config.fraction_train) < config.num_clients
    keeps = isinstance(algorithm, ConsensusADMM) and algorithm.absent == "keep"
    if keeps and (partial or config.exact_diagnostics):
        user = "fraction-train < 1" if partial else "exact-diagnostics = true"
        raise ValueError(
            'differential-privacy = "central" shows the server no client\'s own z_i, which absent = "keep" with '
            f'{user} needs: set absent = "drop"'
        )
    if keys.amplification and config.availability != "always":
        raise ValueError(
            f"amplification = true needs cohorts that are uniform samples of all clients, and availability = "
            f"{config.availability!r} leaves some out: set amplification = false"
        )
    _require_equal_weights(config, algorithm)
    _require_no_norm_bound(config)


def _require_equal_weights(config: RunConfig, algorithm: Algorithm) -> None:
    if algorithm.reference:
        raise ValueError(
            f"differential-privacy adds noise to a mean of models, and algorithm = {config.algorithm!r} is a "
            "reference without federation, which sends none: remove the keys"
        )
    n_S = torch.tensor([1.0, 3.0], dtype=torch.float64)
    weights_S = algorithm.weights(Cohort(torch.arange(2), n_S, 1, 2, ParamLayout((), (), ())))
    if float(weights_S[0]) != float(weights_S[1]):
        fix = 'weighting = "uniform"' if hasattr(algorithm, "weighting") else 'algorithm = "localsgd"'
        raise ValueError(
            f"differential-privacy: {config.algorithm} weighs clients by their samples, so one client may change the "
            f"mean by more than the noise hides: set {fix}"
        )


def _require_no_norm_bound(config: RunConfig) -> None:
    if config.max_upload_norm is not None:
        raise ValueError(
            f"max-upload-norm = {config.max_upload_norm:g} compares clients with each other, so one decides whether "
            "others count, which the noise does not hide: remove it, because differential-privacy clips"
        )
