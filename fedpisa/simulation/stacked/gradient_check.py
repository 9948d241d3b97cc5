"""Which way a module's gradients are computed for stacked clients, proved on the module at hand.

A stacked engine changes how a module is called: many clients at once, padded mini-batches, and for sequential modules
gradients without autograd. Each way states the structure that it needs. Here it is also compared with plain autograd,
one client after the other, on a few samples of the run. A way that differs is not taken.
"""

from __future__ import annotations

import random
import warnings
from copy import deepcopy
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.components import one_line
from fedpisa.datasets.client_data import ClientData
from fedpisa.rng import generator, seeded
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.simulation.stacked.sequential import SequentialGradient, sequential_gradient
from fedpisa.tasks.modules import in_dtype
from fedpisa.tasks.task import Task

_SAMPLES: Final = 6
_NOISE: Final = ("p", "dropout", "drop_prob")
"""Attributes with which layers say how much they drop at random."""
_TOLERANCE: Final = {torch.float64: 1e-8, torch.float32: 1e-3}


class Case(NamedTuple):
    """Two clients' points, buffers and mini-batches; the last row of the second client is padding."""

    params_SP: Tensor
    buffers_SQ: Tensor
    x: Tensor
    y_SCB: Tensor
    weight_SCB: Tensor


def differs(task: Task, data: ClientData, sequential: bool) -> str:
    """Return how a stacked gradient differs from plain autograd; empty if it does not.

    The comparison runs on a copy of the module, on the CPU, in float64 where the module allows it, and leaves all
    generators as they were. Layers that drop at random keep everything meanwhile.

    Parameters
    ----------
    task
        Module and loss.
    data
        The run's samples, of which a few are taken.
    sequential
        Whether gradients are written out, see `SequentialGradient`, or derived by `torch.func`.

    Raises
    ------
    RuntimeError
        If the module cannot be called in that way.
    ValueError
        If plain autograd cannot train the module either.
    """
    try:
        module = deepcopy(task.module).cpu()
    except Exception as error:  # a copy runs code of the module's
        return f"the module cannot be copied ({one_line(error)})"
    for layer in module.modules():
        for name in _NOISE:
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    dtype = data.x.dtype
    try:
        return _difference(
            Task(in_dtype(module, torch.float64), task.num_classes), data, sequential, torch.float64
        )
    except RuntimeError:  # a tensor that is neither parameter nor buffer stays in the run's dtype
        if dtype is torch.float64:
            raise
        return _difference(Task(in_dtype(module, dtype), task.num_classes), data, sequential, dtype)


def _difference(task: Task, data: ClientData, sequential: bool, dtype: torch.dtype) -> str:
    case = _case(task, data, dtype)
    written_out = sequential_gradient(task, case.x[0, 0]) if sequential else None
    if sequential and written_out is None:
        return "its structure"
    with seeded(0, "proof"):
        wanted = _one_by_one(task, case)
    with seeded(0, "proof"):
        before = _generators()
        got = _stacked(task, case, written_out)
        if before != _generators():
            return "it draws random numbers that are not those of a dropout layer"
    for what, one, other in zip(("losses", "gradients", "buffers"), wanted, got, strict=True):
        scale = one.abs().max().clamp(min=1e-30) if one.numel() else one.new_ones(())
        error = (one - other).abs().max() / scale if one.numel() else scale * 0
        if not bool(error <= _TOLERANCE[dtype]):
            return f"its {what} differ by {float(error):.1g} from plain autograd's"
    return ""


def _case(task: Task, data: ClientData, dtype: torch.dtype) -> Case:
    """Return samples of the data, drawn from a stream of their own, and two points near the initial model."""
    rng = generator(0, "proof")
    rows = torch.from_numpy(np.resize(rng.permutation(len(data.x)), 2 * _SAMPLES)).to(data.x.device)
    x = data.x[rows].to("cpu", dtype).view(2, 1, _SAMPLES, *data.x.shape[1:])
    y = data.y[rows].cpu().view(2, 1, _SAMPLES, *data.y.shape[1:])
    weight = x.new_full((2, 1, _SAMPLES), 1 / _SAMPLES)
    weight[1, 0] = x.new_tensor([*[1 / (_SAMPLES - 1)] * (_SAMPLES - 1), 0.0])
    params_P = task.initial_params()
    noise_P = torch.from_numpy(rng.standard_normal(len(params_P))).to(params_P)
    # Far apart, so that no layer is silent at both points.
    params_SP = torch.stack([params_P + 0.01 * noise_P, params_P + 0.5 * noise_P])
    y = y.to(dtype) if y.is_floating_point() else y
    return Case(params_SP, task.initial_buffers().expand(2, -1), x, y, weight)


def _one_by_one(task: Task, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two clients' losses, gradients and buffers by plain autograd, without padding."""
    rows = []
    for params_P, buffers_Q, x, y_CB, weight_CB in zip(*case, strict=True):
        real_B = weight_CB[0] > 0
        gradient = AutogradGradient(task, buffers_Q)
        batch = MiniBatches(x[:, real_B], y_CB[:, real_B], weight_CB[:, real_B])
        rows.append((*gradient(params_P, batch), gradient.buffers_Q))
    losses_S, gradients_SP, buffers_SQ = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return losses_S, gradients_SP, buffers_SQ


def _stacked(task: Task, case: Case, written_out: SequentialGradient | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of both clients at once."""

    def of_one(params_P: Tensor, buffers_Q: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = StackedGradient(task, buffers_Q, written_out)
        return (*gradient(params_P, MiniBatches(*batch)), gradient.buffers_Q)

    with torch.no_grad(), warnings.catch_warnings():
        # What has no batching rule runs one client after the other, with this warning in every round.
        warnings.filterwarnings("error", "There is a performance drop", UserWarning)
        losses_S, gradients_SP, buffers_SQ = vmap(of_one, randomness="different")(*case)
    return losses_S, gradients_SP, buffers_SQ


def _generators() -> object:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
