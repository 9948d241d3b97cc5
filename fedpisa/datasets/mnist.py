"""MNIST's test half of 10,000 images, read from its two original files."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.base import Dataset, train_test_split
from fedpisa.rng import generator

_ORIGIN = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MD5 = {
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


def mnist_t10k(*, seed: int, data_dir: Path) -> Dataset:
    """Small real MNIST: the 10,000 images of its test half, split 8,000/2,000; 28x28, 10 classes.

    Pixels are divided by 255 and normalised with MNIST's mean 0.1307 and standard deviation 0.3081. The seed draws
    the split, which is stratified. The two files lie in ``data-dir`` or in ``MNIST/raw`` below it, where ``mnist``
    downloads them. Their MD5 sums are checked.

    Raises
    ------
    ValueError
        If a file is missing or is not the original.

    References
    ----------
    Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).
    """
    images, labels = (_read_idx(_find(data_dir, name), md5) for name, md5 in _MD5.items())
    x = ((images[:, None] / 255.0 - 0.1307) / 0.3081).astype(np.float32)
    y = labels.astype(np.int64)
    train, test = train_test_split(y, 0.2, generator(seed, "mnist-t10k-split"))
    return Dataset.of(
        "mnist-t10k", (x[train], y[train]), (x[test], y[test]), num_classes=10, default_model="mlp"
    )


def _find(data_dir: Path, name: str) -> Path:
    for path in (data_dir / name, data_dir / "MNIST" / "raw" / name):
        if os.path.isfile(path):
            return path
    raise ValueError(
        f"{data_dir / name} does not exist; download it from {_ORIGIN}{name} "
        "or set data-dir to the folder that has it"
    )


def _read_idx(path: Path, md5: str) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes: two zeros, type, rank, sizes (big endian), data."""
    packed = path.read_bytes()
    if hashlib.md5(packed, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(
            f"{path} is damaged or another file (its MD5 sum is not {md5}); "
            f"download it again from {_ORIGIN}{path.name}"
        )
    data = gzip.decompress(packed)
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
