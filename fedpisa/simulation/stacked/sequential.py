"""Gradients of stacked clients where the module is layers one after the other, written out.

What most models are: perhaps a convolutional body, then dense layers. Dense layers of many clients are one batched
matrix product. Features come before samples, because ten classes side by side are too few for a processor's
vectors. The body runs client by client through PyTorch's own convolutions, which on a processor beat stacked ones.

Shapes: ``S`` clients, ``P`` parameters, ``B`` samples, ``F`` features; ``(1, P)`` parameters are shared by all clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpisa.tasks.base import Task
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.losses import Loss, losses_and_gradients
from fedpisa.tasks.modules import is_unchanged

_BODY: Final = (nn.Conv2d, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Identity)


Tensors = Mapping[str, Tensor]
"""By the parameters' names, those of all clients ``(S, *shape)``, or shared ones ``(1, *shape)``."""


@final
@dataclass(frozen=True)
class Sum:
    """Where gradients go: ``total <- beta total + alpha gradient``; with ``beta`` 0 the old value is forgotten.

    Each of ``total`` is contiguous, see `ParamLayout.blocks`: there a batched product adds itself to what it finds, at
    full speed and on several threads.
    """

    total: Tensors
    alpha: float = 1.0
    beta: float = 0.0

    def add(self, name: str, gradient: Tensor) -> None:
        """Add a gradient."""
        into = self.total[name]
        if self.beta:
            into.mul_(self.beta).add_(gradient, alpha=self.alpha)
        else:
            torch.mul(gradient, self.alpha, out=into)

    def add_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add a gradient that is a product of stacked matrices, without writing it down."""
        self.total[name].baddbmm_(left, right, beta=self.beta, alpha=self.alpha)


class Layer(ABC):
    """A layer of the head: its outputs, and the derivatives of what comes after it."""

    @abstractmethod
    def forward(self, params: Tensors, h_SFB: Tensor) -> Tensor:
        """Return the layer's outputs ``(S, F, B)``."""

    @abstractmethod
    def backward(
        self, params: Tensors, h_SFB: Tensor, out_SFB: Tensor, grad_SFB: Tensor, into: Sum
    ) -> Callable[[], Tensor]:
        """Add the gradient with respect to the layer's parameters; return a way to that of its inputs."""


@final
@dataclass(frozen=True)
class Dense(Layer):
    """``W h + b``; ``weight`` and ``bias`` are the names of ``W`` and ``b``."""

    weight: str
    bias: str | None

    def forward(self, params: Tensors, h_SFB: Tensor) -> Tensor:
        """Return ``W h + b``."""
        weight = params[self.weight].expand(len(h_SFB), -1, -1)
        if self.bias is None:
            return torch.bmm(weight, h_SFB)
        return torch.baddbmm(params[self.bias][:, :, None], weight, h_SFB)

    def backward(
        self, params: Tensors, h_SFB: Tensor, out_SFB: Tensor, grad_SFB: Tensor, into: Sum
    ) -> Callable[[], Tensor]:
        """Add ``grad h^T`` and the gradients' sum; ``W^T grad`` is the rest."""
        into.add_product(self.weight, grad_SFB, h_SFB.mT)
        if self.bias is not None:
            into.add(self.bias, grad_SFB.sum(2))
        weight = params[self.weight].expand(len(h_SFB), -1, -1)
        return lambda: torch.bmm(weight.mT, grad_SFB)


@final
@dataclass(frozen=True)
class Activation(Layer):
    """A function of each feature, and its gradient as a function of the output's gradient and the output."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]

    def forward(self, params: Tensors, h_SFB: Tensor) -> Tensor:
        """Return the function's values."""
        return self.function(h_SFB)

    def backward(
        self, params: Tensors, h_SFB: Tensor, out_SFB: Tensor, grad_SFB: Tensor, into: Sum
    ) -> Callable[[], Tensor]:
        """Return a function that gives the input's gradient; there are no parameters."""
        return lambda: self.derivative(grad_SFB, out_SFB)


_ACTIVATIONS: Final = {
    nn.Identity: Activation(lambda h: h, lambda grad, out: grad),
    nn.ReLU: Activation(torch.relu, lambda grad, out: torch.ops.aten.threshold_backward(grad, out, 0)),
    nn.Tanh: Activation(torch.tanh, torch.ops.aten.tanh_backward),
    nn.Sigmoid: Activation(torch.sigmoid, torch.ops.aten.sigmoid_backward),
}


@final
@dataclass(frozen=True)
class SequentialGradient:
    """A module that is a body, which ends in flat features, and a head of dense layers.

    Parameters
    ----------
    body
        The layers up to the last `torch.nn.Flatten`.
    body_names
        The names of its parameters in ``layout``, in its own order.
    head
        The layers after it.
    layout
        The flat vector.

    Examples
    --------
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> sequential = SequentialGradient.of(module, ParamLayout.of_parameters(module))
    >>> len(sequential.body), len(sequential.head)
    (1, 3)
    >>> module = nn.Bilinear(2, 2, 2)
    >>> SequentialGradient.of(module, ParamLayout.of_parameters(module)) is None
    True
    """

    body: nn.Sequential
    body_names: tuple[str, ...]
    head: tuple[Layer, ...]
    layout: ParamLayout

    @classmethod
    def of(cls, module: nn.Module, layout: ParamLayout) -> SequentialGradient | None:
        """Return a module's gradient; ``None`` if it is no sequence of known layers, or some are frozen."""
        layers = list(_layers(module))
        names = [name for prefix, layer in layers for name in _parameters(prefix, layer)]
        # A layer that stands twice, or whose parameter does, has more names than the layout.
        twice = len({id(layer) for _, layer in layers}) < len(layers)
        if twice or not all(_is_known(layer) for _, layer in layers) or sorted(names) != sorted(layout.names):
            return None
        if len(set(layout.dtypes)) > 1:
            return None
        flattens = [number for number, (_, layer) in enumerate(layers) if type(layer) is nn.Flatten]
        body, head = (
            layers[: flattens[-1] + 1 if flattens else 0],
            layers[flattens[-1] + 1 if flattens else 0 :],
        )
        if any(isinstance(layer, nn.Linear) for _, layer in body):
            return None
        if any(
            isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1) for _, layer in body
        ):
            return None
        if not all(isinstance(layer, nn.Linear) or type(layer) in _ACTIVATIONS for _, layer in head):
            return None
        return cls(
            nn.Sequential(*_pooled_first([layer for _, layer in body])),
            tuple(name for prefix, layer in body for name in _parameters(prefix, layer)),
            tuple(_layer_of_head(prefix, layer) for prefix, layer in head),
            layout,
        )

    def fits(self, x: Tensor) -> bool:
        """Return whether it is of use for a client's samples ``(B, ...)``."""
        if self.body_names:
            return x.device.type == "cpu"  # elsewhere many small convolutions are slower than stacked ones
        return len(self.body) > 0 or x.dim() == 2

    def gradient(
        self,
        params_SP: Tensor,
        x: Tensor,
        y_SB: Tensor,
        weight_SB: Tensor,
        loss: Callable[[int], Loss | None],
    ) -> tuple[Tensor, Tensor]:
        """Return each client's weighted sum of losses ``(S,)`` and its gradient ``(S, P)``; see `add_gradient`.

        ``params_SP`` is each client's point ``(S, P)``, or a shared one ``(1, P)``.
        """
        memory_SP = params_SP.new_empty(len(x), self.layout.size)
        into = Sum(self.layout.blocks(memory_SP))
        loss_S = self.add_gradient(self.layout.unflatten(params_SP), x, y_SB, weight_SB, loss, into)
        return loss_S, self.layout.rows(memory_SP)

    def add_gradient(
        self,
        params: Tensors,
        x: Tensor,
        y_SB: Tensor,
        weight_SB: Tensor,
        loss: Callable[[int], Loss | None],
        into: Sum,
    ) -> Tensor:
        """Return each client's weighted sum of losses ``(S,)``, and add its gradient.

        Parameters
        ----------
        params
            Each client's point, or a shared one.
        x, y_SB, weight_SB
            Samples ``(S, B, ...)``; of those of weight 0 nothing is computed that counts.
        loss
            The loss of a sample, by the number of outputs.
        into
            What the gradients are added to.
        """
        assert len(x) == len(y_SB) == len(weight_SB), "only the parameters can be shared"
        if not self.body_names:
            h_SBF = self.body(x.flatten(0, 1)).view(*x.shape[:2], -1)
            return self._head(params, h_SBF.mT, y_SB, weight_SB, loss, into)[0]
        loss_S = x.new_empty(len(x))
        for s in range(len(x)):
            real_B = weight_SB[s] > 0
            samples = (x[s], y_SB[s], weight_SB[s])
            if not bool(real_B.all()):
                samples = (x[s][real_B], y_SB[s][real_B], weight_SB[s][real_B])
            total = {name: part[s : s + 1] for name, part in into.total.items()}
            point = {name: part[s : s + 1] if len(part) > 1 else part for name, part in params.items()}
            loss_S[s] = self._alone(point, *samples, loss, replace(into, total=total))
        return loss_S

    def _alone(
        self,
        params: Tensors,
        x: Tensor,
        y_B: Tensor,
        weight_B: Tensor,
        loss: Callable[[int], Loss | None],
        into: Sum,
    ) -> Tensor:
        """Return one client's loss, and add its gradient; ``params`` and ``into`` are stacks of one."""
        # PyTorch's convolutions are faster where the channels lie together.
        point = [_channels_last(params[name][0]).detach().requires_grad_() for name in self.body_names]
        named = dict(zip((name for name, _ in self.body.named_parameters()), point, strict=True))
        with torch.enable_grad():
            h_BF = functional_call(self.body, named, (_channels_last(x),))
        loss_1, grad_1FB = self._head(params, h_BF.detach().mT[None], y_B[None], weight_B[None], loss, into)
        gradients = torch.autograd.grad(h_BF, point, grad_1FB()[0].mT)
        for name, gradient in zip(self.body_names, gradients, strict=True):
            into.add(name, gradient[None])
        return loss_1[0]

    def _head(
        self,
        params: Tensors,
        h_SFB: Tensor,
        y_SB: Tensor,
        weight_SB: Tensor,
        loss: Callable[[int], Loss | None],
        into: Sum,
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return the losses ``(S,)`` and the way to the gradient of the features; add that of the parameters."""
        values = [h_SFB]
        for layer in self.head:
            values.append(layer.forward(params, values[-1]))
        closed = loss(values[-1].shape[1])
        assert closed is not None  # `sequential_gradient` refuses other losses
        losses_SB, grads_SFB = losses_and_gradients(closed, values[-1], y_SB)
        # A padded row may have an infinite loss; 0 * inf would spoil the sum.
        padded_SB = weight_SB == 0
        loss_S = losses_SB.mul(weight_SB).masked_fill_(padded_SB, 0).sum(1)
        first_SFB = grads_SFB.mul_(weight_SB[:, None]).masked_fill_(padded_SB[:, None], 0)

        def grad() -> Tensor:
            return first_SFB

        for number in reversed(range(len(self.head))):
            h, out = values[number : number + 2]
            grad = self.head[number].backward(params, h, out, grad(), into)
        return loss_S, grad


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested `torch.nn.Sequential` in turn, with what their parameters' names begin with."""
    if type(module) is not nn.Sequential or not is_unchanged(module) or module._parameters or module._buffers:
        yield prefix, module
        return
    # Not `named_children`, which leaves out a layer that stands in a second place.
    for name, part in module._modules.items():
        assert part is not None
        yield from _layers(part, f"{prefix}{name}.")


def _pooled_first(layers: list[nn.Module]) -> list[nn.Module]:
    """Return the layers with each ReLU after the pooling behind it: the same numbers for a quarter of the work."""
    for number in range(1, len(layers)):
        if isinstance(layers[number], nn.MaxPool2d) and isinstance(layers[number - 1], nn.ReLU):
            layers[number - 1], layers[number] = layers[number], layers[number - 1]
    return layers


def _is_known(layer: nn.Module) -> bool:
    """Return whether a layer computes what its class does, with the tensors of its class and no others."""
    own = {"weight", "bias"} if type(layer) in (nn.Conv2d, nn.Linear) else set()
    pools_twice = type(layer) is nn.MaxPool2d and layer.return_indices
    return (
        type(layer) in (*_BODY, nn.Linear)
        and is_unchanged(layer)
        and set(layer._parameters) == own
        and not layer._buffers
        and not layer._modules
        and not pools_twice
    )


def _parameters(prefix: str, layer: nn.Module) -> list[str]:
    return [f"{prefix}{name}" for name, _ in layer.named_parameters()]


def _layer_of_head(prefix: str, layer: nn.Module) -> Layer:
    if not isinstance(layer, nn.Linear):
        return _ACTIVATIONS[type(layer)]
    return Dense(f"{prefix}weight", None if layer.bias is None else f"{prefix}bias")


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    # Not `contiguous`: to it one channel is in order either way, and then the layers after it are not.
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def sequential_gradient(task: Task, x: Tensor) -> SequentialGradient | None:
    """Return the gradient of a task's module, written out, where it is of use for samples such as ``x``."""
    if task.autocast or task.draws_noise or task.inputs is not None or task.closed_form(1) is None:
        return None
    sequential = SequentialGradient.of(task.module, task.layout)
    return sequential if sequential is not None and sequential.fits(x) else None
