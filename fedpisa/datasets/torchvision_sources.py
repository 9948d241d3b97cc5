"""Image data from torchvision, which downloads missing files, shows the progress and verifies the checksums.

Pixels are divided by 255 and normalised per channel with the training set's mean and standard deviation, which each
source's docstring gives.
"""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpisa.components.names import one_line
from fedpisa.datasets.base import Dataset

_TRAIN_AND_TEST: tuple[Mapping[str, object], ...] = ({"train": True}, {"train": False})


def mnist(*, data_dir: Path) -> Dataset:
    """MNIST: handwritten digits, 28x28 grey, 10 classes, 60,000 + 10,000.

    Normalised with mean 0.1307 and standard deviation 0.3081.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition,
    Proceedings of the IEEE, 1998.
    """
    parts = _read("MNIST", data_dir, "MNIST/raw/ (the four *-ubyte.gz files)")
    return _dataset("mnist", parts, [0.1307], [0.3081], 10)


def fashion_mnist(*, data_dir: Path) -> Dataset:
    """Fashion-MNIST: pictures of clothes, 28x28 grey, 10 classes, 60,000 + 10,000.

    Normalised with mean 0.2860 and standard deviation 0.3530.

    References
    ----------
    H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747.
    """
    parts = _read("FashionMNIST", data_dir, "FashionMNIST/raw/ (the four *-ubyte.gz files)")
    return _dataset("fashion-mnist", parts, [0.2860], [0.3530], 10)


def kmnist(*, data_dir: Path) -> Dataset:
    """Kuzushiji-MNIST: cursive Japanese characters, 28x28 grey, 10 classes, 60,000 + 10,000.

    Normalised with mean 0.1918 and standard deviation 0.3483.

    References
    ----------
    T. Clanuwat et al., Deep Learning for Classical Japanese Literature, arXiv:1812.01718.
    """
    parts = _read("KMNIST", data_dir, "KMNIST/raw/ (the four *-ubyte.gz files)")
    return _dataset("kmnist", parts, [0.1918], [0.3483], 10)


def emnist(
    *,
    data_dir: Path,
    emnist_split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced",
) -> Dataset:
    """EMNIST: handwritten letters and digits, 28x28 grey, 10 to 62 classes, up to 697,932 + 116,323.

    Normalised with mean 0.1736 and standard deviation 0.3317 (those of ``byclass``) for all splits. The
    files hold transposed images, which are turned upright. The classes of ``letters`` are numbered from 0.

    Parameters
    ----------
    emnist_split
        Name of EMNIST's split: ``balanced`` has 47 classes of equal size, ``byclass`` has all 62 classes.

    References
    ----------
    G. Cohen, S. Afshar, J. Tapson and A. van Schaik, EMNIST: an extension of MNIST to handwritten letters,
    arXiv:1702.05373.
    """
    kinds = [{"split": emnist_split, **kind} for kind in _TRAIN_AND_TEST]
    files = f"EMNIST/raw/ (emnist-{emnist_split}-* unpacked, or gzip.zip)"
    parts = _read("EMNIST", data_dir, files, kinds)
    first = 1 if emnist_split == "letters" else 0
    upright = [(images.swapaxes(1, 2), labels - first) for images, labels in parts]
    classes = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26}.get(emnist_split, 10)
    return _dataset("emnist", upright, [0.1736], [0.3317], classes)


def usps(*, data_dir: Path) -> Dataset:
    """USPS: digits from envelopes, 16x16 grey, 10 classes, 7,291 + 2,007.

    Normalised with mean 0.2469 and standard deviation 0.2989.

    References
    ----------
    J. J. Hull, A database for handwritten text recognition research, IEEE TPAMI, 1994.
    """
    return _dataset("usps", _read("USPS", data_dir, "usps.bz2 and usps.t.bz2"), [0.2469], [0.2989], 10)


def svhn(*, data_dir: Path) -> Dataset:
    """SVHN: house numbers from photographs, 32x32 colour, 10 classes, 73,257 + 26,032.

    Normalised with means (0.4377, 0.4438, 0.4728) and standard deviations (0.1980, 0.2010, 0.1970).

    References
    ----------
    Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, NIPS Workshop 2011.
    """
    kinds = ({"split": "train"}, {"split": "test"})
    parts = _read("SVHN", data_dir, "train_32x32.mat and test_32x32.mat", kinds)
    return _dataset("svhn", parts, [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970], 10)


def cifar10(*, data_dir: Path) -> Dataset:
    """CIFAR-10: small photographs, 32x32 colour, 10 classes, 50,000 + 10,000.

    Normalised with means (0.4914, 0.4822, 0.4465) and standard deviations (0.2470, 0.2435, 0.2616).

    References
    ----------
    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    parts = _channels_first(_read("CIFAR10", data_dir, "cifar-10-python.tar.gz"))
    return _dataset("cifar10", parts, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], 10)


def cifar100(*, data_dir: Path) -> Dataset:
    """CIFAR-100: small photographs, 32x32 colour, 100 (fine) classes, 50,000 + 10,000.

    Normalised with means (0.5071, 0.4865, 0.4409) and standard deviations (0.2673, 0.2564, 0.2762).

    References
    ----------
    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    parts = _channels_first(_read("CIFAR100", data_dir, "cifar-100-python.tar.gz"))
    return _dataset("cifar100", parts, [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762], 100)


_Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _torchvision_datasets() -> Any:
    """Import ``torchvision.datasets``, or raise a ValueError of one line."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"torchvision cannot be imported ({one_line(error)}): torch and torchvision do not match; "
            "install both together: pip install --force-reinstall torch torchvision"
        ) from error
    return datasets


def _read(
    class_name: str, data_dir: Path, files: str, kinds: Sequence[Mapping[str, object]] = _TRAIN_AND_TEST
) -> list[_Part]:
    """Return images and labels of the training and of the test part in torchvision's layout."""
    source = getattr(_torchvision_datasets(), class_name)
    try:
        parts = [source(data_dir, download=True, **kind) for kind in kinds]
    except (
        *(RuntimeError, OSError, EOFError, ValueError, AssertionError),
        *(zipfile.BadZipFile, tarfile.TarError, pickle.UnpicklingError),
    ) as error:
        raise ValueError(
            f"{class_name} cannot be read from {data_dir} nor downloaded to it ({one_line(error)}); "
            f"connect to a network, put the original files there ({files}) in place of damaged ones, "
            "or set data-dir"
        ) from error
    return [
        (np.asarray(part.data), np.asarray(part.labels if class_name == "SVHN" else part.targets, np.int64))
        for part in parts
    ]


def _channels_first(parts: Sequence[_Part]) -> list[_Part]:
    return [(np.moveaxis(images, -1, 1), labels) for images, labels in parts]


def _dataset(
    name: str, parts: Sequence[_Part], mean: Sequence[float], std: Sequence[float], num_classes: int
) -> Dataset:
    """Normalise pixels ``(n, height, width)`` or ``(n, channels, height, width)`` per channel."""
    train, test = ((_normalise(images, mean, std), labels) for images, labels in parts)
    model = "mlp" if len(mean) == 1 else "simple-cnn"
    return Dataset.of(name, train, test, num_classes=num_classes, default_model=model)


def _normalise(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    x = images.reshape(len(images), len(mean), *images.shape[-2:]).astype(np.float32)
    x -= 255 * np.array(mean, np.float32)[:, None, None]
    x /= 255 * np.array(std, np.float32)[:, None, None]
    return x
