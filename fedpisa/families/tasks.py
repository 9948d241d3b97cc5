"""Tasks by name, and users' own losses and metrics."""

from __future__ import annotations

from collections.abc import Mapping
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
    from fedpisa.tasks.objectives import Objective

__all__ = ["build", "criterion"]


def criterion(
    component: Component, values: Mapping[str, object], num_outputs: int, labels: NDArray[np.generic] | None
) -> Criterion | Objective:
    """Return what one of the package's tasks knows beside the model, such as its measures."""
    made: Criterion | Objective = families.build(component, values, num_outputs=num_outputs, labels=labels)
    return made


def build(
    component: Component,
    values: Mapping[str, object],
    module: nn.Module,
    *,
    num_outputs: int,
    labels: NDArray[np.generic] | None,
    test: tuple[Tensor, Tensor],
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

    from fedpisa.rng import seeded
    from fedpisa.tasks.control import Control
    from fedpisa.tasks.criterion import Criterion, OwnCriterion, trial_rows
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
