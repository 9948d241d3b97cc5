"""Check that a way to compute stacked gradients is right for the module at hand.

The stacked engine changes how a module is called: many clients at once, padded mini-batches, and for sequential modules
gradients without autograd. Each way needs a certain structure. In addition, it is compared with plain autograd, one
client after the other, on a few samples of the run. A way that differs is not used.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.instancenorm import _InstanceNorm

from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.components import one_line
from fedpisa.datasets.client_data import ClientData
from fedpisa.rng import generator, seeded
from fedpisa.simulation.stacked.fused_kernels import lacks_batching_rule, without_fused_kernels
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.simulation.stacked.sequential import SequentialGradient, sequential_gradient
from fedpisa.tasks.base import Samples, Task
from fedpisa.tasks.module_values import own_attributes
from fedpisa.tasks.modules import copy_of, in_dtype, plain_attributes

_LARGE: Final = 1_000_000
"""Number of parameters from which fewer samples are compared, to save time."""
_NOISE: Final = ("p", "dropout", "drop_prob")
"""Attributes of layers that hold a probability of dropping values."""
_MANY: Final = 64
"""Number of samples in the larger mini-batch that shows whether samples mix."""
_TOLERANCE: Final = {torch.float64: 1e-8, torch.float32: 1e-3}


@final
class UnstackableError(ValueError):
    """A layer cannot run for stacked clients.

    Parameters
    ----------
    layer
        Name and type of the layer.
    cause
        Why it cannot.
    is_fused
        Whether the only cause is a kernel without a batching rule.
    """

    def __init__(self, layer: str, cause: str, *, is_fused: bool = False) -> None:
        self.reason, self.is_fused = f"{layer} cannot run for stacked clients ({cause})", is_fused
        super().__init__(f'{self.reason}; use engine = "loop", or replace the layer')


class Case(NamedTuple):
    """Points, buffers, two mini-batches and keys of three clients.

    The second and third client have fewer samples and are padded; the third has no second mini-batch.
    """

    params_SP: Tensor
    buffers_SQ: Tensor
    x: Tensor
    y_SCB: Tensor
    weight_SCB: Tensor
    key_S: Tensor


def require_stackable(module: nn.Module) -> None:
    """Refuse modules that a comparison of a few numbers cannot judge.

    Raises
    ------
    UnstackableError
        If a layer tracks statistics that would include padding, or a parameter has a gradient hook.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            raise UnstackableError(_named(name, layer), "its running statistics would count padding")
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise UnstackableError(f"parameter {name!r}", "it has a gradient hook")


def differs(task: Task, data: ClientData, sequential: bool) -> str:
    """Return how a stacked gradient differs from plain autograd; empty if it does not.

    The comparison runs on a copy of the module, on the CPU, in float64 where the module allows it, and leaves all
    generators unchanged. Dropout is switched off for it.

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
    UnstackableError
        If the module cannot be called for stacked clients, with the innermost layer that failed.
    """
    try:
        module = copy_of(task.module)
    except Exception as error:  # copying runs the module's code
        return f"the module cannot be copied: {one_line(error)}"
    # A copy may call layers of the original.
    with (
        own_attributes(task.module),
        task.holding(task.initial_params(), task.initial_buffers()),
        without_fused_kernels(module, data.x.device),
    ):
        return _of_copy(task, task.with_module(module, autocast=task.autocast), data, sequential)


def _of_copy(task: Task, copy: Task, data: ClientData, sequential: bool) -> str:
    if not _is_faithful(task, copy, data):
        return "a copy of the module computes something else, as if it referred to the module's own tensors"
    dtype, module = task.dtype, copy.module
    if not sequential and (mixing := _mixing(copy, data)):
        return mixing
    if not sequential:
        with seeded(0, "trial"), _named_errors(copy):
            _two_steps(copy, _case(copy, data, dtype, data.x.device))
    for layer in module.cpu().modules():
        for name in _NOISE:
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    try:
        double = task.with_module(in_dtype(module, torch.float64))
        return _difference(double, data, sequential, torch.float64)
    except (
        RuntimeError,
        UnstackableError,
    ) as error:  # a tensor that is neither parameter nor buffer stays in its dtype
        if isinstance(error, UnstackableError) and dtype is torch.float64:
            raise
        if dtype is torch.float64:
            return f"its copy fails: {one_line(error)[:200]}"
        return _difference(task.with_module(in_dtype(module, dtype)), data, sequential, dtype)


def _mixing(task: Task, data: ClientData) -> str:
    """Return how padding changes the losses, with the noise of a round; empty if it does not.

    A small mini-batch does not show what a module does to large ones, and without noise a module may do nothing.
    """
    params_P, buffers_Q, *_, key = (part[1] for part in _case(task, data, task.dtype, data.x.device))
    size = _MANY if task.layout.size < _LARGE else 8
    rows = torch.arange(size, device=data.x.device) % len(data.x)
    real_B = torch.arange(size, device=data.x.device) < 3
    x, y_B = data.x[rows], data.y[rows]
    others = torch.where(real_B.view(-1, *(1,) * (x.dim() - 1)), x, x[:1])

    def losses(x: Tensor) -> Tensor:
        held = task.holding(params_P, buffers_Q)
        with torch.no_grad(), seeded(0, "proof"), own_attributes(task.module), held:
            samples = Samples(x, y_B, real_B.to(params_P.dtype), key)
            return task.losses(None, buffers_Q, samples).losses_B[real_B]

    with _named_errors(task):
        same = torch.allclose(losses(x), losses(others), rtol=1e-4, atol=1e-6, equal_nan=True)
    if not same:
        return "its losses depend on the other samples of a mini-batch"
    return ""


def _is_faithful(task: Task, copy: Task, data: ClientData) -> bool:
    """Return whether a copy has the losses of the original at a new point."""
    found = []
    for one in (task, copy):
        case = _case(one, data, one.dtype, data.x.device)
        params_P, buffers_Q, x, y_CB, _, key = (part[1] for part in case)
        with (
            torch.no_grad(),
            seeded(0, "proof"),
            own_attributes(one.module),
            one.holding(params_P, buffers_Q),
        ):
            found.append(one.losses(None, buffers_Q, Samples(x[0], y_CB[0], key=key)).losses_B)
    return torch.allclose(found[0], found[1], rtol=1e-4, equal_nan=True)


def _difference(task: Task, data: ClientData, sequential: bool, dtype: torch.dtype) -> str:
    case = _case(task, data, dtype, torch.device("cpu"))
    written_out = sequential_gradient(task, case.x[0, 0]) if sequential else None
    if sequential and written_out is None:
        return "its structure"
    with seeded(0, "proof"):
        wanted = _one_by_one(task, case)
    if isinstance(wanted, str):
        return wanted
    with seeded(0, "proof"), _named_errors(task):
        before = generators()
        got = _stacked(task, case, written_out)
        if before != generators():
            return "it draws random numbers that are not those of a dropout layer"
    for what, one, other in zip(("losses", "gradients", "buffers"), wanted, got, strict=True):
        scale = one.abs().max().clamp(min=1e-30) if one.numel() else one.new_ones(())
        error = (one - other).abs().max() / scale if one.numel() else scale * 0
        if not bool(error <= _TOLERANCE[dtype]):
            return f"its {what} differ by {float(error):.1g} from plain autograd's"
    return ""


def _case(task: Task, data: ClientData, dtype: torch.dtype, device: torch.device) -> Case:
    """Return random samples of the data and three points around the initial model."""
    rng, size = generator(0, "proof"), 5 if task.layout.size < _LARGE else 2
    rows = torch.from_numpy(np.resize(rng.permutation(len(data.x)), 6 * size)).to(data.x.device)
    x, y = (
        part[rows].to(device, dtype if part.is_floating_point() else None).view(3, 2, size, *part.shape[1:])
        for part in (data.x, data.y)
    )
    counts_SC = torch.tensor([[size, size - 1], [size - 1, 1], [1, 0]], device=device)
    real_SCB = torch.arange(size, device=device) < counts_SC[..., None]
    batches_S = (counts_SC > 0).sum(1)
    weight_SCB = real_SCB.to(dtype) / (counts_SC.clamp(min=1) * batches_S[:, None])[..., None]
    params_P = task.initial_params()
    noise_P = torch.from_numpy(rng.standard_normal(len(params_P))).to(params_P)
    # Far apart, so that no layer is silent at all of them.
    params_SP = torch.stack([params_P + scale * noise_P for scale in (0.01, 0.5, -0.1)])
    key_S = torch.arange(3, device=device)
    return Case(params_SP, task.initial_buffers().expand(3, -1), x, y, weight_SCB, key_S)


def _one_by_one(task: Task, case: Case) -> tuple[Tensor, Tensor, Tensor] | str:
    """Return the clients' losses, gradients and buffers by plain autograd without padding, or why there are none."""
    rows = []
    for params_P, buffers_Q, *parts in zip(*case, strict=True):
        gradient = AutogradGradient(task, buffers_Q)
        batch = MiniBatches(*parts)
        with own_attributes(task.module):
            before = plain_attributes(task.module)
            try:
                rows.append((*gradient(params_P, batch), gradient.buffers_Q))
            except Exception as error:  # a user's module may fail in any way
                return f"plain autograd fails on a small mini-batch: {one_line(error)}"
            after = plain_attributes(task.module)
            changed = [name for name in {**after, **before} if before.get(name) != after.get(name)]
            if changed:
                return f"a call changes its attribute {changed[0]!r}, which is not a buffer"
    losses_S, gradients_SP, buffers_SQ = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return losses_S, gradients_SP, buffers_SQ


def _stacked(task: Task, case: Case, written_out: SequentialGradient | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses, gradients and buffers of all clients at once."""

    def of_one(params_P: Tensor, buffers_Q: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = StackedGradient(task, buffers_Q, written_out)
        return (*gradient(params_P, MiniBatches(*batch)), gradient.buffers_Q)

    with torch.no_grad():
        losses_S, gradients_SP, buffers_SQ = vmap(of_one, randomness="different")(*case)
    return losses_S, gradients_SP, buffers_SQ


def _two_steps(task: Task, case: Case) -> None:
    """Take two clients' steps on two samples as in a round: in the first step all clients share the model."""
    params_P, parts = case.params_SP[0], (part[:2, :, :2] for part in case[2:5])

    def of_one(buffers_Q: Tensor, *batch: Tensor) -> Tensor:
        first = StackedGradient(task, buffers_Q)
        point_P = params_P - 0.01 * first(params_P, MiniBatches(*batch))[1]
        return StackedGradient(task, first.buffers_Q)(point_P, MiniBatches(*batch))[1]

    with torch.no_grad():
        vmap(of_one, randomness="different")(case.buffers_SQ[:2], *parts, case.key_S[:2])


@contextmanager
def _named_errors(task: Task) -> Iterator[None]:
    """Turn an error in the block into an `UnstackableError` that names the innermost layer."""
    entered: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, layer in task.module.named_modules():

        def enter(layer: nn.Module, inputs: Any, name: str = name) -> None:
            entered.append((name, layer))

        def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
            entered.pop()

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with warnings.catch_warnings():
            # What has no batching rule runs one client after the other, with this warning in every round.
            warnings.filterwarnings("error", "There is a performance drop", UserWarning)
            yield
    except Exception as error:  # a user's module may fail in any way
        layer_name = _named(*entered[-1]) if entered else "the model's loss or backward pass"
        is_fused = lacks_batching_rule(error, entered[-1][1] if entered else None)
        raise UnstackableError(layer_name, _short(error), is_fused=is_fused) from error
    finally:
        for hook in hooks:
            hook.remove()


def _short(error: Exception) -> str:
    """Return an error's first line, without where PyTorch's own code raised a warning."""
    return one_line(error).partition(". Please file ")[0][:200]


def _named(name: str, layer: nn.Module) -> str:
    return f"{name or 'the model'} ({type(layer).__name__})"


def generators() -> object:
    """Return the states of all global generators, to be compared."""
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
