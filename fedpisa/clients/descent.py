"""SGD's local steps of stacked clients whose module is a chain of layers: no gradient is ever written down.

The gradient of a dense layer is a product of two matrices, and a product can add itself to the drift, or to the
momentum: of a step there remain two looks at the model and one at what is added to. What comes out is what
`SGDSteps.step` says.

Shapes: ``S`` clients, ``P`` parameters, ``B`` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from fedpisa.chain import Chain, Sum
from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.clients.sgd import SGDSteps
from fedpisa.layout import ParamLayout
from fedpisa.losses import Loss


def descends(update: LocalUpdate) -> bool:
    """Tell whether an update's steps are those of `SGDSteps`, along the gradient of nothing but the loss."""
    if not isinstance(update, SGDSteps):
        return False
    return type(update).step is SGDSteps.step and type(update).slope is SGDSteps.slope


def descend(
    update: SGDSteps,
    chain: Chain,
    loss: Callable[[int], Loss],
    down: Arrays,
    state: Arrays,
    work: Arrays,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    begins: bool,
) -> tuple[Arrays, Tensor]:
    """Return the clients' working variables after some steps, and each client's losses, summed ``(S,)``.

    With ``a = weight-decay + pull`` and ``c = shift + weight-decay centre``, which a round does not change, a step is
    ``drift <- (1 - learning-rate a) drift - learning-rate (g + c)``, or with momentum
    ``m <- momentum m + g + c + a drift``, ``drift <- drift - learning-rate m``.

    Parameters
    ----------
    update, chain, loss
        What the clients share.
    down
        The broadcast.
    state, work
        The clients' states and working variables, stacked.
    batches
        Of each step the features ``(S, B, ...)``, labels and weights ``(S, B)``.
    begins
        Whether these are the round's first steps: the drift is zero, and what is known to be zero is not read.
    """
    layout, rate, momentum = chain.layout, update.learning_rate, update.momentum
    # A product takes a number: where the server sends the pull, this waits for the device, once and not in each step.
    pull = update.pull(down)
    decay = update.weight_decay + (0.0 if pull is None else float(pull))
    centre_SP, *constant_SP = vmap(lambda state, _: _fixed(update, down, state))(state, work["steps"])
    centre, constants = layout.unflatten(centre_SP), [layout.unflatten(rows_SP) for rows_SP in constant_SP]

    name = "m" if momentum else "drift"
    sum_SP = work[name].new_empty(work[name].shape) if begins else _in_blocks(layout, work[name])
    drift_SP = _in_blocks(layout, work["drift"]) if momentum else sum_SP
    alpha, beta = (1.0, momentum) if momentum else (-rate, 1 - rate * decay)
    into = Sum(layout.blocks(sum_SP), alpha, beta)
    drift, point = layout.blocks(drift_SP), layout.blocks(torch.empty_like(drift_SP))
    loss_S = torch.zeros_like(work["steps"])
    for x, y_SB, weight_SB in batches:
        if begins:
            loss_S += chain.add_gradient(centre, x, y_SB, weight_SB, loss, replace(into, beta=0.0))
        else:
            for name, v in point.items():
                torch.add(centre[name], drift[name], out=v)
            loss_S += chain.add_gradient(point, x, y_SB, weight_SB, loss, into)
        for constant in constants:
            for name, total in into.total.items():
                total.add_(constant[name], alpha=alpha)
        if momentum and decay:
            sum_SP.add_(drift_SP, alpha=decay)
        if momentum:
            drift_SP.sub_(sum_SP, alpha=rate)
        work, begins = {**work, **update.counted(work)}, False
    moved = {"drift": drift_SP, "m": sum_SP} if momentum else {"drift": drift_SP}
    return {**work, **{name: layout.rows(memory_SP) for name, memory_SP in moved.items()}}, loss_S


def _fixed(update: SGDSteps, down: Arrays, state: Arrays) -> tuple[Tensor, ...]:
    """Return a client's centre and, if anything is added to its gradients whatever the drift, that."""
    centre_P, shift_P = update.centre(down, state), update.shift(down, state)
    if not update.weight_decay:
        return (centre_P,) if shift_P is None else (centre_P, shift_P)
    decayed_P = update.weight_decay * centre_P
    return centre_P, decayed_P if shift_P is None else shift_P + decayed_P


def _in_blocks(layout: ParamLayout, rows_SP: Tensor) -> Tensor:
    """Return a copy of a stack, its memory shared out by `ParamLayout.blocks`."""
    memory_SP = rows_SP.new_empty(rows_SP.shape)
    for name, rows in layout.unflatten(rows_SP).items():
        layout.blocks(memory_SP)[name].copy_(rows)
    return memory_SP
