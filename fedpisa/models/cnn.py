"""Small convolutional networks from the literature on federated learning."""

from __future__ import annotations

from torch import nn


def simple_cnn(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """NIID-Bench's convolutional network: 6 and 16 filters of 5x5 with pooling, then 120 and 84 units.

    As in [1]_, convolutions are not padded. Each is followed by ReLU and 2x2 max-pooling.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of one image, at least 16x16.
    num_outputs
        Number of classes.

    Raises
    ------
    ValueError
        If a sample is not an image or is too small.

    References
    ----------
    .. [1] Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022.

    Examples
    --------
    >>> sum(p.numel() for p in simple_cnn((1, 28, 28), 10).parameters())
    44426
    >>> sum(p.numel() for p in simple_cnn((3, 32, 32), 10).parameters())
    62006
    """
    channels, height, width = image_shape("simple-cnn", shape, smallest=16)
    flat = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(flat, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_outputs)),
    )


def leaf_cnn(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Convolutional network of FedAvg and LEAF: 32 and 64 filters of 5x5 with pooling, then 512 units.

    As in [1]_ and [2]_, convolutions keep the image's size. Each is followed by ReLU and 2x2 max-pooling.
    For 28x28 grey images and ten classes the network has the 1,663,370 parameters of [1]_.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of one image, at least 4x4.
    num_outputs
        Number of classes.

    Raises
    ------
    ValueError
        If a sample is not an image or is too small.

    References
    ----------
    .. [1] McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
       Networks from Decentralized Data", AISTATS 2017.
    .. [2] Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv 1812.01097.

    Examples
    --------
    >>> sum(p.numel() for p in leaf_cnn((1, 28, 28), 10).parameters())
    1663370
    """
    channels, height, width = image_shape("leaf-cnn", shape, smallest=4)
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 512), nn.ReLU()),
        nn.Linear(512, num_outputs),
    )


def image_shape(model: str, shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Return channels, height and width of a model's images, or raise `ValueError` if a sample is none."""
    if len(shape) != 3:
        raise ValueError(
            f"model {model!r} needs images (channels, height, width), and a sample has shape {shape}: "
            "set model = 'mlp' or use a dataset of images"
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ValueError(
            f"model {model!r} needs images of at least {smallest}x{smallest}, not {height}x{width}: "
            "set model = 'mlp' or 'logistic'"
        )
    return channels, height, width
