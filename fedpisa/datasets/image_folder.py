"""Images of your own in one folder for each class, read when their samples are needed."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.components.names import one_line
from fedpisa.datasets.base import Dataset, Generated, Samples
from fedpisa.typing import PositiveInt

_KINDS: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD: Final = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def image_folder(*, data_dir: Path, resize: PositiveInt = 256, crop: PositiveInt = 224) -> Dataset:
    """Images of your own in ImageNet's layout, a folder for each class; they are read when needed.

    ``data-dir`` has ``train/<class>/`` with a class's training images, and ``val/<class>/``, or ``test/<class>/``, with
    its test images: .jpg, .png and others that Pillow reads. Classes are numbered in the order of their folders' names.

    An image becomes RGB. Its shorter side is scaled to ``resize`` pixels, and the square of ``crop`` pixels in the
    middle is kept. Pixels are divided by 255 and normalised with ImageNet's means (0.485, 0.456, 0.406) and standard
    deviations (0.229, 0.224, 0.225). A step reads only the training images that it needs, and an evaluation reads the
    test images batch by batch, so that memory does not grow with their number. Each evaluation reads them again:
    ``eval-every`` and ``eval-samples`` bound the time.

    ``augment = "resized-crop-flip"`` cuts its boxes from these samples, which Pillow has already scaled down without
    aliasing, and enlarges them. torchvision's ``RandomResizedCrop`` cuts them from the file's pixels and scales them
    down. Boxes are distributed alike, but lack the file's resolution and what lies outside the square in the middle:
    ``resize = crop`` keeps most of the image.

    Parameters
    ----------
    resize
        Length of an image's shorter side after scaling, in pixels.
    crop
        Height and width of a sample in pixels, at most ``resize``.

    Raises
    ------
    ValueError
        If a folder is missing or has no image, the parts have different classes, an image cannot be read, or Pillow is
        not installed.
    """
    if crop > resize:
        raise ValueError(f"crop = {crop} is more than resize = {resize}: lower crop or raise resize")
    train_dir = data_dir / "train"
    test_dir = next((d for d in (data_dir / "val", data_dir / "test") if os.path.isdir(d)), None)
    if not os.path.isdir(train_dir) or test_dir is None:
        missing = data_dir / "val" if os.path.isdir(train_dir) else train_dir
        raise ValueError(
            f"{missing} does not exist; set data-dir to the folder that has train/<class>/ and val/<class>/"
        )
    classes = _classes(train_dir)
    differing = sorted(set(classes) ^ set(_classes(test_dir)))
    if differing:
        lacking, other = (test_dir, train_dir) if differing[0] in classes else (train_dir, test_dir)
        raise ValueError(
            f"{lacking} has no folder of class {differing[0]!r}, which {other} has; give both the same classes"
        )
    train, test = (_Images.of(folder, classes, resize, crop) for folder in (train_dir, test_dir))
    return Dataset.of(
        "image-folder",
        train.samples(np.zeros(1, np.int64)),
        test.samples(np.zeros(1, np.int64)),
        num_classes=len(classes),
        classes=classes,
        labels=train.labels_n,
        test_labels=test.labels_n,
        generated=train.generated(),
        generated_test=test.generated(),
        default_model="resnet18",
    )


@final
@dataclass(frozen=True)
class _Images:
    """The images of one part: paths and labels, sorted by class and path."""

    paths: Sequence[str]
    labels_n: NDArray[np.int64]
    resize: int
    crop: int

    @classmethod
    def of(cls, folder: Path, classes: Sequence[str], resize: int, crop: int) -> _Images:
        files = [_files(folder / name) for name in classes]
        labels_n = np.repeat(np.arange(len(classes)), [len(part) for part in files])
        return cls([path for part in files for path in part], labels_n, resize, crop)

    def generated(self) -> Generated:
        """Return the images as samples that are read when they are needed."""
        return Generated(
            np.array([len(self.labels_n)]), lambda client_n, position_n: self.samples(position_n)
        )

    def samples(self, position_n: NDArray[np.int64]) -> Samples:
        """Return the images and labels at some positions; a position that is there twice is read once."""
        once, back_n = np.unique(position_n, return_inverse=True)
        x = np.empty((len(once), 3, self.crop, self.crop), np.float32)
        for row, position in enumerate(once):
            x[row] = read_image(self.paths[position], self.resize, self.crop)
        return x if np.array_equal(once, position_n) else x[back_n], self.labels_n[position_n]


def read_image(path: str | Path, resize: int, crop: int) -> NDArray[np.float32]:
    """Return the normalised image ``(3, crop, crop)`` of a file; see `image_folder`.

    Raises
    ------
    ValueError
        If the file is no image or is damaged, or Pillow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (8, 6), "white").save(f"{folder}/white.png")
    ...     read_image(f"{folder}/white.png", resize=4, crop=2)[:, 0, 0].round(2)
    array([2.25, 2.43, 2.64], dtype=float32)
    """
    image_module = _pillow()
    try:
        with image_module.open(path) as file:
            image = file.convert("RGB")
    except (
        *(OSError, SyntaxError, ValueError, EOFError, struct.error),
        image_module.DecompressionBombError,
    ) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({one_line(error)}); replace or remove it"
        ) from error
    width, height = image.size
    shorter = min(width, height)
    size = width * resize // shorter, height * resize // shorter
    left, top = (round((length - crop) / 2) for length in size)
    image = image.resize(size, image_module.Resampling.BILINEAR).crop((left, top, left + crop, top + crop))
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    return (pixels / np.float32(255) - _MEAN) / _STD


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of a part's folders; hidden ones are no classes."""
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _files(folder: Path) -> list[str]:
    """Return the sorted paths of the images in a class's folder and the folders in it."""
    found = sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_KINDS) and not name.startswith(".")
    )
    if not found:
        raise ValueError(f"{folder} has no image; put images there (.jpg, .png ...), or remove the folder")
    return found


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            f"dataset image-folder needs Pillow ({one_line(error)}): run pip install pillow"
        ) from error
    return Image
