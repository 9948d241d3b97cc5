"""Tasks by name, and users' own losses and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedpisa import families
from fedpisa.components import Component

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fedpisa.control.environments import Environments
    from fedpisa.datasets.inputs import Inputs
    from fedpisa.tasks.base import Task
    from fedpisa.tasks.criterion import Criterion
    from fedpisa.tasks.gan import Adversarial
    from fedpisa.tasks.objectives import Objective
    from fedpisa.tasks.sample_quality import SampleQuality

__all__ = ["build", "criterion"]


def criterion(
    component: Component, values: Mapping[str, object], num_outputs: int, labels: NDArray[np.generic] | None
) -> Criterion | Objective | Adversarial:
    """Return what one of the package's tasks knows beside the model, such as its measures."""
    made: Criterion | Objective | Adversarial = families.build(
        component, values, num_outputs=num_outputs, labels=labels
    )
    return made


def build(
    component: Component,
    values: Mapping[str, object],
    module: nn.Module,
    *,
    num_outputs: int,
    labels: NDArray[np.generic] | None,
    test: tuple[Tensor, Tensor],
    pixel_range: Callable[[], tuple[Tensor, Tensor]],
    x_train: NDArray[np.generic] | None = None,
    environments: Environments | None = None,
    seed: int = 0,
    autocast: bool = False,
    inputs: Inputs | None = None,
) -> Task:
    """Return the task that a component describes.

    Parameters
    ----------
    component, values
        The component and the values of its keys.
    module
        The model.
    num_outputs
        Number of the model's outputs that the data need.
    labels
        The training labels; ``None`` if clients bring or make their own.
    test
        Features and targets of the test samples. A user's loss and metrics are tried on some of them.
    pixel_range
        Function that returns the values of a black and of a white pixel by channel, if the test samples are images.
    x_train
        The training features; ``None`` if clients bring or make their own.
    environments
        The clients' environments, if the data set has them.
    seed
        The run's seed.
    autocast, inputs
        See `Task`.

    Raises
    ------
    ValueError
        If a key does not fit, or a user's loss or metrics fail.
    """
    import torch

    from fedpisa.datasets.inputs import require_one
    from fedpisa.rng import seeded
    from fedpisa.tasks.control import Control
    from fedpisa.tasks.criterion import Criterion, OwnCriterion, trial_rows
    from fedpisa.tasks.gan import Adversarial, Gan
    from fedpisa.tasks.module_values import own_attributes
    from fedpisa.tasks.objectives import Objective
    from fedpisa.tasks.supervised import Supervised, supervised

    made = families.build(component, values, num_outputs=num_outputs, labels=labels)
    if isinstance(made, Objective):
        if environments is None:
            raise ValueError(
                f"{component} needs environments: take a dataset that has them, such as 'bandit'"
            )
        return Control(module, made, environments, seed, autocast=autocast)
    if environments is not None:
        raise ValueError(
            f"{component} needs samples, and the dataset has environments: take task = 'ppo' or 'a2c'"
        )
    if isinstance(made, Adversarial):
        require_one(inputs, str(component), "take another task")
        quality = _quality(made, x_train, labels, num_outputs, test[0], pixel_range)
        return Gan(module, made, quality=quality, autocast=autocast)
    if isinstance(made, Criterion):
        made.check(test[1])
        return Supervised(module, made, autocast=autocast, inputs=inputs)
    plain = replace(supervised(module, None), inputs=inputs)
    rows = torch.from_numpy(trial_rows(len(test[0]))).to(test[0].device)
    x, y = (part[rows] for part in test)
    held = plain.holding(plain.initial_params(), plain.initial_buffers())
    with torch.no_grad(), seeded(0, "trial"), own_attributes(module), held:
        outputs = plain.eval_outputs(x)
    own = OwnCriterion.of(made, str(component), outputs.cpu(), y.cpu())
    return Supervised(module, own, autocast=autocast, inputs=inputs)


def _quality(
    rules: Adversarial,
    x_train: NDArray[np.generic] | None,
    labels: NDArray[np.generic] | None,
    num_outputs: int,
    x_test: Tensor,
    pixel_range: Callable[[], tuple[Tensor, Tensor]],
) -> SampleQuality | None:
    """Return what measures the samples of a generator; ``None`` if nothing does."""
    import torch

    from fedpisa.tasks.sample_quality import SampleQuality, own_features

    if not rules.fid_samples:
        return None
    if rules.fid_features:
        if x_test.dim() != 4 or x_test.shape[1] not in (1, 3):
            raise ValueError(
                f"fid-features is for images of one or three channels, and a sample has shape "
                f"{tuple(x_test.shape[1:])}: remove fid-features for features of the same data"
            )
        from fedpisa.tasks._inception import inception_features

        # All sets share the range, whichever is compared first.
        return SampleQuality(
            rules.fid_samples, False, lambda: inception_features(rules.fid_features, *pixel_range())
        )
    if x_train is None or labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"fid-samples = {rules.fid_samples} needs features, and there are no classes of training samples to learn "
            "them from: set fid-features to a file of Inception's weights, or fid-samples = 0"
        )
    x, y = torch.from_numpy(x_train).float(), torch.from_numpy(labels).long()
    return SampleQuality(rules.fid_samples, True, lambda: own_features(x, y, num_outputs))
