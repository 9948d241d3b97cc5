"""Models by name: small ones of the federated-learning literature, torchvision's, and users' models."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

from fedpisa import families
from fedpisa.components import Component, kebab, one_line, printable
from fedpisa.datasets.inputs import require_one
from fedpisa.rng import seeded

if TYPE_CHECKING:
    from torch import nn

    from fedpisa.datasets.inputs import Inputs

__all__ = ["build"]

Shape: TypeAlias = tuple[int, ...] | dict[str, tuple[int, ...]] | tuple[tuple[int, ...], ...]
"""Shape of a sample, or those of its features, by name or in order."""


def build(
    name: str,
    shape: tuple[int, ...],
    num_outputs: int,
    seed: int,
    *,
    target_shape: tuple[int, ...] = (),
    integers: bool = False,
    **options: object,
) -> nn.Module:
    """Return a model with initial weights that depend on ``seed`` and on nothing else.

    The weights are drawn in float32 on the CPU, so they do not depend on a run's dtype and device. Torch's global
    generator keeps its state. The model is in training mode.

    Parameters
    ----------
    name
        ``logistic``, ``mlp``, ...; a model of torchvision; or ``module:callable``, which receives ``shape`` and
        ``num_outputs`` where its signature names them.
    shape
        Shape of one sample.
    num_outputs
        Number of classes, or 1 for a regression. With two classes a model may have one output, the logit of
        class 1.
    seed
        The run's seed.
    target_shape
        Shape of one sample's targets, if it has several; the model gives outputs for each.
    integers
        Whether samples are int64, as tokens are, rather than numbers.
    options
        The model's keys.

    Raises
    ------
    ValueError
        If there is no such model, a key does not fit, or the model does not fit the data.

    Examples
    --------
    >>> import torch
    >>> first, second = (build("mlp", (8, 8), 10, seed=0, widths=(16,)) for _ in range(2))
    >>> all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    True
    """
    component = families.find("model", name)
    values = {kebab(option): value for option, value in options.items()}
    return create(component, values, shape, num_outputs, seed, target_shape, integers)


def create(
    component: Component,
    values: dict[str, object],
    shape: Shape,
    num_outputs: int,
    seed: int,
    target_shape: tuple[int, ...] = (),
    integers: bool = False,
    *,
    any_output: bool = False,
    inputs: Inputs | None = None,
    num_log_stds: int = 0,
) -> nn.Module:
    """Return the model that a component describes; see :func:`build`.

    With ``any_output`` the shape of the outputs is not checked: your own loss decides what it takes. With ``inputs`` a
    sample has several features; ``shape`` has the shape of each, by name or in order, and the model must be your own.
    ``num_log_stds`` is that of `fedpisa.control.environments.Environments`.
    """
    import torch
    from torch import nn

    if ":" not in component.name:
        require_one(inputs, str(component), 'take one of your own, "module:callable", that takes them')

    with seeded(seed, "initial-weights"):
        try:
            injected = {
                "shape": shape,
                "num_outputs": num_outputs,
                "seed": seed,
                "num_log_stds": num_log_stds,
            }
            model = families.build(component, values, **injected)
        except (RuntimeError, MemoryError) as error:  # of torch, such as a layer that is too large
            raise ValueError(
                f"{component} cannot be built ({printable(one_line(error))}): change its keys or its code"
            ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{component} gave an object of type {type(model).__name__}: it must give a torch.nn.Module"
            )
        if isinstance(model, torch.jit.ScriptModule | nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{component} gave a {type(model).__name__}: give the torch.nn.Module inside it, as it was before it "
                "was wrapped or compiled"
            )
        wanted = None if any_output else num_outputs
        _check_output(component, model, shape, wanted, target_shape, integers, inputs)
    return model


def _check_output(
    component: Component,
    model: nn.Module,
    shape: Shape,
    num_outputs: int | None,
    target_shape: tuple[int, ...],
    integers: bool,
    inputs: Inputs | None,
) -> None:
    """Raise unless the model maps a sample to as many outputs as the data need; ``None`` for any number."""
    import torch
    from torch.nn.parameter import is_lazy

    real = [weight for weight in model.parameters() if weight.is_floating_point()]
    lazy = any(is_lazy(weight) for weight in real)
    widest = (
        reduce(torch.promote_types, {weight.dtype for weight in real}) if real and not lazy else torch.float32
    )
    dtype = torch.int64 if integers else widest
    device = real[0].device if real and not lazy else None
    sample = shape if inputs is None else (inputs.width,)
    x = torch.zeros(2, *sample, dtype=dtype, device=device)
    in_order, by_name = ((x,), {}) if inputs is None else inputs.arguments(x, widest)
    was_training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(*in_order, **by_name)
    except Exception as error:  # a user's model may fail in any way
        if inputs is not None:
            names = inputs.names or [f"x{number}" for number in range(len(inputs.shapes))]
            raise ValueError(
                f"{component} cannot take a sample's {inputs} ({one_line(error)}): give it "
                f"forward(self, {', '.join(names)}) for these shapes"
            ) from error
        raise ValueError(
            f"{component} cannot take a sample of shape {shape}{' of integers' * integers} "
            f"({' '.join(str(error).split())}): choose a model for {'tokens' if integers else 'this shape'}"
        ) from error
    finally:
        model.train(was_training)
    if num_outputs is None:
        return
    wanted = [(2, *target_shape, num_outputs)] + [(2, 1)] * (num_outputs == 2 and not target_shape)
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if got not in wanted:
        raise ValueError(
            f"{component} gives {got} for two samples, and the labels need {' or '.join(map(str, wanted))}: "
            f"give its last layer {num_outputs} outputs"
        )
