r"""The client of PISA: one preconditioned primal step, one dual step."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalResult, MiniBatches, scalar_like
from fedpisa.clients.batches import Periodic
from fedpisa.clients.by_name import ByName
from fedpisa.clients.dual import DualUpdate
from fedpisa.clients.preconditioners import Derivatives, Identity, Preconditioner
from fedpisa.tasks.task import Task
from fedpisa.typing import InverseStepSize, NonNegative, NonNegativeInverseStepSize, Positive, PositiveInt


@dataclass(frozen=True)
class PisaUpdate(DualUpdate):
    r"""PISA's client (2.10)-(2.14).

    ``g = grad F_i(w; B)``, ``w_i = w - (sigma I + rho Q)^{-1} (pi_i + g)``,
    ``pi_i <- pi_i + sigma (w_i - w)``; uploads the one vector ``z_i = w_i + pi_i / sigma``.

    With ``local-steps`` K > 1, K inner steps on the proximal sub-problem (2.7b) from ``v_0 = w``:
    ``v_{k+1} = v_k - (sigma I + rho Q_k)^{-1} (grad F_i(v_k; B_k) + pi_i + sigma (v_k - w))``, ``w_i = v_K``.

    State: ``dual`` ``pi_i`` ``(P,)``, zero at first, and the preconditioner's memory.

    Parameters
    ----------
    preconditioner
        Rule for the matrix ``Q``.
    rules
        Other preconditioners for parameters of some names: a table from regular expressions to names of
        preconditioners, as ``{"bias|norm|embed" = "adam"}``, or to tables of a name and keys, as
        ``{"bias" = {name = "adam", beta = 0.9}}``. The first expression that `re.search` finds in the parameter's name
        counts. A key that a table leaves out has the default of its preconditioner, and not the run's value. Each rule
        keeps its memory for the whole model; vectors of the same name are shared.
    sigma
        Penalty on the distance between local and global model.
    rho
        Scale of the preconditioner.
    gamma
        Divisor of ``sigma`` in every round ``l`` (from 0) that is a multiple of ``gamma-every`` (2.12). The theory
        assumes [3/4, 1); 1 keeps ``sigma`` constant. The gamma of the paper's Table 7 is another: it divides ``sigma``
        and ``rho`` together, as ``schedule`` does.
    gamma_every
        Rounds between two changes of ``sigma``.
    gamma_until
        Last server round in which ``sigma`` changes; no limit by default.
    mu
        Local L2 coefficient: ``F_i = f_i + mu/2 ||w||^2``.
    batch_size
        Samples per mini-batch, or ``"full"``.
    drop_last
        Whether a smaller last mini-batch is left out, unless it is a client's only one.
    batches_per_round
        Number of periodic mini-batches whose gradients one step averages, or ``"all"``.
    local_steps
        Inner steps K.
    gradient_reduction
        ``"mean"`` over the mini-batches, or ``"sum"`` as in the authors' public code. The sum weights clients by
        the square of their sample counts. It has ``mu`` once: ``F_i = sum_b f_b + mu/2 ||w||^2``. With ``c``
        mini-batches, ``fisher`` then averages ``sum_b (g_b + mu/c w)^2``, and ``hutchinson`` the diagonal of the
        Hessian of the sum.

    References
    ----------
    Zhou, Wang, Luo, Zhu, Li, Preconditioned Inexact Stochastic ADMM for Deep Models, arXiv 2502.10784.

    Examples
    --------
    One client on ``f(w) = w^2 / 2`` at ``w = 4``, ``sigma = rho = 1``: ``w_i = 4 - 4/2``, ``pi_i = -2``.

    >>> update = PisaUpdate(sigma=1.0, rho=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> batch = MiniBatches(None, None, torch.ones(1, 1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), batch)
    >>> outcome = update.finish(down, state, work)
    >>> outcome.upload["z"], outcome.state["dual"]
    (tensor([0.]), tensor([-2.]))
    """

    preconditioner: Preconditioner = Identity()
    rules: Mapping[str, Preconditioner] | None = field(default=None, hash=False)
    sigma: InverseStepSize = 0.3
    rho: NonNegativeInverseStepSize = 10.0
    gamma: Positive = 1.0
    gamma_every: PositiveInt = 1
    gamma_until: PositiveInt | None = None
    mu: NonNegative = 0.0
    batch_size: PositiveInt | Literal["full"] = 32
    drop_last: bool = False
    batches_per_round: PositiveInt | Literal["all"] = 1
    local_steps: PositiveInt = 1
    gradient_reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.preconditioner, Preconditioner):
            raise ValueError(
                f"the preconditioner is a {type(self.preconditioner).__name__}: give an instance of a subclass of "
                "fedpisa.clients.preconditioners.Preconditioner"
            )
        if self.gamma > 1:
            raise ValueError(f"gamma = {self.gamma} shrinks sigma: give a value in (0, 1]; 1 keeps sigma")

    @functools.cached_property
    def rule(self) -> Preconditioner:
        """The rule for ``Q`` of all parameters: ``rules`` where they apply, and elsewhere ``preconditioner``."""
        return ByName(rules=self.rules, otherwise=self.preconditioner) if self.rules else self.preconditioner

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if an expression of ``rules`` selects no parameter."""
        if isinstance(self.rule, ByName):
            self.rule.require_parameters(task.layout)

    def sigma_at(self, server_round: int) -> float:
        """Return ``sigma_i^{l+1}`` of (2.12) for ``server_round = l + 1``, or for round 0 the initial penalty.

        Examples
        --------
        >>> [PisaUpdate(sigma=1.0, gamma=0.5, gamma_every=2).sigma_at(t) for t in (0, 1, 2, 3)]
        [1.0, 2.0, 2.0, 4.0]
        """
        last = server_round if self.gamma_until is None else min(server_round, self.gamma_until)
        return self.sigma / self.gamma ** -(-last // self.gamma_every)

    def at_round(self, server_round: int) -> PisaUpdate:
        """Return the update with the round's penalty."""
        return replace(self, sigma=self.sigma_at(server_round), gamma=1.0)

    def batch_sampler(self) -> Periodic:
        """Return periodic mini-batches (4.4)."""
        return Periodic(self.batch_size, self.batches_per_round, self.local_steps, self.drop_last)

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``pi_i = 0`` and the preconditioner's memory."""
        return {**super().init(params_P), **self.rule.init(params_P)}

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin at the global model; the first step adds the ``drift`` ``w_i - w``."""
        zero = scalar_like(down["params"])
        return {"lagrangian": zero, "steps": zero, **_without(state, "dual")}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take one preconditioned step on the proximal sub-problem."""
        # Each operation passes over the vectors of all stacked clients, so none may add zeros.
        drift_P = work.get("drift")
        v_P = down["params"] if drift_P is None else down["params"] + drift_P
        derivatives = self._derivatives(gradient, v_P, batch)
        loss, g_P = derivatives.loss, derivatives.gradient_P
        if self.mu:
            loss, g_P = loss + self.mu / 2 * (v_P * v_P).sum(), g_P + self.mu * v_P
        memory = _without(work, "drift", "lagrangian", "steps")
        rise_P = state["dual"] + g_P
        q_P, memory = self.rule.direction(rise_P, derivatives, memory)
        scale_P, memory = self.rule(q_P, derivatives, memory)
        uphill_P = q_P if drift_P is None else torch.add(q_P, drift_P, alpha=self.sigma)
        step_P = self.rule.solve(uphill_P, scale_P, derivatives, self.sigma, self.rho)
        # F_i(w_i) + <pi_i, w_i - w> to first order: the loss at the start, plus <pi_i + g, step> of each step.
        lagrangian = work["lagrangian"] + torch.where(work["steps"] == 0, loss, 0) + (rise_P * step_P).sum()
        drift_P = step_P if drift_P is None else drift_P + step_P
        return {"drift": drift_P, "lagrangian": lagrangian, "steps": work["steps"] + 1, **memory}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Update the dual (2.14) and make the `upload`."""
        drift_P = work["drift"]
        dual_P = torch.add(state["dual"], drift_P, alpha=self.sigma)
        squared_drift = (drift_P * drift_P).sum()
        # The new dual adds sigma ||w_i - w||^2 to the inner product, and the penalty adds half of it.
        lagrangian = work["lagrangian"] + 1.5 * self.sigma * squared_drift
        return LocalResult(
            upload=self.upload(down["params"], drift_P, dual_P),
            state={"dual": dual_P, **_without(work, "drift", "lagrangian", "steps")},
            metrics={"squared-drift": squared_drift, "lagrangian": lagrangian},
        )

    def upload(self, params_P: Tensor, drift_P: Tensor, dual_P: Tensor) -> Arrays:
        """Return ``z_i`` from ``w``, ``w_i - w`` and the new ``pi_i``, all ``(P,)``."""
        return {"z": params_P + torch.add(drift_P, dual_P, alpha=1 / self.sigma)}

    def _derivatives(self, gradient: Gradient, v_P: Tensor, batch: MiniBatches) -> Derivatives:
        """Return the derivatives for the preconditioner, of the mini-batches' mean or sum."""
        if self.gradient_reduction == "mean":
            return self.rule.evaluate(gradient, v_P, batch, self.mu)
        # sum_b f_b + mu/2 ||v||^2 is c times (mean_b f_b + (mu/c)/2 ||v||^2).
        count = batch.num_batches
        derivatives = self.rule.evaluate(gradient, v_P, batch, self.mu / count)
        curvature_P = None if derivatives.curvature_P is None else count * derivatives.curvature_P
        return derivatives._replace(
            loss=count * derivatives.loss, gradient_P=count * derivatives.gradient_P, curvature_P=curvature_P
        )


@final
@dataclass(frozen=True)
class IncrementalPisaUpdate(PisaUpdate):
    """`PisaUpdate` that uploads ``drift`` ``w_i - w``, from which the server computes the dual's change.

    The duals stay those of `PisaUpdate`. The server adds ``sigma (w_i - w)`` to a sum over all clients, so a lost
    reply must not move the dual or the preconditioner's memory; see `LocalUpdate.incremental`.
    """

    incremental: ClassVar[bool] = True

    def upload(self, params_P: Tensor, drift_P: Tensor, dual_P: Tensor) -> Arrays:
        """Return ``w_i - w``, in which no digits of ``w`` round the dual's change."""
        return {"drift": drift_P}


def _without(arrays: Arrays, *names: str) -> Arrays:
    return {name: value for name, value in arrays.items() if name not in names}
