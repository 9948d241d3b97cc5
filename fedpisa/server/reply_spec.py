"""The properties of a valid reply, derived without any data.

Shapes: ``P`` parameters, ``C`` mini-batches, ``R`` vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, LocalUpdate, MiniBatches
from fedpisa.clients.client import OF_EVERY_CLIENT
from fedpisa.server.reply_checks import Contract
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.players import Player

MOST_DRAWN: Final = 10**7
"""Number of samples of a client above which the server does not repeat the draw of its mini-batches."""


@final
@dataclass(frozen=True)
class ReplySpec:
    """Names and shapes of a reply.

    Parameters
    ----------
    upload
        Shapes of the arrays, by name.
    metrics
        Names of the scalars that the algorithm reports.
    """

    upload: Mapping[str, tuple[int, ...]]
    metrics: frozenset[str]


def reply_spec(update: LocalUpdate, server_round: int, down: Arrays, layout: ParamLayout) -> ReplySpec:
    """Return the names, shapes and metrics of a client's upload in a round.

    The update takes one step on tensors that have shapes and no values.

    Parameters
    ----------
    update
        The algorithm's local update.
    server_round
        The round; what a client sends may depend on it.
    down
        The broadcast.
    layout
        The module's parameters.

    Examples
    --------
    >>> from fedpisa.clients.sgd import LocalSGDUpdate
    >>> layout = ParamLayout.of([("weight", torch.zeros(3))])
    >>> reply_spec(LocalSGDUpdate(), 1, {"params": torch.zeros(3)}, layout).upload
    {'params': (3,)}
    """
    update = update.at_round(server_round).for_broadcast(down)
    result = idle_result(update, {name: value.to("meta") for name, value in down.items()}, layout)
    shapes = {name: tuple(value.shape) for name, value in result.upload.items()}
    return ReplySpec(shapes, frozenset(result.metrics))


def idle_result(update: LocalUpdate, down: Arrays, layout: ParamLayout, steps: int = 1) -> LocalResult:
    """Return the result of an idle client: its state is the initial one and all its gradients are zero.

    ``update`` is that of the round and the broadcast.

    A client's *update* is its upload minus this upload: the change of the model for an upload of models, and the
    upload itself for an upload of changes or gradients.

    Examples
    --------
    >>> from fedpisa.clients.scaffold import ScaffoldUpdate
    >>> layout, w = ParamLayout.of([("weight", torch.zeros(2))]), torch.ones(2)
    >>> idle_result(ScaffoldUpdate(), {"params": w, "control": 0 * w}, layout, steps=3).upload
    {'drift': tensor([0., 0.]), 'length': tensor(0.3000)}
    """
    w_P = down["params"]
    weight_CB = w_P.new_ones(1, 1)
    key = torch.zeros((), dtype=torch.int64, device=w_P.device)
    batch = MiniBatches(weight_CB, weight_CB, weight_CB, key)
    state = update.init(w_P)
    work = update.start(down, state)
    for _ in range(steps):
        work = update.step(NoGradient(layout), down, state, work, batch)
    return update.finish(down, state, work)


def contract_of(
    update: LocalUpdate,
    server_round: int,
    down: Arrays,
    buffers: Arrays,
    layout: ParamLayout,
    num_examples: Mapping[int, int],
    clients: Mapping[int, int],
    seed: int,
    further: frozenset[str] = frozenset(),
) -> Contract:
    """Return what every valid reply of a round has.

    Parameters
    ----------
    update, server_round, down, layout
        See `reply_spec`.
    buffers
        The module's buffers in the broadcast.
    num_examples
        The number of samples of each node, as far as it is known.
    clients
        The nodes' clients.
    seed
        The run's seed.
    further
        Names of metrics that do not depend on the algorithm.
    """
    spec = reply_spec(update, server_round, down, layout)
    shapes = {**spec.upload, **{name: tuple(value.shape) for name, value in buffers.items()}}
    sampler, steps = update.at_round(server_round).batch_sampler(), {}
    for node, size in num_examples.items():
        if size <= MOST_DRAWN:
            indices = sampler.draw(np.array([size]), np.array([clients[node]]), server_round, seed)
            steps[node] = int(indices.gradients_S[0]), int(indices.steps_S[0])
    gradients = {node: gradients for node, (gradients, _) in steps.items()}
    local_steps = {node: count for node, (_, count) in steps.items()}
    metrics = spec.metrics | OF_EVERY_CLIENT | further
    return Contract(server_round, shapes, metrics, layout.dtype, num_examples, gradients, local_steps)


def idle_uploads(
    update: LocalUpdate, down: Arrays, buffers: Arrays, layout: ParamLayout, contract: Contract
) -> Callable[[int], Arrays]:
    """Return a function of a node that returns an idle client's upload in its place.

    The vectors are those after one local step. The scalars are those after all local steps of the node; without a
    known number of steps they are left out.
    """
    update = update.at_round(contract.server_round).for_broadcast(down)
    upload = idle_result(update, down, layout).upload
    vectors = {name: torch.nan_to_num(value) for name, value in upload.items() if value.dim()}
    vectors |= buffers
    has_scalars = len(vectors) < len(contract.shapes)
    empty = {name: value.new_zeros(0) if value.dim() else value for name, value in down.items()}

    @cache
    def scalars(steps: int) -> Arrays:
        upload = idle_result(update, empty, ParamLayout.of([]), steps).upload
        return {name: value for name, value in upload.items() if not value.dim()}

    def of_node(node: int) -> Arrays:
        steps = contract.local_steps.get(node) if has_scalars else None
        return vectors if steps is None else {**vectors, **scalars(steps)}

    return of_node


@final
@dataclass(frozen=True)
class NoGradient:
    """A `fedpisa.clients.base.Gradient` that is zero everywhere.

    Parameters
    ----------
    layout
        The module's parameters.
    """

    layout: ParamLayout

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        return params_P.new_zeros(()), torch.zeros_like(params_P)

    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        return params_P.new_zeros(()), params_P.new_zeros(len(batch.x), len(params_P))

    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return zeros."""
        return params_P.new_zeros(()), torch.zeros_like(params_P), torch.zeros_like(vectors_RP)

    def of(self, player: Player, params_P: Tensor) -> NoGradient:
        """Return zeros of a player's parameters."""
        return NoGradient(player.layout)
