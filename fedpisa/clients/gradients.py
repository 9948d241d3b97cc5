"""A client's stochastic gradient by plain autograd.

An `AutogradGradient` carries the module's buffers from one evaluation to the next and keeps the latest loss. Each
local step makes a new one, so clients and rounds do not share it.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``C`` mini-batches, ``B`` samples of a mini-batch,
``R`` vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, MiniBatches
from fedpisa.tasks.base import Samples, Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.module_values import Held
from fedpisa.tasks.players import Player


@final
@dataclass
class AutogradGradient:
    """The reference `Gradient`: autograd on one mini-batch after the other, without padding."""

    task: Task
    buffers_Q: Tensor
    memory: Arrays = field(default_factory=dict)
    loss: Tensor | None = None
    player: Player | None = None
    others_P: Tensor | None = None
    memory_after: Arrays = field(init=False)

    def __post_init__(self) -> None:
        self.memory_after = self.memory

    @property
    def layout(self) -> ParamLayout:
        """Names and shapes of the parameters; see `Gradient`."""
        return self.task.layout if self.player is None else self.player.layout

    def of(self, player: Player, params_P: Tensor) -> AutogradGradient:
        """Become the gradient of a player's loss; see `Gradient`."""
        self.player, self.others_P = player, params_P
        return self

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and gradient ``(P,)`` over the mini-batches; see `Gradient`."""
        total_P: Tensor | None = None

        def add(c: int, loss: Tensor, held: Held) -> None:
            nonlocal total_P
            gradient_P = held.gradient(loss)
            total_P = gradient_P if total_P is None else total_P.add_(gradient_P)

        self.loss, num_batches = self._over_batches(params_P, batch, add, extra)
        if total_P is None:
            total_P = torch.zeros_like(params_P)
        return self.loss, total_P if num_batches == 1 else total_P / max(num_batches, 1)

    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and each mini-batch's gradient ``(C, P)``; see `Gradient`."""
        gradients_CP = params_P.new_zeros(len(batch.x), len(params_P))

        def put(c: int, loss: Tensor, held: Held) -> None:
            gradients_CP[c] += held.gradient(loss)

        self.loss, _ = self._over_batches(params_P, batch, put)
        return self.loss, gradients_CP

    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss, gradient, and Hessian-vector products ``(R, P)``; see `Gradient`."""
        total_P, total_RP = torch.zeros_like(params_P), torch.zeros_like(vectors_RP)

        def add(c: int, loss: Tensor, held: Held) -> None:
            gradient_P = held.differentiable_gradient(loss)
            for r, vector_P in enumerate(vectors_RP):
                # A loss that is linear in the parameters has a gradient that does not depend on them.
                if gradient_P.requires_grad:
                    total_RP[r] += held.product(gradient_P, vector_P)
            total_P.add_(gradient_P.detach())

        self.loss, num_batches = self._over_batches(params_P, batch, add)
        return self.loss, total_P / num_batches, total_RP / num_batches

    @torch.enable_grad()
    def _over_batches(
        self,
        params_P: Tensor,
        batch: MiniBatches,
        derive: Callable[[int, Tensor, Held], None],
        extra: FeatureLoss | None = None,
    ) -> tuple[Tensor, int]:
        """Call ``derive`` with each non-empty mini-batch's index and mean loss; return the mean of these, and how many.

        With a `micro_batch_size`, ``derive`` gets one piece's part of a mini-batch's loss after the other. The memory
        goes from one mini-batch to the next, and each call begins with that of the step.
        """
        total, memory, num_batches = params_P.new_zeros(()), self.memory, 0
        player, name = self.player, None
        if player is not None and self.others_P is not None:
            params_P, name = player.put(self.others_P, params_P), player.name
        for c, (x, all_y_B, weight_B) in enumerate(zip(*batch.samples, strict=True)):
            if memory and batch.fresh_C is not None and batch.fresh_C[c]:
                memory = {name: torch.zeros_like(value) for name, value in memory.items()}
            pieces = _pieces(weight_B, self.task.micro_batch_size)
            num_batches += len(pieces) > 0
            for number, (rows, share) in enumerate(pieces):
                # The memory has rows for as many samples as a mini-batch may have.
                x_B, y_B, own = x, all_y_B, {name: value[: len(x)] for name, value in memory.items()}
                if rows is not None:
                    x_B, y_B = x[rows], all_y_B[rows]
                    own = {name: value[rows] for name, value in memory.items()}
                # A backward pass may call the module again, so it belongs inside.
                with self.task.holding(params_P, self.buffers_Q) as held:
                    key = self.task.noise_key(batch.key, c, number)
                    samples = Samples(x_B, y_B, key=key)
                    losses_B, buffers_Q, after = self.task.losses(
                        None, self.buffers_Q, samples, extra, own, name
                    )
                    loss = losses_B.mean()
                    if share < 1:
                        loss = loss * share
                    derive(c, loss, held if player is None else held.of(player.layout))
                self.buffers_Q = buffers_Q.detach()
                memory = {
                    name: torch.cat([after[name].detach(), value[len(x) :]])
                    if rows is None
                    else value.index_copy(0, rows, after[name].detach())
                    for name, value in memory.items()
                }
                total += loss.detach()
        self.memory_after = memory
        return total if num_batches == 1 else total / num_batches, num_batches


def _pieces(weight_B: Tensor, micro_batch_size: int) -> list[tuple[Tensor | None, float]]:
    """Return the samples of each piece of a mini-batch and their share of it; ``None`` for all rows.

    Examples
    --------
    >>> _pieces(torch.tensor([0.5, 0.5]), 0), _pieces(torch.tensor([0.0]), 0)
    ([(None, 1.0)], [])
    >>> _pieces(torch.tensor([0.5, 0.5, 0.0]), 1)
    [(tensor([0]), 0.5), (tensor([1]), 0.5)]
    """
    size = micro_batch_size or len(weight_B)
    if size >= len(weight_B) and bool(weight_B.all()):
        return [(None, 1.0)]
    real = weight_B.nonzero().squeeze(1)
    # No rows would make one piece without samples.
    pieces = torch.split(real, size) if len(real) else ()
    return [(rows, len(rows) / len(real)) for rows in pieces]
