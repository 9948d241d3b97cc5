r"""The client of PISA: one preconditioned primal step, one dual step."""

from __future__ import annotations

import functools
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any, ClassVar, Final, Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalResult, LocalUpdate, MiniBatches, scalar_like
from fedpisa.clients.batches import Periodic
from fedpisa.clients.by_name import ByName
from fedpisa.clients.dual import DualUpdate, squared
from fedpisa.clients.preconditioners import Derivatives, Identity, Preconditioner
from fedpisa.components import name_of
from fedpisa.tasks.base import Task
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
        Penalty on the distance between local and global model. ``"auto"`` measures the losses' curvature in the first
        round and keeps 0.15 times that value. ``"balanced"`` begins with it, and until round 100 doubles or halves it
        in every fifth round in which one of the relative residuals is ten times the other.
    rho
        Scale of the preconditioner. ``"auto"`` begins with 1.5 times the curvature in the first round, and grows by a
        half, up to four times, whenever the model turns back. In that first round the model does not move. Automatic
        values need ``preconditioner = "identity"`` without ``rules``.
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
    sigma: InverseStepSize | Literal["auto", "balanced"] = 0.3  # type: ignore[assignment]  # two choices more
    rho: NonNegativeInverseStepSize | Literal["auto"] = 10.0
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
        for key in self.automatic:
            if self.rules or not isinstance(self.preconditioner, Identity):
                other = (
                    "rules are set" if self.rules else f"preconditioner is {name_of(self.preconditioner)!r}"
                )
                raise ValueError(
                    f'{key} = "{getattr(self, key)}" suits plain PISA alone, and {other}: give {key} a number, or use '
                    'algorithm = "pisa" with preconditioner = "identity" and without rules'
                )
        if isinstance(self.sigma, str) and self.gamma != 1:
            raise ValueError(
                f'sigma = "{self.sigma}" chooses sigma, and gamma = {self.gamma} changes it: set gamma = 1'
            )

    @property
    def automatic(self) -> list[str]:
        """The names of the keys whose values the server chooses."""
        return [name for name in ("sigma", "rho") if isinstance(getattr(self, name), str)]

    @property
    def numbers(self) -> tuple[float, float]:
        """``sigma`` and ``rho``, once both are numbers."""
        if isinstance(self.sigma, str) or isinstance(self.rho, str):
            raise ValueError(f"{self.automatic[0]} has no value before the first round")
        return self.sigma, self.rho

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
        return float(self.sigma) / self.gamma ** -(-last // self.gamma_every)

    def at_round(self, server_round: int) -> PisaUpdate:
        """Return the update with the round's penalty."""
        if isinstance(self.sigma, str):
            return self
        return replace(self, sigma=self.sigma_at(server_round), gamma=1.0)

    def for_broadcast(self, down: Arrays) -> LocalUpdate:
        """Return the update with the server's ``sigma`` and ``rho``, or the `Calibration` if it has none yet."""
        update = self.with_penalties(down)
        if update is None:
            return Calibration(self)
        return Balanced(update) if self.sigma == "balanced" else update

    def with_penalties(self, chosen: Arrays) -> PisaUpdate | None:
        """Return the update with ``chosen-sigma`` and ``chosen-rho``, ``None`` if one that it needs is missing."""
        keys = {name: f"chosen-{name}" for name in self.automatic}
        if not set(keys.values()) <= chosen.keys():
            return None
        values: dict[str, Any] = {name: float(chosen[key]) for name, key in keys.items()}
        return replace(self, **values) if values else self

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
        sigma, rho = self.numbers
        derivatives, loss, g_P = self.evaluate(gradient, v_P, batch)
        memory = _without(work, "drift", "lagrangian", "steps")
        rise_P = state["dual"] + g_P
        q_P, memory = self.rule.direction(rise_P, derivatives, memory)
        scale_P, memory = self.rule(q_P, derivatives, memory)
        uphill_P = q_P if drift_P is None else torch.add(q_P, drift_P, alpha=sigma)
        step_P = self.rule.solve(uphill_P, scale_P, derivatives, sigma, rho)
        # F_i(w_i) + <pi_i, w_i - w> to first order: the loss at the start, plus <pi_i + g, step> of each step.
        lagrangian = work["lagrangian"] + torch.where(work["steps"] == 0, loss, 0) + (rise_P * step_P).sum()
        drift_P = step_P if drift_P is None else drift_P + step_P
        return {"drift": drift_P, "lagrangian": lagrangian, "steps": work["steps"] + 1, **memory}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Update the dual (2.14) and make the `upload`."""
        drift_P, (sigma, _) = work["drift"], self.numbers
        dual_P = torch.add(state["dual"], drift_P, alpha=sigma)
        squared_drift = (drift_P * drift_P).sum()
        # The new dual adds sigma ||w_i - w||^2 to the inner product, and the penalty adds half of it.
        lagrangian = work["lagrangian"] + 1.5 * sigma * squared_drift
        return LocalResult(
            upload=self.upload(down["params"], drift_P, dual_P),
            state={"dual": dual_P, **_without(work, "drift", "lagrangian", "steps")},
            metrics={"squared-drift": squared_drift, "lagrangian": lagrangian},
        )

    def upload(self, params_P: Tensor, drift_P: Tensor, dual_P: Tensor) -> Arrays:
        """Return ``z_i`` from ``w``, ``w_i - w`` and the new ``pi_i``, all ``(P,)``."""
        return {"z": params_P + torch.add(drift_P, dual_P, alpha=1 / self.numbers[0])}

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches
    ) -> tuple[Derivatives, Tensor, Tensor]:
        """Return the derivatives for the preconditioner, and value and gradient ``(P,)`` of ``F_i`` at ``v``."""
        derivatives = self._derivatives(gradient, v_P, batch)
        loss, g_P = derivatives.loss, derivatives.gradient_P
        if self.mu:
            loss, g_P = loss + self.mu / 2 * (v_P * v_P).sum(), g_P + self.mu * v_P
        return derivatives, loss, g_P

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


@dataclass(frozen=True)
class AroundPisa(LocalUpdate, ABC):
    """Another round with the state and the mini-batches of a `PisaUpdate`.

    Parameters
    ----------
    update
        The update, with numbers for its penalties as far as the server has chosen them.
    """

    update: PisaUpdate

    def init(self, params_P: Tensor) -> Arrays:
        """Return the initial state of the update."""
        return self.update.init(params_P)

    def batch_sampler(self) -> Periodic:
        """Return the mini-batches of the update."""
        return self.update.batch_sampler()


@final
@dataclass(frozen=True)
class Balanced(AroundPisa):
    """An update that also uploads ``residuals`` ``(2,)``, ``||w_i - w||`` and ``||pi_i||``, for ``sigma = "balanced"``.

    References
    ----------
    Wohlberg, ADMM Penalty Parameter Selection by Residual Balancing, arXiv 1704.06209, 2017.
    """

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin as the update does."""
        return self.update.start(down, state)

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take the update's step."""
        return self.update.step(gradient, down, state, work, batch)

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Add the norms to the update's upload."""
        result = self.update.finish(down, state, work)
        residuals_2 = torch.stack([squared(work["drift"]), squared(result.state["dual"])]).sqrt()
        return result._replace(upload={**result.upload, "residuals": residuals_2})


RHO_SHARE: Final = 1.5
"""The automatic ``rho`` as a multiple of the curvature."""
SIGMA_SHARE: Final = 0.15
"""The automatic ``sigma`` as a multiple of the curvature."""


@final
@dataclass(frozen=True)
class Calibration(AroundPisa):
    r"""A round in which clients measure curvature, for penalties that the server chooses; no model moves.

    With ``q = pi_i + g`` (``pi_i = 0`` at the start) and the Hessian ``H_i`` of ``F_i`` at the global model, a client
    uploads the vector ``calibration`` ``(2,)``: ``||H_i q||`` and ``||q||``. With ``local-steps`` K > 1 these are the
    norms over all K mini-batches, each at the global model. `chosen` makes the penalties of the weighted means of their
    squares.

    A mini-batch costs two gradients and a product with the Hessian.
    """

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin with zeros."""
        zero = scalar_like(down["params"])
        return {"image": zero, "length": zero, "lagrangian": zero, "steps": zero}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Measure the curvature on one step's mini-batches."""
        w_P, update = down["params"], self.update
        _, loss, g_P = update.evaluate(gradient, w_P, batch)
        q_P = state["dual"] + g_P
        _, _, image_1P = gradient.with_hessian(w_P, batch, q_P[None])
        count = batch.num_batches if update.gradient_reduction == "sum" else 1
        return {
            "image": work["image"] + squared(count * image_1P[0] + update.mu * q_P),
            "length": work["length"] + squared(q_P),
            "lagrangian": work["lagrangian"] + loss,
            "steps": work["steps"] + 1,
        }

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload the measurements; the state stays."""
        return LocalResult(
            upload={"calibration": torch.stack([work["image"], work["length"]]).sqrt()},
            state=state,
            metrics={
                "squared-drift": scalar_like(down["params"]),
                "lagrangian": work["lagrangian"] / work["steps"],
            },
        )


def chosen(calibration: Tensor) -> dict[str, float]:
    r"""Return ``sigma`` and ``rho`` from the weighted mean ``(2,)`` of the clients' squared measurements.

    ``rho = 1.5 h``, ``sigma = 0.15 h`` with ``h^2 = sum_i alpha_i ||H_i q_i||^2 / sum_i alpha_i ||q_i||^2``.
    If all ``q_i`` are zero, no client would move, and these are the default numbers.

    Examples
    --------
    A client on ``f(w) = 2 w^2`` at ``w = 1``: ``q = 4``, ``H q = 16``, ``h = 4``.

    >>> chosen(torch.tensor([256.0, 16.0]))
    {'sigma': 0.6, 'rho': 6.0}
    """
    image, length = calibration.double().tolist()
    if image == length == 0:
        return dict(zip(("sigma", "rho"), PisaUpdate().numbers, strict=True))
    h = sqrt(image / length) if length else inf
    if not 0 < h < inf:
        raise ValueError(
            f"automatic penalties need a curvature above 0, and that of the losses at the first model is {h:g}: give "
            "sigma and rho numbers"
        )
    return {"sigma": SIGMA_SHARE * h, "rho": RHO_SHARE * h}


def _without(arrays: Arrays, *names: str) -> Arrays:
    return {name: value for name, value in arrays.items() if name not in names}
