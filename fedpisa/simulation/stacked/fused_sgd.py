"""SGD's local steps of stacked clients whose module is a chain of layers, without storing gradients.

The gradient of a dense layer is a product of two matrices, which can be added to the drift or the momentum while it is
computed. A step then reads the model twice and updates one vector. The result is that of `SGDSteps.step`.

Shapes: ``S`` clients, ``P`` parameters, ``B`` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.func import vmap

from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.clients.sgd import SGDSteps
from fedpisa.simulation.stacked.sequential import SequentialGradient, Sum
from fedpisa.tasks.losses import Loss


def is_fusible(update: LocalUpdate, max_grad_norm: float = 0.0) -> bool:
    """Return whether an update takes the steps of `SGDSteps`, along the gradient of the loss alone.

    The norm of a gradient is known only once all of it is, so a clipped one cannot be added layer by layer.
    """
    if max_grad_norm or not isinstance(update, SGDSteps):
        return False
    return (
        type(update).step is SGDSteps.step
        and type(update).stochastic_gradient is SGDSteps.stochastic_gradient
    )


def take_fused_steps(
    update: SGDSteps,
    sequential: SequentialGradient,
    loss: Callable[[int], Loss | None],
    down: Arrays,
    state: Arrays,
    work: Arrays,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Arrays, Tensor]:
    """Return the clients' working variables after their steps, and the sum of each client's losses, ``(S,)``.

    With ``a = weight-decay + proximal-weight`` and ``c = correction + weight-decay centre``, both constant in a round,
    a step is ``drift <- (1 - learning-rate a) drift - learning-rate (g + c)``, or with momentum
    ``m <- momentum m + g + c + a drift``, ``drift <- drift - learning-rate m``.

    Parameters
    ----------
    update, sequential, loss
        What the clients share.
    down
        The broadcast.
    state, work
        The clients' states and working variables, stacked; clients with more steps come first.
    batches
        Features ``(S, B, ...)``, labels and weights ``(S, B)`` of each step. All clients take the first step, and a
        later step has the first ``S`` clients, those that are not done.
    """
    layout, rate, momentum = sequential.layout, update.learning_rate, update.momentum
    # `float` waits for the device, so it is called once per round rather than once per step.
    proximal_weight = update.proximal_weight(down)
    decay = update.weight_decay + (0.0 if proximal_weight is None else float(proximal_weight))
    centre_SP, *constant_SP = vmap(lambda state, _: _fixed(update, down, state))(state, work["steps"])
    centre, constants = layout.unflatten(centre_SP), [layout.unflatten(rows_SP) for rows_SP in constant_SP]

    # What is known to be zero before the first step is not read.
    sum_SP, point_SP = (torch.empty_like(work["drift"]) for _ in range(2))
    drift_SP = torch.zeros_like(sum_SP) if momentum else sum_SP
    total, drift, point = map(layout.blocks, (sum_SP, drift_SP, point_SP))
    counts = {name: value.clone() for name, value in work.items() if name not in ("drift", "m")}
    loss_S = torch.zeros_like(counts["steps"])
    alpha, beta = (1.0, momentum) if momentum else (-rate, 1 - rate * decay)
    active, first = len(loss_S), True
    for x, y_SB, weight_SB in batches:
        if len(x) < active:
            active = len(x)
            total, drift, point, centre, *constants = (
                {name: part[:active] for name, part in parts.items()}
                for parts in (total, drift, point, centre, *constants)
            )
        if not first:
            for name, v in point.items():
                torch.add(centre[name], drift[name], out=v)
        into = Sum(total, alpha, 0.0 if first else beta)
        loss_S[:active] += sequential.add_gradient(centre if first else point, x, y_SB, weight_SB, loss, into)
        for name, part in total.items():
            for constant in constants:
                part.add_(constant[name], alpha=alpha)
            if momentum and decay:
                part.add_(drift[name], alpha=decay)
            if momentum:
                drift[name].sub_(part, alpha=rate)
        for name, value in update.counted({name: value[:active] for name, value in counts.items()}).items():
            counts[name][:active] = value
        first = False
    moved = {"drift": drift_SP, "m": sum_SP} if momentum else {"drift": drift_SP}
    return {**counts, **{name: layout.rows(memory_SP) for name, memory_SP in moved.items()}}, loss_S


def _fixed(update: SGDSteps, down: Arrays, state: Arrays) -> tuple[Tensor, ...]:
    """Return a client's centre and, if there is one, the term ``c`` that is added to its gradients."""
    centre_P, correction_P = update.centre(down, state), update.correction(down, state)
    if not update.weight_decay:
        return (centre_P,) if correction_P is None else (centre_P, correction_P)
    decayed_P = update.weight_decay * centre_P
    return centre_P, decayed_P if correction_P is None else correction_P + decayed_P
