"""Models with patches, hooks, shared layers, Python state, and code that `torch.func` cannot see."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from tests.contracts.zoo_layers import FEATURES, IMAGES, SERIES, WIDTH, Apply, convolutional, dense, of


@of(FEATURES)
def weight_norm_by_hook(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.Tanh(), nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)))


@of(FEATURES)
def weight_norm(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.Tanh(), parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))


@of(FEATURES)
def spectral_norm_by_hook(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.Tanh(), nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)))


@of(FEATURES)
def spectral_norm(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.Tanh(), parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)))


@of(FEATURES)
def orthogonal(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.Tanh(), parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)))


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


@of(FEATURES)
def parametrized(num_outputs: int) -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return dense(num_outputs, nn.Tanh(), layer)


@of(FEATURES)
def pruned(num_outputs: int) -> nn.Module:
    layer = prune.l1_unstructured(nn.Linear(WIDTH, WIDTH), "weight", amount=0.5)
    return dense(num_outputs, nn.ReLU(), prune.random_unstructured(layer, "bias", amount=2))


@of(FEATURES)
def pruned_structured(num_outputs: int) -> nn.Module:
    layer = prune.ln_structured(nn.Linear(WIDTH, WIDTH), "weight", amount=0.5, n=2, dim=0)
    return dense(num_outputs, prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=1))


@of(IMAGES)
def pruned_globally(num_outputs: int) -> nn.Module:
    module: Any = convolutional(num_outputs, nn.ReLU(), nn.Conv2d(4, 4, 3))
    prune.global_unstructured(
        [(module[0], "weight"), (module[2], "weight")], prune.L1Unstructured, amount=0.4
    )
    return module


class Checkpointed(nn.Module):
    def __init__(self, num_outputs: int, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs), reentrant
        self.middle = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.middle, torch.tanh(self.first(x)), use_reentrant=self.reentrant)
        result: Tensor = self.last(h)
        return result


@of(FEATURES)
def checkpointed(num_outputs: int) -> nn.Module:
    return Checkpointed(num_outputs, reentrant=False)


@of(FEATURES)
def checkpointed_reentrant(num_outputs: int) -> nn.Module:
    return Checkpointed(num_outputs, reentrant=True)


@of(FEATURES)
class LoraPatched(nn.Module):
    """LoRA that trains only the adapters and replaces each layer's ``forward`` on the object."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net = dense(num_outputs, nn.ReLU(), nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
        for layer in [layer for layer in self.net.modules() if isinstance(layer, nn.Linear)]:
            layer.down = nn.Parameter(torch.randn(2, layer.in_features))
            layer.up = nn.Parameter(torch.randn(layer.out_features, 2) / 4)
            layer.forward = types.MethodType(adapted, layer)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


def adapted(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight + layer.up @ layer.down, layer.bias)


@of(FEATURES)
def patched_by_closure(num_outputs: int) -> nn.Module:
    """Patch a ``forward`` to refer to a layer and a tensor; a module's copy then calls the original's."""
    module: Any = dense(num_outputs, nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    layer, weight = module[2], module[0].weight
    layer.forward = lambda x: F.linear(x, layer.weight) + weight.mean()
    return module


@of(FEATURES)
class TensorsInAList(nn.Module):
    """Uses its parameters through a plain list, which no substitution reaches."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs)
        self.tensors = list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        first, bias, last, offset = self.tensors
        return F.linear(torch.tanh(F.linear(x, first, bias)), last, offset)


@of(FEATURES)
def tied(num_outputs: int) -> nn.Module:
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    second.weight = first.weight
    return dense(num_outputs, first, nn.Tanh(), second)


@of(FEATURES)
class AutoEncoderTied(nn.Module):
    """Uses a weight twice, once transposed."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.code, self.last = nn.Linear(6, 4), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(F.linear(torch.tanh(self.code(x)), self.code.weight.t()))
        return result


@of(FEATURES)
def frozen_below(num_outputs: int) -> nn.Module:
    module: Any = dense(num_outputs, nn.BatchNorm1d(WIDTH), nn.ReLU())
    module[0].requires_grad_(False)
    module[1].weight.requires_grad_(False)
    return module


@of(FEATURES)
def shared_block(num_outputs: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    return dense(num_outputs, block, block, nn.LayerNorm(WIDTH), block)


@of(IMAGES)
class Residual(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.stem, self.bn, self.conv = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.bn(self.conv(h)) + h
        h += 1
        result: Tensor = self.last(self.relu(h).mean((2, 3)))
        return result


@of(FEATURES)
class MovingAverage(nn.Module):
    """A moving average of the features in a buffer, next to integer, boolean and large buffers."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.tensor(2**40 + 1))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("table", torch.arange(WIDTH, dtype=torch.int16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(h.mean(0), 0.1)
                self.calls += 1
                self.started.fill_(True)
        result: Tensor = self.last(torch.tanh(h - self.mean) * (1 + self.table / WIDTH))
        return result


@of(FEATURES)
class RebindsBuffers(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net = dense(num_outputs, nn.Tanh())
        self.register_buffer("last_mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last_mean = 0.5 * self.last_mean + 0.5 * x.detach().mean(0)
        result: Tensor = self.net(x - self.last_mean)
        return result


@of(FEATURES)
class Heads(nn.Module):
    """Two heads in a dictionary, whose outputs are added, and blocks in nested lists."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(6, 6), nn.Tanh()]) for _ in range(2)])
        self.heads = nn.ModuleDict({"a": nn.Linear(6, num_outputs), "b": nn.Linear(6, num_outputs)})

    def forward(self, x: Tensor) -> Tensor:
        for first, second in self.blocks:  # type: ignore[misc]
            x = second(first(x))
        outputs = {name: head(x) for name, head in self.heads.items()}
        result: Tensor = outputs["a"] + 0.5 * outputs["b"]
        return result


@of(FEATURES)
class Parameters(nn.Module):
    """Parameters in a list and in a dictionary; empty, scalar, unused and late-registered parameters."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 4), torch.randn(4, num_outputs)])
        self.more = nn.ParameterDict({"shift": torch.zeros(num_outputs)})
        self.nothing, self.unused = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2))
        self.register_parameter("scale", None)
        self.register_parameter("scale", nn.Parameter(torch.tensor(0.5)))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.weights[0]) @ self.weights[1]
        return self.scale * h + self.more["shift"] + self.nothing.sum()


@of(FEATURES)
def hooks(num_outputs: int) -> nn.Module:
    module: Any = dense(num_outputs, nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    module[1].register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    module[2].register_forward_hook(lambda layer, inputs, output: output + inputs[0])
    module[3].register_forward_hook(lambda layer, inputs, output: None, always_call=True)
    return module


@of(FEATURES)
def backward_hooks(num_outputs: int) -> nn.Module:
    module: Any = dense(num_outputs, nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    module[2].register_full_backward_hook(lambda layer, into, out: (into[0] * 0.5,))
    module[1].register_full_backward_pre_hook(lambda layer, out: (out[0] * 2,))
    return module


@of(FEATURES)
def gradient_hooks(num_outputs: int) -> nn.Module:
    """Clips the gradients of its parameters and masks one of them."""
    module: Any = dense(num_outputs, nn.Tanh())
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    module[0].weight.register_hook(lambda gradient: gradient.tril())
    return module


def halve(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


@of(FEATURES)
def accumulation_hooks(num_outputs: int) -> nn.Module:
    module: Any = dense(num_outputs, nn.Tanh())
    module[0].weight.register_post_accumulate_grad_hook(halve)
    return module


@of(FEATURES)
class HookInside(nn.Module):
    """Registers a hook on an activation, as gradient reversal and Grad-CAM do."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if h.requires_grad:
            h.register_hook(lambda gradient: -0.1 * gradient)
        result: Tensor = self.last(h)
        return result


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


@of(FEATURES)
def own_function(num_outputs: int) -> nn.Module:
    return dense(num_outputs, Apply(Reversal.apply), nn.Tanh())


class Rounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (ctx.saved_tensors[0].abs() < 1)


@of(FEATURES)
def straight_through(num_outputs: int) -> nn.Module:
    return dense(num_outputs, Apply(Rounded.apply), nn.Linear(WIDTH, WIDTH))


@of(FEATURES)
class PerSampleJacobian(nn.Module):
    """`torch.func` inside the forward pass."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 3), nn.Linear(18, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(self.inner(row))))(x)
        result: Tensor = self.last(jacobian.flatten(1))
        return result


@of(FEATURES)
class GradientInside(nn.Module):
    """A gradient by autograd inside the forward pass, as in energy and meta models."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.energy, self.last = nn.Linear(6, 1), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = torch.tanh(self.energy(x)).square().sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        result: Tensor = self.last(force)
        return result


@of(FEATURES)
class DataDependent(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(6, num_outputs), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.small if x.mean() < 0 else self.large)(x)
        return result


@of(FEATURES)
class ByItem(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(x / x.abs().max().item())
        return result


@of(FEATURES)
class ByNumpy(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        ranks = np.argsort(np.argsort(x.detach().numpy(), axis=1), axis=1)
        result: Tensor = self.last(torch.from_numpy(ranks).to(x))
        return result


@of(FEATURES)
class Experts(nn.Module):
    """Each sample goes to one expert, by its index."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, num_outputs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weight, index = self.gate(x).softmax(-1).max(-1)
        outputs = x.new_zeros(len(x), self.experts[0].out_features)  # type: ignore[arg-type]
        for number, expert in enumerate(self.experts):
            rows = (index == number).nonzero().squeeze(-1)
            outputs = outputs.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        return outputs


@of(FEATURES)
class Retrieval(nn.Module):
    """Attends to the other samples of the mini-batch."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(x + (x @ x.mT).softmax(-1) @ x if self.training else x)
        return result


@of(FEATURES)
class OneByOne(nn.Module):
    """Calls its layers without a batch dimension."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(torch.relu(self.first(row))) for row in x])


@of(FEATURES)
class HalfInside(nn.Module):
    """A float16 parameter and a pass in bfloat16."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(6, dtype=torch.float16)), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last((x * self.scale).to(torch.bfloat16).to(x.dtype))
        return result


@of(FEATURES)
class CallsItself(nn.Module):
    """Overrides ``__call__`` and ``__getattr__``."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net = dense(num_outputs, nn.Tanh())

    def __call__(self, x: Tensor) -> Any:
        return 2 * super().__call__(x)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__("net" if name == "alias" else name)

    def forward(self, x: Tensor) -> Any:
        return self.alias(x)


@of(FEATURES)
def state_dict_hooks(num_outputs: int) -> nn.Module:
    module = dense(num_outputs, nn.BatchNorm1d(WIDTH))
    module.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.pop("0.bias"))
    module.register_load_state_dict_pre_hook(lambda *arguments: None)
    return module


@of(FEATURES)
class NotToBeCopied(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net = dense(num_outputs, nn.Tanh())

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle a connection")

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@of(FEATURES)
class SharesItsCopies(nn.Module):
    """Returns itself as its copy, so comparing the copies' tensors finds no difference."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net = dense(num_outputs, nn.Tanh())

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@of(FEATURES)
def lazy(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(num_outputs))


@of(FEATURES)
class BuiltLate(nn.Module):
    """Creates its last layer at its first call."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.num_outputs = nn.Linear(6, WIDTH), num_outputs

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "last"):
            self.last = nn.Linear(WIDTH, self.num_outputs).to(x)
        return self.last(torch.tanh(self.first(x)))


@of(SERIES)
class Memory(nn.Module):
    """Keeps its last activations, as models keep attention maps for inspection."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.last, self.seen = nn.Linear(20, num_outputs), None

    def forward(self, x: Tensor) -> Any:
        self.seen = torch.tanh(x.flatten(1))
        return self.last(self.seen)


@of(FEATURES)
class CountsItsCalls(nn.Module):
    """Warms up with a Python counter that is not a buffer."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net, self.calls = dense(num_outputs, nn.Tanh()), 0

    def forward(self, x: Tensor) -> Any:
        self.calls += self.training
        return self.net(x) * min(1.0, 0.25 * self.calls if self.training else 1.0)


@of(FEATURES)
class SwitchesGradients(nn.Module):
    """Detaches one part and computes another without gradients."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            teacher = self.b(x)
        return self.last(torch.tanh(self.a(x)).detach() + teacher * self.a(x))


@of(FEATURES)
class NoGradientAtAll(nn.Module):
    """Uses one head only in training and the other only in evaluation."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.train_head, self.eval_head = nn.Linear(6, num_outputs), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Any:
        return (self.train_head if self.training else self.eval_head)(x)
