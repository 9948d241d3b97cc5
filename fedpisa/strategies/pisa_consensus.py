"""The server of PISA and its preconditioned variants, with three choices for absent clients.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, Literal, Self

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, scalar_like
from fedpisa.clients.pisa import IncrementalPisaUpdate, PisaUpdate, chosen
from fedpisa.strategies.admm import ConsensusADMM
from fedpisa.strategies.base import Cohort, client_mass, norm, updated_mean, weighted_mean
from fedpisa.tasks.layout import ParamLayout

MOST_RAISES: Final = 4
"""How often an automatic ``rho`` grows at most."""
RAISE: Final = 1.5
"""Factor by which an automatic ``rho`` grows."""
RATIO: Final = 10.0
"""Ratio of the relative residuals at which a balanced ``sigma`` changes."""
CHANGE: Final = 2.0
"""Factor of such a change."""
EVERY: Final = 5
"""Rounds between two changes."""
LAST: Final = 100
"""Round from which a balanced ``sigma`` stays."""


@dataclass(frozen=True)
class PisaConsensus(ConsensusADMM, ABC):
    r"""`ConsensusADMM` that can also take the local models from the round's replies alone.

    With ``absent = "keep"`` or ``"drop"`` it is `ConsensusADMM`. With ``absent = "fresh"``, the primal part of (2.9) is
    the mean over the cohort ``S``, and the dual part is the mean over all clients:

    ``Pi <- Pi + sigma sum_{i in S} alpha_i (w_i - w)``, ``w <- (sigma sum_{i in S} a_i w_i + Pi) / (sigma + lambda)``,

    with ``alpha_i`` the weights over all clients, ``a_i`` those over the cohort and ``sigma`` the round's penalty.
    Clients compute the same ``w_i`` and ``pi_i`` as otherwise. They upload ``w_i - w`` (`IncrementalPisaUpdate`), and
    ``Pi = sum_i alpha_i pi_i`` follows from (2.14), because an absent client's dual stays. With full participation
    this is (2.9).

    Fixed point: if no client of any cohort moves, ``w_i = w``, then ``Pi`` stays and ``w = (sigma w + Pi) /
    (sigma + lambda)``, so ``Pi = lambda w``. A client with an exact preconditioner stays only if
    ``pi_i = -grad F_i(w)``, for any number of local steps. Both give ``sum_i alpha_i grad F_i(w) + lambda w = 0``: the
    optimum, whatever the cohorts. There, all cohorts leave ``w`` and the duals as they are. For quadratic losses and
    constant ``sigma`` and ``Q``, a round is a linear map of ``(w, pi_1, ..., pi_N)``, so convergence is linear.

    Penalties that change: ``sigma`` cancels in ``Pi = lambda w``. Duals are gradients and need no new scale when
    ``gamma`` or a schedule changes ``sigma``; all terms of a round have the round's ``sigma``.

    Weights: ``alpha_i = n_i / sum_j n_j`` needs the sizes of all clients. A client that was not seen yet has
    ``pi_i = 0`` and counts with the mean size of the others, as in `FedDyn`. The server keeps ``Pi`` times this total,
    so once all clients have been seen, ``Pi`` has the right weights.

    Lost replies: an upload is an increment. If its reply is lost, the client takes back its dual and its
    preconditioner's memory; see `LocalUpdate.incremental`. A client that loses its state lets all clients begin anew.

    Automatic penalties: with ``sigma = "auto"`` or ``"balanced"``, or ``rho = "auto"``, the first round is a
    `Calibration`, in which no model and no dual moves. Then ``sigma = 0.15 h`` and ``rho = 1.5 h``, with ``h`` the
    curvature ``(sum_i alpha_i ||H_i g_i||^2 / sum_i alpha_i ||g_i||^2)^{1/2}`` of the first cohort at the first model.
    With full participation, K = 1 and ``Q = I``, the models depend on the mean gradient alone, and are stable where its
    curvature is below ``(2 sigma + 4 rho) / 3 = 2.1 h``. A network's curvature may grow beyond it, and then the model
    begins to oscillate. So ``rho`` grows by a half whenever two successive steps of the model point apart,
    ``<w^{l+1} - w^l, w^l - w^{l-1}> < 0``, at most four times: on a strictly convex problem every damped oscillation
    turns back now and then. With ``absent = "keep"``, rounds with absent clients do not count: they replace the
    ``z_i`` of different clients. In the end ``rho`` is constant, and the fixed point is that of any other number.

    With ``sigma = "balanced"``, ``sigma`` also changes, in every fifth round before round 100: it doubles if the primal
    residual ``||w_i - w||``, relative to ``||w||``, is above ten times the dual residual ``sigma ||w^{l+1} - w^l||``,
    relative to ``||pi_i||``, and halves in the opposite case (root mean squares over the cohort). The duals are
    gradients and keep their scale.

    A multiple of all losses multiplies ``sigma``, ``rho`` and the duals, so the models do not change. A client that
    reports false measurements can change both numbers. If no reply arrives, the next round is the calibration. With an
    automatic ``sigma`` the first broadcasts are ``w^0``, which ``lambda`` does not shrink.

    Server state: as `ConsensusADMM`. With ``absent = "fresh"``: ``params`` ``w``; ``dual`` ``Pi`` ``(P,)``;
    ``num-examples`` ``(N,)``, 0 for a client not seen yet. Automatic penalties add ``chosen-sigma`` and
    ``chosen-rho`` ``()``, and for ``rho`` also ``raises`` ``()``, how often it has grown, and the last ``step``
    ``(P,)``.

    Parameters
    ----------
    absent
        Contribution of clients that are not in the round: ``"keep"`` their last ``z_i``, ``"drop"`` them, or
        ``"fresh"``: their duals, but not their last local models, which may be old. ``"fresh"`` keeps 2 vectors on
        the server instead of N + 1. Its uploads are increments, so each client also keeps its state from before its
        last round. With full participation all give the same model, ``"keep"`` and ``"drop"`` bit for bit.

    Examples
    --------
    Clients 0 and 1 of 1 and 3 samples, ``sigma = 1``. From ``w = 0`` they move to 4 and 8, so ``Pi = 7`` and
    ``w = 7 + 7``. Then client 0 alone moves from 14 to 10: ``Pi = 7 - 4/4``, ``w = 10 + 6``.

    >>> from fedpisa.strategies.pisa import Pisa
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> algorithm = Pisa(PisaUpdate(sigma=1.0), absent="fresh")
    >>> both = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> server = algorithm.step({"params": torch.zeros(1)}, {"drift": torch.tensor([[4.0], [8.0]])}, both)
    >>> first = Cohort(torch.tensor([0]), torch.tensor([1.0]), 2, 2, layout)
    >>> server["params"], algorithm.step(server, {"drift": torch.tensor([[-4.0]])}, first)["params"]
    (tensor([14.]), tensor([16.]))
    """

    local_update: PisaUpdate = PisaUpdate()
    absent: Literal["keep", "drop", "fresh"] = "keep"  # type: ignore[assignment]  # one choice more

    def __post_init__(self) -> None:
        if isinstance(self.local_update, IncrementalPisaUpdate) != (self.absent == "fresh"):
            update = IncrementalPisaUpdate if self.absent == "fresh" else PisaUpdate
            values = {item.name: getattr(self.local_update, item.name) for item in fields(PisaUpdate)}
            object.__setattr__(self, "local_update", update(**values))

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start as `PrimalDual`; with an automatic ``sigma``, at ``w^0``."""
        if isinstance(self.local_update.sigma, str):
            return {"params": params_P}
        return super().init(params_P, layout)

    def broadcast(self, server: Arrays) -> Arrays:
        """Return the global model, and the ``sigma`` and ``rho`` that are automatic, if they are known."""
        return {**super().broadcast(server), **_penalties(server)}

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Choose automatic penalties, or solve (2.9)."""
        if "calibration" in uploads_S:
            return self._calibrated(server, uploads_S["calibration"], cohort)
        after = self._with_penalties(server)._solved(server, uploads_S, cohort)
        if not self.local_update.automatic:
            return after
        penalties = self._guarded(server, after["params"], cohort)
        due = cohort.server_round % EVERY == 0 and cohort.server_round < LAST
        if self.local_update.sigma == "balanced" and due:
            penalties["chosen-sigma"] = self._balanced(
                server, after["params"], uploads_S["residuals"], cohort
            )
        return {**after, **penalties}

    def _calibrated(self, server: Arrays, measured_S2: Tensor, cohort: Cohort) -> Arrays:
        """Return the state with the automatic penalties that the cohort's measurements give."""
        values = chosen(weighted_mean(self.weights(cohort), measured_S2.double().square()))
        w_P = server["params"]
        found = {f"chosen-{name}": scalar_like(w_P, values[name]) for name in self.local_update.automatic}
        if self.local_update.rho == "auto":
            found["raises"] = scalar_like(w_P)
        return {**server, **found}

    def _balanced(self, server: Arrays, params_P: Tensor, residuals_S2: Tensor, cohort: Cohort) -> Tensor:
        """Return the next ``sigma`` ``()`` from the clients' ``||w_i - w||`` and ``||pi_i||``."""
        sigma = server["chosen-sigma"]
        drift, duals = weighted_mean(self.weights(cohort), residuals_S2.double().square()).sqrt().tolist()
        # Both sides times the norms, which may be zero.
        primal = drift * duals
        dual = float(sigma) * norm(params_P - server["params"]) * norm(params_P)
        return sigma * (CHANGE if primal > RATIO * dual else 1 / CHANGE if dual > RATIO * primal else 1.0)

    def _guarded(self, server: Arrays, params_P: Tensor, cohort: Cohort) -> dict[str, Tensor]:
        """Return the automatic penalties for the next round, with a larger ``rho`` if the model turns back."""
        penalties = _penalties(server)
        if self.local_update.rho != "auto":
            return penalties
        step_P, raises = params_P - server["params"], server["raises"]
        last_P, comparable = server.get("step", step_P), cohort.is_full or self.absent != "keep"
        if comparable and raises < MOST_RAISES and (step_P * last_P).sum(dtype=torch.float64) < 0:
            penalties["chosen-rho"] = RAISE * penalties["chosen-rho"]
            raises = raises + 1
        return {**penalties, "raises": raises, "step": step_P}

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return those of `ConsensusADMM`, and ``rho`` if it is automatic."""
        penalties = {**_penalties(after), **_penalties(before)}
        columns = super(PisaConsensus, self._with_penalties(penalties)).diagnostics(
            before, after, metrics, cohort
        )
        return (
            columns if self.local_update.rho != "auto" else {**columns, "rho": float(penalties["chosen-rho"])}
        )

    def _with_penalties(self, server: Arrays) -> Self:
        """Return the algorithm with the automatic ``sigma`` and ``rho`` of the server's state."""
        update = self.local_update.with_penalties(server)
        assert update is not None, "only a calibrated server steps"
        return self if update is self.local_update else replace(self, local_update=update)

    def _solved(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Solve (2.9) over the clients seen so far, over the cohort, or over its models and all duals."""
        if self.absent != "fresh":
            return super().step(server, uploads_S, cohort)
        drift_SP, sigma = uploads_S["drift"], self.local_update.sigma_at(cohort.server_round)
        mass_S = client_mass(cohort.num_examples_S, self.weighting)
        change_P = sigma * weighted_mean(mass_S, drift_SP)
        mean = updated_mean(server, "dual", change_P, self.weighting, cohort)
        local_P = server["params"] + weighted_mean(self.weights(cohort), drift_SP)
        return {"params": (sigma * local_P + mean["dual"]) / (sigma + self.lambda_), **mean}

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the state without the ``z_i`` of some clients; the sum of the duals holds no client's own."""
        return server if self.absent == "fresh" else super().forget(server, ids_S)


def _penalties(server: Arrays) -> dict[str, Tensor]:
    """Return the automatic penalties of the server's state."""
    return {name: value for name, value in server.items() if name in ("chosen-sigma", "chosen-rho")}
