"""All names for authors of algorithms, preconditioners, models, data sets and partitioners, in one module.

A configuration names a user's component as ``module:attribute``. ``CONTRIBUTING.md`` describes each kind of component.
"""

from fedpisa.clients.base import Arrays, Gradient, LocalResult, LocalUpdate, MiniBatches, scalar_like
from fedpisa.clients.batches import BatchSampler, BatchSize, Epochs, Periodic
from fedpisa.clients.dual import DualUpdate, LagrangianSGD
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner
from fedpisa.clients.sgd import LocalSGDUpdate, SGDSteps, SGDUpdate
from fedpisa.control.environments import Environment, Environments, Moved
from fedpisa.control.gymnasium_api import of_gymnasium
from fedpisa.datasets.base import Dataset, Features, Generated, Indices, Targets, train_test_split
from fedpisa.rng import generator, hashed, torch_seed
from fedpisa.strategies.averaging import LocalTraining, ModelAveraging
from fedpisa.strategies.base import Algorithm, Cohort, Weighting, norm, remember, shares, weighted_mean
from fedpisa.strategies.primaldual import PrimalDual
from fedpisa.strategies.schedules import Factor
from fedpisa.tasks.base import Task
from fedpisa.tasks.layout import ParamLayout
from fedpisa.typing import (
    Bytes,
    Decay,
    Fraction,
    InverseStepSize,
    NonNegative,
    NonNegativeInt,
    NonNegativeInverseStepSize,
    Positive,
    PositiveInt,
    Probability,
    StepSize,
)

__all__ = [
    "Algorithm",
    "Arrays",
    "BatchSampler",
    "BatchSize",
    "Bytes",
    "Cohort",
    "Dataset",
    "Decay",
    "Derivatives",
    "DualUpdate",
    "Environment",
    "Environments",
    "Epochs",
    "Factor",
    "Features",
    "Fraction",
    "Generated",
    "Gradient",
    "Indices",
    "InverseStepSize",
    "LagrangianSGD",
    "LocalResult",
    "LocalSGDUpdate",
    "LocalTraining",
    "LocalUpdate",
    "MiniBatches",
    "ModelAveraging",
    "Moved",
    "NonNegative",
    "NonNegativeInt",
    "NonNegativeInverseStepSize",
    "ParamLayout",
    "Periodic",
    "Positive",
    "PositiveInt",
    "Preconditioner",
    "PrimalDual",
    "Probability",
    "SGDSteps",
    "SGDUpdate",
    "StepSize",
    "Targets",
    "Task",
    "Weighting",
    "generator",
    "hashed",
    "norm",
    "of_gymnasium",
    "remember",
    "scalar_like",
    "shares",
    "torch_seed",
    "train_test_split",
    "weighted_mean",
]
