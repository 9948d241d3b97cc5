"""A client's side of an algorithm, as pure functions of named tensors.

Shapes: ``P`` parameters, ``C`` mini-batches whose gradients one local step averages, ``B`` samples of a
mini-batch, ``R`` probes, ``()`` scalars. All functions are written for one client. An engine may run them for many
clients at once under `torch.func.vmap`, so they do no I/O, draw no random numbers from a generator and do not branch
on the value of a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fedpisa.clients.batches import BatchSampler
from fedpisa.tasks.base import Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.players import Player

Arrays = Mapping[str, Tensor]
"""Named tensors: flat vectors ``(P,)`` or scalars ``()``."""


class MiniBatches(NamedTuple):
    """The samples of one local step: ``C`` mini-batches of ``B``, padded.

    ``weight_CB`` is ``1 / (c |b|)`` for a sample of mini-batch ``b``, with ``c`` the number of non-empty mini-batches,
    and 0 for padding. The weighted sum over all samples is therefore the mean of the mini-batch means.
    ``key`` holds 64 random bits that depend on the seed, the client, the round and the step, and are the same in
    every engine. An algorithm derives its random numbers from it, as
    `fedpisa.clients.preconditioners.hutchinson.rademacher` does. ``fresh_C`` says before which mini-batches the
    task's memory is zero.
    """

    x: Tensor
    y_CB: Tensor
    weight_CB: Tensor
    key: Tensor = torch.tensor(0)
    fresh_C: Tensor | None = None

    @property
    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and weights."""
        return self.x, self.y_CB, self.weight_CB

    @property
    def num_batches(self) -> Tensor:
        """Number ``c`` of non-empty mini-batches, a scalar ``()``."""
        return (self.weight_CB.sum(-1) > 0).sum().to(self.weight_CB.dtype)


class Gradient(Protocol):
    """The client's stochastic gradient and other derivatives of its loss."""

    @property
    def layout(self) -> ParamLayout:
        """Names and shapes of the parameters in a vector ``(P,)``."""
        ...

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and the mean gradient ``(P,)`` over the mini-batches at ``params_P``.

        The gradient includes ``extra``, the loss does not.
        """
        ...

    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and each mini-batch's gradient ``(C, P)``, 0 for an empty mini-batch."""
        ...

    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss, the mean gradient and the mean Hessian's products with ``R`` vectors ``(R, P)``."""
        ...

    def of(self, player: Player, params_P: Tensor) -> Gradient:
        """Return the gradient of a player's loss by its own parameters ``(G,)``, the others' held at ``params_P``.

        It takes the place of this gradient: buffers and memory go on in one of both.
        """
        ...


class LocalResult(NamedTuple):
    """Result of a client's round: the upload, the client's new state and scalar metrics."""

    upload: Arrays
    state: Arrays
    metrics: Arrays


class LocalUpdate(ABC):
    """One client's work in one round: `start`, then `step` for each local step, then `finish`.

    The broadcast has the global model under the name ``params``. Algorithms that average models upload them under
    the same name, which Flower's strategies use too. The engine carries the module's buffers from step to step and
    the server averages them; an algorithm does not see them.
    """

    incremental: ClassVar[bool] = False
    """Whether the server adds uploads to a sum, or repeats the client's update on a copy of its state.

    A lost reply must then leave the client where it was. The client keeps its previous state and returns to it
    unless the server's next message confirms the reply.
    """

    @abstractmethod
    def batch_sampler(self) -> BatchSampler:
        """Return the rule that selects a client's samples in a round."""

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if the update cannot train the task's module on samples such as ``x`` ``(B, ...)``."""
        return

    def at_round(self, server_round: int) -> LocalUpdate:
        """Return the update with its hyper-parameters of ``server_round`` (1, 2, ...)."""
        return self

    def for_broadcast(self, down: Arrays) -> LocalUpdate:
        """Return the update with the hyper-parameters that the broadcast brings: by default none."""
        return self

    def key_round(self, server_round: int) -> int:
        """Return the round whose keys a round's local steps have: by default its own."""
        return server_round

    def init(self, params_P: Tensor) -> Arrays:
        """Return the client's state before its first round, by default empty."""
        return {}

    @abstractmethod
    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Return the round's working variables from the broadcast and the client's state."""

    @abstractmethod
    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Return the working variables after one local step."""

    @abstractmethod
    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Return the upload, the client's new state and its metrics; later rounds do not write into them."""


def scalar_like(params_P: Tensor, value: float = 0.0) -> Tensor:
    """Return a scalar ``()`` of the parameters' dtype and device."""
    return torch.full((), value, dtype=params_P.dtype, device=params_P.device)
