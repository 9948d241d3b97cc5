"""Stacked clients' stochastic gradients by `torch.func`, or by a sequential module's written-out gradients.

A new object is made for every local step, so nothing leaks between clients or rounds.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``C`` mini-batches, ``B`` samples of a mini-batch,
``R`` vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from fedpisa.clients.base import Arrays, MiniBatches
from fedpisa.simulation.stacked.compat_torch import of_all_clients
from fedpisa.simulation.stacked.sequential import SequentialGradient
from fedpisa.tasks.base import Samples, Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.players import Player

Part = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""Features, targets and weights of some samples, the key of their noise, and whether memory is cleared before them."""


@final
@dataclass
class StackedGradient:
    """A gradient under `torch.func.vmap`: padded mini-batches, and all ``C`` of them in one pass.

    A module with BatchNorm sees its mini-batches one by one, because its statistics are theirs, and so does a task that
    draws noise, because each mini-batch has its own key. With ``sequential`` the gradients of the samples are written
    out.
    """

    task: Task
    buffers_Q: Tensor
    sequential: SequentialGradient | None = None
    memory: Arrays = field(default_factory=dict)
    loss: Tensor | None = None
    player: Player | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)
    memory_after: Arrays = field(init=False)

    def __post_init__(self) -> None:
        self.memory_after = self.memory

    @property
    def layout(self) -> ParamLayout:
        """How the flat vectors are made up; see `Gradient`."""
        return self.task.layout if self.player is None else self.player.layout

    def of(self, player: Player, params_P: Tensor) -> StackedGradient:
        """Become the gradient of a player's loss; see `Gradient`."""
        self.player, self.others, self.sequential = player, self.task.layout.unflatten(params_P), None
        return self

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and gradient ``(P,)`` over the mini-batches; see `Gradient`."""
        sequential = self.sequential
        x, y_B, weight_B = (part.flatten(0, 1) for part in batch.samples)
        if extra is not None or sequential is None:
            return self._derived(params_P, batch, extra)
        of_loss = partial(sequential.gradient, loss=self.task.closed_form)
        self.loss, gradient_P = of_all_clients(of_loss, params_P, x, y_B, weight_B)
        return self.loss, gradient_P

    def _derived(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the same for any module."""
        params = self.layout.unflatten(params_P)
        self.loss, gradient_P = self._sum(lambda *part: self._derived_of(params, part, extra), batch)
        return self.loss, gradient_P

    def _derived_of(
        self, params: dict[str, Tensor], part: Part, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the same for some of the samples."""
        derived: Any = grad(self._weighted_loss(*part, extra=extra), has_aux=True)(params)
        gradients, (loss, buffers_Q, memory) = derived
        self._thread(buffers_Q, memory, part)
        return loss, self.layout.flatten(gradients)

    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and each mini-batch's gradient ``(C, P)``; see `Gradient`."""
        params, self.memory_after = self.layout.unflatten(params_P), self.memory
        if self._is_one_by_one:
            losses, rows = zip(*(self._derived_of(params, part) for part in self._parts(batch)), strict=True)
            losses_C, gradients_CP = torch.stack(losses), torch.stack(rows)
        else:
            losses_C, gradients_CP = vmap(
                lambda *part: replace(self)._derived_of(params, (*part, None, None)),
                randomness="different",
            )(*batch.samples)
        self.loss = losses_C.sum()
        return self.loss, gradients_CP * batch.num_batches

    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss, gradient, and Hessian-vector products ``(R, P)``; see `Gradient`."""

        def one(*part: *Part) -> tuple[Tensor, ...]:
            slope = grad(self._weighted_loss(*part), has_aux=True)
            derived: Any = vjp(slope, params_P, has_aux=True)
            gradient_P, pullback, (loss, buffers_Q, memory) = derived
            self._thread(buffers_Q, memory, part)
            return loss, gradient_P, vmap(pullback, randomness="different")(vectors_RP)[0]

        self.loss, gradient_P, products_RP = self._sum(one, batch)
        return self.loss, gradient_P, products_RP

    def _sum(self, function: Callable[..., tuple[Tensor, ...]], batch: MiniBatches) -> tuple[Tensor, ...]:
        """Return a function of samples, of all of them at once or summed over the mini-batches."""
        self.memory_after = self.memory
        if not self._is_one_by_one or len(batch.weight_CB) == 1:
            x, y_B, weight_B = (part.flatten(0, 1) for part in batch.samples)
            fresh = None if batch.fresh_C is None else batch.fresh_C[0]
            return function(x, y_B, weight_B, self.task.noise_key(batch.key, 0), fresh)
        first, *others = self._parts(batch)
        total = function(*first)
        for part in others:
            total = tuple(a + b for a, b in zip(total, function(*part), strict=True))
        return total

    @property
    def _is_one_by_one(self) -> bool:
        """Whether each mini-batch has its own pass."""
        return self.task.mixes_samples or self.task.draws_noise or bool(self.memory)

    def _parts(self, batch: MiniBatches) -> list[Part]:
        """Return each mini-batch's samples and key, and whether the memory is cleared before it."""
        fresh_C = [None] * len(batch.x) if batch.fresh_C is None else batch.fresh_C.unbind()
        parts = zip(*batch.samples, range(len(batch.x)), fresh_C, strict=True)
        return [(x, y_B, w_B, self.task.noise_key(batch.key, c), fresh) for x, y_B, w_B, c, fresh in parts]

    def _weighted_loss(
        self,
        x: Tensor,
        y_B: Tensor,
        weight_B: Tensor,
        key: Tensor | None,
        fresh: Tensor | None,
        *,
        extra: FeatureLoss | None = None,
    ) -> Callable[[dict[str, Tensor] | Tensor], tuple[Tensor, tuple[Tensor, Tensor, Arrays]]]:
        """Return the weighted sum of the samples' losses as a function; beside it itself, the buffers and the memory.

        Its argument is the parameters by name, or the flat vector where derivatives of derivatives are wanted.
        """
        real_B = (weight_B > 0).to(weight_B.dtype)
        memory = {name: value[: len(x)] for name, value in self.memory_after.items()}
        if fresh is not None:
            memory = {name: torch.where(fresh, 0, value) for name, value in memory.items()}

        def weighted_loss(params: dict[str, Tensor] | Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Arrays]]:
            if isinstance(params, Tensor):
                params = self.layout.unflatten(params)
            samples = Samples(x, y_B, real_B, key)
            whole = {**self.others, **params}
            losses_B, buffers_Q, after = self.task.losses(
                whole,
                self.buffers_Q,
                samples,
                extra,
                memory,
                None if self.player is None else self.player.name,
            )
            after = {name: value.detach() for name, value in after.items()}
            # A padded row may have an infinite loss; 0 * inf would spoil the sum.
            loss = torch.where(weight_B > 0, losses_B, 0).mul(weight_B).sum()
            return loss, (loss.detach(), buffers_Q, after)

        return weighted_loss

    def _thread(self, buffers_Q: Tensor, memory: Arrays, part: Part) -> None:
        """Keep buffers and memory; a mini-batch that is not there leaves the buffers, and a padded row its memory."""
        _, _, weight_B, _, fresh = part
        self.buffers_Q = torch.where(weight_B.sum() > 0, buffers_Q, self.buffers_Q)
        for name, after in memory.items():
            before = self.memory_after[name]
            if fresh is not None:
                before = torch.where(fresh, 0, before)
            own = torch.where((weight_B > 0)[:, None], after, before[: len(after)])
            self.memory_after = {**self.memory_after, name: torch.cat([own, before[len(after) :]])}
