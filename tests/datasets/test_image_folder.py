"""Images in folders: their pixels and labels, partitions without reading, and rounds that read what they draw."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedpisa.config.run import RunConfig
from fedpisa.datasets import client_data, image_folder
from fedpisa.families.data import load, partition
from fedpisa.runs.runner import run
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation import federation as federation_module
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.parts import load_dataset

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
COLOURS = {"ant": (200, 30, 40), "bee": (20, 180, 90), "cat": (60, 70, 220)}


def noise(number: int, width: int = 20, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 12 training and 3 test images: a class's colour, with noise in half of them."""
    number = 0
    for part, count in (("train", 12), ("val", 3)):
        for name, colour in COLOURS.items():
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for position in range(count):
                number += 1
                image = Image.new("RGB", (20, 16), colour)
                if position % 2:
                    image = Image.blend(image, noise(number), 0.3)
                image.save(place / f"{position:02}.png")
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is read."""
    counter: Counter[str] = Counter()
    read = image_folder.read_image

    def counted(path: str, resize: int, crop: int) -> Any:
        counter[path] += 1
        return read(path, resize, crop)

    monkeypatch.setattr(image_folder, "read_image", counted)
    return counter


def keys(folder: Path, **more: object) -> dict[str, object]:
    return {
        "dataset": "image-folder",
        "data-dir": str(folder),
        "resize": 16,
        "crop": 16,
        "model": "simple-cnn",
        "num-clients": 3,
        "partitioner": "iid",
        "num-server-rounds": 2,
        "batch-size": 4,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }


def test_pixels_follow_the_formula(folder: Path) -> None:
    """An image of one colour is (colour / 255 - mean) / std in each channel, however it is scaled and cut."""
    data = load("image-folder", data_dir=folder, resize=12, crop=8)
    assert data.generated_test is not None
    x, _ = data.generated_test.rows(np.arange(9))
    assert (x.shape, x.dtype) == ((9, 3, 8, 8), np.float32)
    for label, colour in enumerate(COLOURS.values()):
        value_C = (np.array(colour) / 255 - MEAN) / STD
        assert np.abs(x[3 * label] - value_C[:, None, None]).max() < 1e-6


@pytest.mark.parametrize(("width", "height"), [(20, 16), (16, 21), (9, 9), (7, 40)])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_pixels_are_those_of_torchvisions_transforms(
    tmp_path: Path, width: int, height: int, kind: str
) -> None:
    from torchvision import transforms

    path = tmp_path / f"a.{kind}"
    noise(0, width, height).save(path)
    reference = transforms.Compose(
        [
            transforms.Resize(12),
            transforms.CenterCrop(9),
            transforms.ToTensor(),
            transforms.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )
    expected = reference(Image.open(path).convert("RGB")).numpy()
    assert np.abs(image_folder.read_image(path, 12, 9) - expected).max() < 1e-6


def test_a_place_of_the_image_keeps_its_place(tmp_path: Path) -> None:
    """Rows stay rows: the square in the middle of an image that is red on the left and blue below right."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    pixels[2:, 4:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = image_folder.read_image(tmp_path / "a.png", 4, 4) * STD[:, None, None] + MEAN[:, None, None]
    middle = pixels[:, 2:6].transpose(2, 0, 1) / 255
    assert np.abs(x - middle).max() < 1e-6


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 51).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 4), (51, 51, 51, 9)).save(tmp_path / "clear.png")
    for name in ("grey", "clear"):
        x = image_folder.read_image(tmp_path / f"{name}.png", 4, 4)
        assert np.abs(x[:, 0, 0] - (0.2 - MEAN) / STD).max() < 1e-6


def test_labels_are_the_sorted_folders(folder: Path, reads: Counter[str]) -> None:
    (folder / "train" / "bee" / "more").mkdir()
    noise(5).save(folder / "train" / "bee" / "more" / "x.JPEG")
    (folder / "train" / "bee" / "notes.txt").write_text("no image")
    (folder / "train" / ".cache").mkdir()
    data = load("image-folder", data_dir=folder)
    assert data.classes == ("ant", "bee", "cat")
    assert data.split_labels is not None
    assert np.bincount(data.split_labels).tolist() == [12, 13, 12]
    assert data.test_labels is not None
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.shape == (3, 224, 224)
    # An example of each part.
    assert sum(reads.values()) == 2


def test_the_folder_test_serves_as_well(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    assert load("image-folder", data_dir=folder, resize=8, crop=8).num_test == 9


class TestPartition:
    def test_by_label_reads_no_image(self, folder: Path, reads: Counter[str]) -> None:
        data = load("image-folder", data_dir=folder, resize=8, crop=8)
        before = sum(reads.values())
        _, parts = partition(
            data, "label-dirichlet", num_clients=3, dirichlet_alpha=0.3, min_partition_size=2
        )
        assert sum(reads.values()) == before
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(36))
        labels = np.repeat([0, 1, 2], 12)
        assert len({tuple(np.bincount(labels[part], minlength=3)) for part in parts}) == 3

    @pytest.mark.parametrize("partitioner", ["label-dirichlet", "labels-per-client", "shards", "iid"])
    def test_a_client_has_the_images_of_its_part(self, folder: Path, partitioner: str) -> None:
        more: dict[str, object] = {"min-partition-size": 2} if partitioner == "label-dirichlet" else {}
        federation = Federation(RunConfig.from_mapping(keys(folder, partitioner=partitioner) | more))
        data, paths = federation.data, sorted((folder / "train").glob("*/*"))
        assert len(data.x) == 1
        for client_id, part in enumerate(federation.partition):
            x, y = data.client(client_id)
            assert y.tolist() == [row // 12 for row in part]
            expected = np.stack([image_folder.read_image(paths[row], 16, 16) for row in part])
            assert np.array_equal(x.numpy(), expected)
        counts = federation.split_arrays()["labels"]
        assert counts.sum(0).tolist() == [12, 12, 12]

    def test_noise_on_features_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match='when they are needed: take another partitioner such as "iid"'):
            Federation(RunConfig.from_mapping(keys(folder, partitioner="feature-noise")))

    def test_the_digest_knows_the_split(self, folder: Path) -> None:
        first, again, other = (
            Federation(RunConfig.from_mapping(keys(folder, seed=seed))).data_digest() for seed in (0, 0, 1)
        )
        assert first == again != other


@pytest.mark.parametrize("algorithm", ["fedavg", "sisa"])
def test_engines_agree(folder: Path, algorithm: str) -> None:
    more = {
        "algorithm": algorithm,
        "partitioner": "label-dirichlet",
        "min_partition_size": 2,
        "dtype": "float64",
    }
    stacked, alone = (run(keys(folder, engine=engine, **more)) for engine in ("vmap", "loop"))
    assert len(stacked.rows) == 3
    assert stacked.rows[-1]["test_loss"] != stacked.rows[0]["test_loss"]
    for name, value in alone.parameters.items():
        assert np.abs(stacked.parameters[name] - value).max() < 1e-9


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_run_is_that_of_stored_images(folder: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as with all images in memory."""
    lazy = run(keys(folder, engine=engine, validation_fraction=0.25))

    def stored(config: RunConfig) -> Any:
        data = load_dataset(config)
        assert data.generated is not None
        assert data.generated_test is not None
        x, y = data.generated.rows(np.arange(36))
        data = dataclasses.replace(data, x_train=x, y_train=y, generated=None)
        x, y = data.generated_test.rows(np.arange(9))
        return dataclasses.replace(data, x_test=x, y_test=y, generated_test=None, test_labels=None)

    monkeypatch.setattr(federation_module, "load_dataset", stored)
    kept = run(keys(folder, engine=engine, validation_fraction=0.25))
    for name, value in kept.parameters.items():
        assert np.array_equal(lazy.parameters[name], value)
    for column in ("validation_loss", "test_loss", "test_accuracy"):
        assert lazy.history[column].tolist() == kept.history[column].tolist()
    assert lazy.majority_share == kept.majority_share == 1 / 3


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_round_reads_what_it_draws(folder: Path, reads: Counter[str], engine: str) -> None:
    """Two steps of three images with one of three clients: six images in the round, each once."""
    more = {
        "algorithm": "localsgd",
        "local_steps": 2,
        "batch_size": 3,
        "fraction_train": 0.3,
        "engine": engine,
    }
    simulation = Simulation(RunConfig.from_mapping(keys(folder, eval_every=2, **more)))
    rows = simulation.rows()
    next(rows)
    reads.clear()
    next(rows)
    assert list(reads.values()) == [1] * 6


def test_validation_samples_are_set_aside(folder: Path, reads: Counter[str]) -> None:
    config = RunConfig.from_mapping(keys(folder, validation_fraction=0.25, eval_samples=6))
    federation = Federation(config)
    assert len(federation.validation_rows) == 9
    validation, test = (federation.evaluated[part] for part in ("validation", "test"))
    assert (validation.num_samples, test.num_samples) == (6, 6)
    assert federation.data.num_samples == 27
    used = np.sort(np.concatenate([federation.validation_rows, *federation.partition]))
    assert np.array_equal(used, np.arange(36))
    # Nine examples of the test images for the task; one of each part, of the rest, of the split and of what is used.
    assert sum(reads.values()) <= 6 + 8


def test_an_evaluation_reads_each_image_once(folder: Path, reads: Counter[str]) -> None:
    """An evaluation of the initial model reads the test and validation images that it uses, batch by batch."""
    config = RunConfig.from_mapping(keys(folder, validation_fraction=0.25, eval_samples=6))
    rows = Simulation(config).rows()
    reads.clear()
    next(rows)
    assert list(reads.values()) == [1] * 12


def test_the_memory_of_an_evaluation_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of at most four images of 3 kB give the measures of one batch."""
    federation = Federation(RunConfig.from_mapping(keys(folder, dtype="float64")))
    task, test, sizes = federation.task, federation.test, list[int]()
    vectors = task.initial_params(), task.initial_buffers()
    whole = task.evaluate_set(*vectors, test)
    monkeypatch.setattr(client_data, "PIECE", 4 * 3 * 16 * 16 * 8)
    outputs = type(task).eval_outputs

    def noted(task: Any, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return outputs(task, x)

    monkeypatch.setattr(type(task), "eval_outputs", noted)
    assert task.evaluate_set(*vectors, test) == pytest.approx(whole, rel=1e-12)
    # A last batch of one sample would have no statistics.
    assert sizes == [3, 3, 3]


def test_all_samples_weigh_the_classes(folder: Path) -> None:
    """class-weights = "balanced" counts the folders, not the one example that is read."""
    for number in range(12, 24):
        noise(number).save(folder / "train" / "ant" / f"{number}.png")
    more = {"task": "classification", "class_weights": "balanced", "model": "logistic"}
    task = Federation(RunConfig.from_mapping(keys(folder, **more))).task
    weights_C = torch.as_tensor(task.criterion.weights)  # type: ignore[attr-defined]
    assert weights_C.tolist() == pytest.approx([48 / (3 * 24), 48 / (3 * 12), 48 / (3 * 12)])


class TestRefusals:
    def test_other_classes_in_the_parts(self, folder: Path) -> None:
        (folder / "val" / "cat").rename(folder / "val" / "dog")
        with pytest.raises(
            ValueError, match=r"val has no folder of class 'cat'.*give both the same classes$"
        ):
            load("image-folder", data_dir=folder)
        (folder / "train" / "cat").rename(folder / "train" / "eel")
        (folder / "val" / "eel").mkdir()
        with pytest.raises(ValueError, match=r"train has no folder of class 'dog', which .*val has"):
            load("image-folder", data_dir=folder)

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_a_part_is_missing(self, folder: Path, part: str) -> None:
        (folder / part).rename(folder / "gone")
        with pytest.raises(
            ValueError, match=rf"{part} does not exist; set data-dir to the folder that has train/"
        ):
            load("image-folder", data_dir=folder)

    def test_an_empty_class(self, folder: Path) -> None:
        for path in (folder / "train" / "bee").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=r"bee has no image; put images there"):
            load("image-folder", data_dir=folder)

    def test_one_class(self, folder: Path) -> None:
        for part in ("train", "val"):
            for name in ("bee", "cat"):
                (folder / part / name).rename(folder / f"{part}-{name}")
        with pytest.raises(ValueError, match="only 1 class"):
            load("image-folder", data_dir=folder)

    @pytest.mark.parametrize("content", [b"", b"no image", None])
    def test_an_unreadable_image(self, folder: Path, content: bytes | None) -> None:
        path = folder / "val" / "bee" / "01.png"
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
        with pytest.raises(
            ValueError, match=r"bee.01\.png cannot be read as an image .*; replace or remove it$"
        ):
            run(keys(folder))

    def test_an_unreadable_training_image_in_a_round(self, folder: Path) -> None:
        for path in list((folder / "train").glob("*/*.png"))[1:]:
            path.write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"png cannot be read as an image"):
            run(keys(folder))

    def test_a_crop_that_is_too_large(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="crop = 9 is more than resize = 8: lower crop or raise resize"):
            load("image-folder", data_dir=folder, resize=8, crop=9)

    def test_no_pillow(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(ValueError, match=r"needs Pillow .*: run pip install pillow"):
            load("image-folder", data_dir=folder)
