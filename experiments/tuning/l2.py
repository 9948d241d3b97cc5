"""Print the validation loss of a model trained on all data, for coefficients of ``||w||^2 / 2`` in the objective.

::

    python experiments/tuning/l2.py

The demonstration has the power of ten with the least loss. Its data, seeds and validation samples are used here.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from fedpisa.config.run import RunConfig
from fedpisa.datasets.validation import hold_out
from fedpisa.simulation.parts import load_dataset

SEEDS = (100, 101, 102)


def validation_loss(l2: float, seed: int) -> float:
    """Return the mean validation loss of logistic regression on all training samples but the validation samples.

    Parameters
    ----------
    l2
        Coefficient of ``||w||^2 / 2``; the intercept has none.
    seed
        Seed of the split.
    """
    data = load_dataset(RunConfig(dataset="digits", model="logistic", seed=seed))
    held_out = hold_out(data, 0.2, seed)
    x, y = np.asarray(data.x_train).reshape(len(data.x_train), -1), np.asarray(data.y_train)
    model = LogisticRegression(C=1 / (len(held_out.train) * l2), max_iter=10_000, tol=1e-7)
    model.fit(x[held_out.train], y[held_out.train])
    return float(log_loss(y[held_out.validation], model.predict_proba(x[held_out.validation])))


if __name__ == "__main__":
    for l2 in (1e-2, 1e-3, 1e-4, 1e-5):
        print(f"{l2:g}: {fmean(validation_loss(l2, seed) for seed in SEEDS):.3f}")
