"""How near generated samples are to real ones: Frechet and kernel distances of a network's features.

Shapes: ``n`` samples, ``D`` features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedpisa.rng import seeded
from fedpisa.tasks.frechet import frechet_distance, kernel_distance
from fedpisa.tasks.measures import Measure

NUM_FEATURES: Final = 64
_EPOCHS, _BATCH_SIZE, _RATE = 5, 128, 1e-3
_MOST_KEPT: Final = 8
_KEPT: Final[dict[tuple[str, int, int], nn.Module]] = {}
"""Networks that were trained before, by samples, number of classes and number of threads, for the runs of a study."""


@final
class SampleQuality:
    """The distances between real and generated samples.

    Parameters
    ----------
    count
        Number of samples to generate.
    is_own
        Whether the features are those of a small classifier of the same data. The columns are then ``fid_own`` and
        ``kid_own``, because their numbers are not comparable with those of Inception.
    make_features
        Function that makes the features' network, a function from samples to ``(n, D)``; called once, when samples
        are first compared.
    """

    def __init__(
        self, count: int, is_own: bool, make_features: Callable[[], Callable[[Tensor], Tensor]]
    ) -> None:
        self.count, self.is_own, self.make_features = count, is_own, make_features
        self._features: Callable[[Tensor], Tensor] | None = None
        self._real: list[tuple[Tensor, Tensor]] = []

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The Frechet and the kernel distance."""
        return measures_of(self.is_own)

    @torch.no_grad()
    def __call__(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return the distances by column."""
        if self._features is None:
            self._features = self.make_features()
        # Each evaluation has views of the same memory, which the kept ones hold on to.
        ours = next(
            (found for x, found in self._real if x.data_ptr() == real.data_ptr() and x.shape == real.shape),
            None,
        )
        if ours is None:
            ours = in_parts(self._features, real)
            # The same test and validation samples come again in each evaluation, and those of clients do not.
            self._real = [*self._real, (real, ours)][:2]
        theirs = in_parts(self._features, generated)
        distances = frechet_distance(ours, theirs), kernel_distance(ours, theirs)
        return {measure.column: value for measure, value in zip(self.measures, distances, strict=True)}


def measures_of(is_own: bool) -> tuple[Measure, ...]:
    """Return the measures of features of Inception, or of an own classifier.

    Examples
    --------
    >>> [measure.column for measure in measures_of(True)]
    ['fid_own', 'kid_own']
    """
    end, of = ("_own", " of own features") if is_own else ("", "")
    return (
        Measure(f"fid{end}", f"Frechet distance{of}" if is_own else "FID", higher_is_better=False),
        Measure(f"kid{end}", f"kernel distance{of}" if is_own else "KID", higher_is_better=False),
    )


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 256) -> Tensor:
    """Return a function of samples, computed for some of them at a time."""
    return torch.cat([function(part) for part in torch.split(x, size)])


def own_features(x: Tensor, y: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Return the features of a small network that was trained to tell classes apart.

    It has the same initial weights and mini-batches in every run, so that runs on the same training samples can be
    compared, also with different seeds. It is trained on the processor, in float32, and kept for further runs of this
    process on the same samples.

    Parameters
    ----------
    x, y
        The training samples and their classes.
    num_classes
        Number of classes.

    Examples
    --------
    >>> x = torch.zeros(8, 1, 8, 8)
    >>> own_features(x, torch.arange(8) % 2, 2)(x).shape
    torch.Size([8, 64])
    """
    key = _digest(x, y), num_classes, torch.get_num_threads()
    if key not in _KEPT:
        if len(_KEPT) == _MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = _trained(x, y, num_classes)
    body = _KEPT[key]

    def features(samples: Tensor) -> Tensor:
        found: Tensor = body(samples.to("cpu", torch.float32))
        return found

    return features


def _trained(x: Tensor, y: Tensor, num_classes: int) -> nn.Module:
    with seeded(0, "fid-features"), torch.enable_grad():
        body = _network(tuple(x.shape[1:]))
        model = nn.Sequential(body, nn.Linear(NUM_FEATURES, num_classes))
        optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
        for _ in range(_EPOCHS):
            for rows in torch.split(torch.randperm(len(x)), _BATCH_SIZE):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[rows]), y[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return body.eval().requires_grad_(False)


def _digest(*tensors: Tensor) -> str:
    """Return a digest of shapes, types and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _network(shape: tuple[int, ...]) -> nn.Module:
    """Return a network from samples to features: of convolutions for images of at least 8x8, else of dense layers."""
    if len(shape) != 3 or min(shape[1:]) < 8:
        size = int(torch.Size(shape).numel())
        dense = nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, NUM_FEATURES), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *dense)
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, NUM_FEATURES),
        nn.ReLU(),
    )
