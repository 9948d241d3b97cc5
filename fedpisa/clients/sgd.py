r"""Local stochastic gradient descent, the client of FedAvg and its relatives."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalResult, LocalUpdate, MiniBatches, scalar_like
from fedpisa.clients.batches import Epochs
from fedpisa.typing import NonNegative, PositiveInt, Probability, StepSize


@dataclass(frozen=True)
class SGDSteps(LocalUpdate, ABC):
    r"""SGD on the client's samples from the global model ``w``, with an optional correction and proximal term.

    ``v_0 = w``, ``g = grad f_i(v_k; B_k) + weight-decay v_k + correction + proximal-weight (v_k - w)``,
    ``m = momentum m + g``, ``v_{k+1} = v_k - learning-rate m``.

    The momentum buffer starts at zero in every round, as that of a new `torch.optim.SGD`.

    Working variables: the ``drift`` ``v_k - w`` (or ``v_k - centre``; see `centre`) and the number of ``steps`` taken.
    With momentum also the buffer ``m``, the ``gain`` ``1 + momentum + momentum^2 + ...``, one term for each step, and
    the sum of the gains ``length``. Control variates and duals use the drift, because the difference of two models
    has fewer correct digits.

    Parameters
    ----------
    learning_rate
        Step size.
    momentum
        Heavy-ball momentum in [0, 1].
    weight_decay
        Local L2 coefficient, added to the gradient.
    batch_size
        Samples per mini-batch, or ``"full"``.
    drop_last
        Whether a smaller last mini-batch is left out, unless it is a client's only one.
    """

    learning_rate: StepSize = 0.1
    momentum: Probability = 0.0
    weight_decay: NonNegative = 0.0
    batch_size: PositiveInt | Literal["full"] = 32
    drop_last: bool = False

    def centre(self, down: Arrays, state: Arrays) -> Tensor:
        """Return the starting point of the steps and of the drift ``(P,)``: by default the global model."""
        return down["params"]

    def correction(self, down: Arrays, state: Arrays) -> Tensor | None:
        """Return the vector ``(P,)`` that is added to each gradient of the round, or ``None``."""
        return None

    def proximal_weight(self, down: Arrays) -> float | Tensor | None:
        """Return the factor of the drift in the gradient, a number or a scalar ``()``, or ``None``."""
        return None

    def stochastic_gradient(
        self, gradient: Gradient, down: Arrays, state: Arrays, v_P: Tensor, batch: MiniBatches
    ) -> Tensor:
        """Return the stochastic gradient at ``v`` ``(P,)``: by default that of the loss."""
        return gradient(v_P, batch)[1]

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin at the global model."""
        zero = scalar_like(down["params"])
        work = {"drift": torch.zeros_like(down["params"]), "steps": zero}
        if not self.momentum:
            return work
        return {**work, "m": torch.zeros_like(down["params"]), "gain": zero, "length": zero}

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take one SGD step."""
        drift_P = work["drift"]
        v_P = self.centre(down, state) + drift_P
        g_P = self.stochastic_gradient(gradient, down, state, v_P, batch)
        if self.weight_decay:
            g_P = g_P + self.weight_decay * v_P
        if (correction_P := self.correction(down, state)) is not None:
            g_P = g_P + correction_P
        if (proximal_weight := self.proximal_weight(down)) is not None:
            g_P = g_P + proximal_weight * drift_P
        moved = {"m": self.momentum * work["m"] + g_P} if self.momentum else {}
        drift_P = torch.sub(drift_P, moved.get("m", g_P), alpha=self.learning_rate)
        return {"drift": drift_P, **moved, **self.counted(work)}

    def counted(self, work: Arrays) -> Arrays:
        """Return the counters among the working variables, advanced by one step."""
        steps = work["steps"] + 1
        if not self.momentum:
            return {"steps": steps}
        gain = self.momentum * work["gain"] + 1
        return {"steps": steps, "gain": gain, "length": work["length"] + gain}

    def path_length(self, work: Arrays) -> Tensor:
        r"""Return ``sum_k a_k`` ``()``, where ``w - v_K = learning-rate sum_k a_k g_k``.

        ``(w - v_K) / (learning-rate sum_k a_k)`` is then a weighted mean of the round's gradients. Without
        momentum, the sum is K. With momentum, ``a_k = (1 - momentum^(K-k)) / (1 - momentum)`` for k from 0. The sum
        has the closed form ``(K - momentum (1 - momentum^K) / (1 - momentum)) / (1 - momentum)``, which loses
        digits; the steps add up the terms instead.
        """
        return work.get("length", work["steps"])


@dataclass(frozen=True)
class SGDUpdate(SGDSteps, ABC):
    """`SGDSteps` for a number of epochs or of steps; uploads the local model ``v_K`` by default.

    Parameters
    ----------
    local_epochs
        Passes over the client's samples per round.
    local_steps
        Number of mini-batch steps per round; overrides ``local_epochs``.
    """

    local_epochs: PositiveInt = 1
    local_steps: PositiveInt | None = None

    def batch_sampler(self) -> Epochs:
        """Return shuffled epochs."""
        return Epochs(self.batch_size, self.local_epochs, self.local_steps, self.drop_last)

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload the local model."""
        return LocalResult({"params": down["params"] + work["drift"]}, state, {})


@final
@dataclass(frozen=True)
class LocalSGDUpdate(SGDUpdate):
    r"""Plain local SGD, see `SGDUpdate`; uploads the local model ``v_K``.

    If the server sends ``proximal-mu``, as Flower's FedProx does, it is the `proximal_weight`.

    References
    ----------
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.

    Examples
    --------
    One step of length 0.5 on ``f(v) = v^2 / 2`` from ``w = 4``:

    >>> update = LocalSGDUpdate(learning_rate=0.5)
    >>> down = {"params": torch.tensor([4.0])}
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, {}, update.start(down, {}), None)
    >>> update.finish(down, {}, work).upload["params"]
    tensor([2.])
    """

    def proximal_weight(self, down: Arrays) -> Tensor | None:
        """Return ``proximal-mu`` ``()`` if the server sends it."""
        return down.get("proximal-mu")
