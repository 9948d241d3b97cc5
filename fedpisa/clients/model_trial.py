"""A trial before the first round: whether plain autograd can train a model on the clients' samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpisa.clients.base import LocalUpdate, MiniBatches
from fedpisa.clients.batches import Ints
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.memory import sampler_of
from fedpisa.components import LOG, one_line
from fedpisa.rng import seeded
from fedpisa.tasks.base import Task
from fedpisa.tasks.batchnorm import MaskedBatchNorm
from fedpisa.tasks.module_values import own_attributes


def require_trainable(task: Task, x: Tensor, y: Tensor) -> None:
    """Compute one gradient of the initial model, and say in the log if it draws from PyTorch's generator.

    Parameters
    ----------
    task
        Module and loss.
    x, y
        One sample ``(1, ...)`` and its target; the mini-batch has it twice.

    Raises
    ------
    ValueError
        If the forward or the backward pass fails, or the forward pass changes parameters.
    """
    params_P = task.initial_params().to(x.device)
    before_P = params_P.clone()
    x, y = (part.expand(1, 2, *part.shape[1:]) for part in (x, y))
    batch = MiniBatches(x, y, torch.full((1, 2), 0.5, dtype=before_P.dtype, device=x.device))
    with seeded(0, "trial"), own_attributes(task.module):
        try:
            _require_kept_tensors(task, x[0])
            before = torch.get_rng_state()
            AutogradGradient(task, task.initial_buffers().to(x.device))(params_P, batch)
            if not torch.equal(torch.get_rng_state(), before):
                LOG.warning(
                    "the model draws from PyTorch's generator: a run repeats to the same bytes on one engine, and "
                    "other engines draw other numbers; nn.Dropout and fedpisa.rng draw the same on all"
                )
        except ValueError:
            raise
        except Exception as error:  # a user's model may fail in any way
            shape = f"shape {tuple(x.shape[2:])}" if task.inputs is None else task.inputs
            raise ValueError(
                f"the model cannot be trained on samples of {shape} ({one_line(error)[:300]}): "
                "try it on two samples in training mode, with loss.backward()"
            ) from error
    if not torch.equal(params_P, before_P):
        raise ValueError(_WRITES)


_WRITES: Final = (
    "the model's forward pass writes into its parameters, which only the optimizer may change: "
    "compute with a changed copy, such as self.weight.clamp(...)"
)


def _require_kept_tensors(task: Task, x: Tensor) -> None:
    """Refuse a forward pass that puts other parameters, or buffers of other names or shapes, in the module."""
    params_P, buffers_Q = task.initial_params().to(x.device), task.initial_buffers().to(x.device)
    with torch.no_grad(), task.holding(params_P, buffers_Q):
        before = {name: (id(p), p.data_ptr()) for name, p in task.module.named_parameters()}
        task.outputs(None, buffers_Q, x, None)
        buffers = dict(task.module.named_buffers())
        new = [name for name, _ in task.module.named_parameters() if name not in before]
        if new:
            raise ValueError(f"the model's forward pass adds parameter {new[0]!r}: make it in __init__")
        if before != {name: (id(p), p.data_ptr()) for name, p in task.module.named_parameters()}:
            raise ValueError(_WRITES)
    wanted = dict(zip(task.buffer_layout.names, task.buffer_layout.shapes, strict=True))
    found = {name: tuple(buffer.shape) for name, buffer in buffers.items()}
    for name in {**wanted, **found}:
        if name not in wanted:
            raise ValueError(f"the model's forward pass registers buffer {name!r}: register it in __init__")
        if wanted[name] != found.get(name):
            raise ValueError(
                f"the model's forward pass changes buffer {name!r} from shape {wanted.get(name)} to {found.get(name)}: "
                "register it in the shape that it keeps"
            )


def require_batch_statistics(task: Task, update: LocalUpdate, x: Tensor, sizes_S: Ints, seed: int) -> None:
    """Refuse mini-batches of one sample where a BatchNorm would take the statistics of a single value.

    Parameters
    ----------
    task
        Module and loss.
    update
        The local update, which cuts the mini-batches.
    x
        One sample ``(1, ...)``.
    sizes_S
        The clients' sample counts.
    seed
        The run's seed.

    Raises
    ------
    ValueError
        With the client and the fix.
    """
    layers = [layer for layer in task.module.modules() if isinstance(layer, MaskedBatchNorm | _BatchNorm)]
    if not layers or _has_statistics(task, layers, x):
        return
    indices = sampler_of(task, update.at_round(1)).draw(sizes_S, np.arange(len(sizes_S)), 1, seed)
    samples_SKC = (indices.weight_SKCB > 0).sum(-1)
    alone_S = (samples_SKC == 1).any((1, 2))
    if alone_S.any():
        client = int(alone_S.argmax())
        who = f"client {client}" if len(sizes_S) > 1 else "a client"
        dropped = "set drop-last = true, " if sizes_S[client] > 1 else ""
        raise ValueError(
            f"BatchNorm cannot train on a mini-batch of one sample, and {who} with {sizes_S[client]} samples "
            f"has one: change batch-size, {dropped}raise min-partition-size, "
            "or take a model without BatchNorm"
        )


def _has_statistics(task: Task, layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Return whether one sample gives every BatchNorm more than one value per channel."""
    single = False

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal single
        single |= inputs[0].numel() == inputs[0].shape[1]

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    params_P, buffers_Q = task.initial_params().to(x.device), task.initial_buffers().to(x.device)
    try:
        held = task.holding(params_P, buffers_Q)
        with torch.no_grad(), seeded(0, "trial"), own_attributes(task.module), held:
            task.outputs(None, buffers_Q, x, None)
    except ValueError:  # PyTorch's own layers refuse a single value
        single = True
    finally:
        for hook in hooks:
            hook.remove()
    return not single
