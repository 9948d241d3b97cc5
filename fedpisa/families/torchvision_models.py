"""Torchvision's classification models by name, such as ``resnet18``, with random initial weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fedpisa.components import Component, Parameter, nearest, one_line

if TYPE_CHECKING:
    from torch import nn


def find(name: str, ours: Iterable[str] = ()) -> Component | None:
    """Return the component of torchvision's model with this name, or None if there is none.

    Parameters
    ----------
    name
        Name in ``torchvision.models.list_models()``, with ``-`` or ``_``.
    ours
        Names of the other models, for the error message.

    Raises
    ------
    ValueError
        If torchvision cannot be imported, or if the name looks like a misspelt one of its models.
    """
    models = _torchvision(f"unknown model {name!r}{nearest(name, ours)} (available: {', '.join(ours)})")
    names = models.list_models(module=models)
    found = name.replace("-", "_")
    if found in names:
        return Component(
            "model",
            name,
            lambda shape, num_outputs: _create(name, shape, num_outputs),
            f"Torchvision's {found}, with random initial weights.",
            (Parameter("shape"), Parameter("num_outputs")),
        )
    if not nearest(name, ours) and nearest(found, names):
        raise ValueError(
            f"unknown model {name!r}{nearest(found, names)} (available: {', '.join(ours)}, torchvision's)"
        )
    return None


def _torchvision(otherwise: str) -> Any:
    try:
        import torchvision.models
    except (ImportError, RuntimeError, AttributeError) as error:
        # A torchvision built for another torch fails here: "operator torchvision::nms does not exist".
        raise ValueError(
            f"{otherwise}, and torchvision's models cannot be used ({one_line(error)}): "
            "install torch and torchvision together, in one command, from the same index"
        ) from error
    return torchvision.models


def _create(name: str, shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"model {name!r} needs images of shape (1 or 3, height, width), and a sample has shape {shape}: "
            "set model = 'mlp' or take a dataset of images"
        )
    found = name.replace("-", "_")
    # With auxiliary heads, these two have several outputs in training.
    options = {"aux_logits": False, "init_weights": True} if found in ("googlenet", "inception_v3") else {}
    model: nn.Module = _torchvision(f"model {name!r}").get_model(
        found, weights=None, num_classes=num_outputs, **options
    )
    if shape[0] == 1:
        _see_grey(model, name)
    return model


def _see_grey(model: nn.Module, name: str) -> None:
    """Make the first convolution take a grey image, as if all three channels showed it."""
    from torch import nn

    path, first = next(((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    if path is None or first is None or first.in_channels != 3:
        raise ValueError(
            f"model {name!r} does not start with a convolution of 3 channels: take a dataset of colour images"
        )
    weight = first.weight.detach().sum(dim=1, keepdim=True)
    first.in_channels = 1
    first.weight = nn.Parameter(weight)
