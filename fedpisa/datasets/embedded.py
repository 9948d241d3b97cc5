"""Real data that a dependency ships: nothing to download."""

from __future__ import annotations

import numpy as np

from fedpisa.datasets.base import Dataset, train_test_split
from fedpisa.rng import generator


def digits(*, seed: int) -> Dataset:
    """Real 8x8 images of handwritten digits, 10 classes: 1,438 training and 359 test samples.

    The UCI optical recognition test set as scikit-learn ships it. Pixels 0 to 16 are divided by 16. The
    seed draws the 80/20 split, which is stratified.

    References
    ----------
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998.

    Examples
    --------
    >>> data = digits(seed=0)
    >>> data.x_train.shape, data.x_test.shape, data.num_classes
    ((1438, 1, 8, 8), (359, 1, 8, 8), 10)
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    train, test = train_test_split(y, 0.2, generator(seed, "digits-split"))
    return Dataset.of("digits", (x[train], y[train]), (x[test], y[test]), num_classes=10, default_model="mlp")
