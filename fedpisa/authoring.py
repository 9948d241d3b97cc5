"""What one writes an algorithm, a preconditioner, a model, a data set or a partitioner with: one import line.

A part of one's own is named ``module:attribute`` wherever a name is taken. ``CONTRIBUTING.md`` says what each part has
to be.
"""

from fedpisa.clients.base import Arrays, Gradient, LocalResult, LocalUpdate, MiniBatches, scalar_like
from fedpisa.clients.batches import BatchSampler, BatchSize, Epochs, Periodic
from fedpisa.clients.dual import DualUpdate, LagrangianSGD
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner
from fedpisa.clients.sgd import LocalSGDUpdate, SGDSteps, SGDUpdate
from fedpisa.datasets.base import Dataset, Features, Generated, Indices, Targets, train_test_split
from fedpisa.rng import generator, hashed, torch_seed
from fedpisa.strategies.averaging import LocalTraining, ModelAveraging
from fedpisa.strategies.base import Algorithm, Cohort, Weighting, norm, remember, shares, weighted_mean
from fedpisa.strategies.primaldual import PrimalDual
from fedpisa.strategies.schedules import Factor
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.task import Task
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
    "remember",
    "scalar_like",
    "shares",
    "torch_seed",
    "train_test_split",
    "weighted_mean",
]
