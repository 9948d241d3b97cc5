"""Embedded, generated and downloaded data, with a one-line error if files are missing or damaged."""

from __future__ import annotations

import bz2
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpisa.datasets import torchvision_sources
from fedpisa.families import available
from fedpisa.families.data import load

FindData = Callable[..., Path]


def test_importing_is_light() -> None:
    """Importing the package and listing names import no heavy library."""
    code = (
        "import sys, fedpisa.datasets, fedpisa.families as c; c.available('dataset'); "
        "c.available('partitioner'); "
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_names() -> None:
    assert set(available("dataset")) == {
        *("digits", "synthetic", "quadratic", "libsvm", "a9a", "mnist-t10k", "file", "image-folder"),
        *("tinyshakespeare", "ptb", "text", "recipes", "bandit", "gymnasium"),
        *("mnist", "fashion-mnist", "emnist", "kmnist", "usps", "svhn", "cifar10", "cifar100"),
    }


def test_unknown_name_and_key() -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'digit'; did you mean 'digits'\?"):
        load("digit")
    with pytest.raises(ValueError, match="unknown key 'split' for dataset 'digits'"):
        load("digits", split=1)


class TestDigits:
    def test_real_images_stratified_and_seeded(self) -> None:
        data = load("digits", seed=3)
        assert data.x_train.shape == (1438, 1, 8, 8)
        assert data.x_test.shape == (359, 1, 8, 8)
        assert data.x_train.dtype == np.float32
        assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
        share = np.bincount(data.y_test) / (np.bincount(data.y_test) + np.bincount(data.y_train))
        assert np.abs(share - 0.2).max() < 0.005
        assert np.array_equal(data.x_train, load("digits", seed=3).x_train)
        assert not np.array_equal(data.y_test, load("digits", seed=4).y_test)


class TestSynthetic:
    def test_every_client_in_training_and_test(self) -> None:
        data = load("synthetic", num_clients=5)
        assert data.groups is not None
        sizes = np.bincount(data.groups)
        assert len(sizes) == 5
        assert sizes.min() >= 40
        assert len(data.y_test) == pytest.approx(0.25 * len(data.y_train), abs=5)

    def test_a_client_does_not_depend_on_how_many_there_are(self) -> None:
        few, many = load("synthetic", num_clients=2), load("synthetic", num_clients=6)
        assert np.array_equal(few.x_train, many.x_train[: len(few.x_train)])

    def test_iid_labels_follow_one_model(self) -> None:
        """Inputs have mean 0 and variance j^-1.2, and one linear model explains all labels."""
        data = load("synthetic", num_clients=20, synthetic_iid=True, size_log_std=0.0, size_minimum=400)
        n = len(data.x_train)
        std = np.arange(1, 61) ** -0.6
        assert np.abs(data.x_train.mean(axis=0) / std).max() < 4.5 / np.sqrt(n)
        assert np.abs(data.x_train.var(axis=0) / std**2 - 1).max() < 4.5 * np.sqrt(2 / n)

    def test_input_centres_spread_with_beta(self) -> None:
        """Client centres are N(B_k, 1) with B_k ~ N(0, b): coordinates have variance 1 + b^2 over clients."""
        data = load(
            "synthetic",
            num_clients=400,
            synthetic_beta=3.0,
            size_log_mean=0.0,
            size_log_std=0.0,
            size_minimum=20,
        )
        assert data.groups is not None
        starts = np.flatnonzero(np.diff(data.groups, prepend=-1))
        sizes = np.diff(starts, append=len(data.groups))
        last = np.add.reduceat(data.x_train[:, -1], starts) / sizes  # the coordinate of smallest noise
        noise = 60**-1.2 / sizes[0]
        assert abs(last.var() / (1 + 9 + noise) - 1) < 4 * np.sqrt(2 / 400)


class TestQuadratic:
    def test_facts_are_facts(self) -> None:
        data = load("quadratic", num_clients=6, dimension=4, condition=25.0)
        assert data.groups is not None
        weights, curvatures, slopes = [], [], []
        for i in range(6):
            a, b = data.x_train[data.groups == i], data.y_train[data.groups == i]
            hessian = a.T @ a / len(a)
            eigenvalues = np.linalg.eigvalsh(hessian)
            assert eigenvalues[-1] == pytest.approx(data.ground_truth["lipschitz"][i])
            assert eigenvalues[0] == pytest.approx(data.ground_truth["strong-convexity"][i])
            assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(25.0)
            own = data.ground_truth["client-optima"][i]
            assert np.allclose(a.T @ (a @ own - b), 0, atol=1e-10)
            weights.append(len(a) / len(data.x_train))
            curvatures.append(hessian)
            slopes.append(a.T @ b / len(a))
        best = np.linalg.solve(
            sum(w * h for w, h in zip(weights, curvatures, strict=True)),
            sum(w * s for w, s in zip(weights, slopes, strict=True)),
        )
        assert np.allclose(data.ground_truth["optimum"], best, rtol=1e-10)
        loss = 0.5 * np.mean((data.x_train @ best - data.y_train) ** 2)
        assert data.ground_truth["optimal-loss"] == pytest.approx(loss, rel=1e-12)

    def test_heterogeneous_float64_and_unequal(self) -> None:
        data = load("quadratic", num_clients=3)
        assert data.x_train.dtype == data.y_train.dtype == np.float64
        assert data.groups is not None
        assert np.bincount(data.groups).tolist() == [10, 20, 30]
        assert len(set(np.asarray(data.ground_truth["lipschitz"]).tolist())) == 3

    def test_clients_that_agree_reach_zero(self) -> None:
        data = load("quadratic", num_clients=4, optimum_spread=0.0, dimension=1)
        assert data.ground_truth["optimal-loss"] == pytest.approx(0.0, abs=1e-25)


class TestA9a:
    def test_real_data(self, real_data: FindData) -> None:
        data = load("a9a", data_dir=real_data("a9a", "a9a.t"))
        assert (data.x_train.shape, data.x_test.shape) == ((32561, 123), (16281, 123))
        assert np.bincount(data.y_train).tolist() == [24720, 7841]
        assert np.bincount(data.y_test).tolist() == [12435, 3846]
        assert set(np.unique(data.x_train)) == {0.0, 1.0}
        assert data.num_classes == 2

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a9a does not exist; put the file there .* set data-dir"):
            load("a9a", data_dir=tmp_path)

    def test_truncated(self, tmp_path: Path) -> None:
        (tmp_path / "a9a").write_text("-1 3:1 123:1\n+1 4:1\n")
        (tmp_path / "a9a.t").write_text("-1 3:1\n")
        with pytest.raises(ValueError, match="a9a has 2 samples instead of 32561; download it again"):
            load("a9a", data_dir=tmp_path)

    def test_folder_from_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDPISA_DATA", str(tmp_path))
        with pytest.raises(ValueError, match=f"{tmp_path}/a9a does not exist"):
            load("a9a")


class TestLibsvm:
    def write(self, folder: Path, name: str, *lines: str) -> None:
        (folder / name).write_text("".join(f"{line}\n" for line in lines))

    def test_labels_by_value_and_common_width(self, tmp_path: Path) -> None:
        self.write(tmp_path, "train", "3 1:0.5 4:2", "-1 2:1", "3 1:1")
        self.write(tmp_path, "test", "-1 1:1", "3 2:7")
        data = load("libsvm", data_dir=tmp_path, train_file="train", test_file="test")
        assert data.x_train.tolist() == [[0.5, 0, 0, 2], [0, 1, 0, 0], [1, 0, 0, 0]]
        assert data.x_test.tolist() == [[1, 0, 0, 0], [0, 7, 0, 0]]
        assert (data.y_train.tolist(), data.y_test.tolist()) == ([1, 0, 1], [0, 1])

    def test_own_split_without_a_test_file(self, tmp_path: Path) -> None:
        self.write(tmp_path, "train", *(f"{i % 2} 1:{i}" for i in range(20)))
        data = load("libsvm", data_dir=tmp_path, train_file="train", test_fraction=0.3)
        assert (len(data.y_train), np.bincount(data.y_test).tolist()) == (14, [3, 3])

    def test_regression(self, tmp_path: Path) -> None:
        self.write(tmp_path, "train", "0.5 1:1", "2 1:2", "7.25 1:3")
        with pytest.raises(ValueError, match="labels that are not whole numbers; set regression = true"):
            load("libsvm", data_dir=tmp_path, train_file="train")
        data = load("libsvm", data_dir=tmp_path, train_file="train", regression=True)
        assert data.num_classes is None

    @pytest.mark.parametrize("line", ["1 1:", "1 nonsense", "1 2:1 1:1", "x 1:1"])
    def test_malformed(self, tmp_path: Path, line: str) -> None:
        self.write(tmp_path, "train", "0 1:1", line)
        with pytest.raises(ValueError, match="train is not a complete LIBSVM file") as caught:
            load("libsvm", data_dir=tmp_path, train_file="train")
        assert "\n" not in str(caught.value)

    def test_test_label_that_training_lacks(self, tmp_path: Path) -> None:
        self.write(tmp_path, "train", "0 1:1", "1 1:2")
        self.write(tmp_path, "test", "5 1:1")
        with pytest.raises(ValueError, match="test has label 5, which no training sample has"):
            load("libsvm", data_dir=tmp_path, train_file="train", test_file="test")


class TestMnistT10k:
    files = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")

    def test_real_data(self, real_data: FindData) -> None:
        data = load("mnist-t10k", data_dir=real_data(*self.files))
        assert (data.x_train.shape, data.x_test.shape) == ((8000, 1, 28, 28), (2000, 1, 28, 28))
        both = np.bincount(data.y_train) + np.bincount(data.y_test)
        assert both.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert np.abs(np.bincount(data.y_test) - both / 5).max() < 1
        pixels = data.x_train * 0.3081 + 0.1307
        assert pixels.min() == pytest.approx(0, abs=1e-6)
        assert pixels.max() == pytest.approx(1, abs=1e-6)
        ones = pixels[data.y_train == 1].mean(axis=(0, 1))
        assert ones[14, 14] > 0.8 > 0.01 > ones[14, 2]  # a one is a stroke down the middle

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz does not exist; download it from"):
            load("mnist-t10k", data_dir=tmp_path)

    def test_truncated(self, tmp_path: Path, real_data: FindData) -> None:
        folder = real_data(*self.files)
        for name in self.files:
            (tmp_path / name).write_bytes((folder / name).read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"damaged or another file .*; download it again"):
            load("mnist-t10k", data_dir=tmp_path)


class TestTorchvision:
    """Small files in the original formats, without torchvision's checksums."""

    def write_idx(self, path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        path.write_bytes(header + array.astype(np.uint8).tobytes())

    @pytest.mark.parametrize(
        ("name", "folder", "mean", "std"),
        [
            ("mnist", "MNIST", 0.1307, 0.3081),
            ("fashion-mnist", "FashionMNIST", 0.2860, 0.3530),
            ("kmnist", "KMNIST", 0.1918, 0.3483),
        ],
    )
    def test_idx_files(self, tmp_path: Path, name: str, folder: str, mean: float, std: float) -> None:
        images = np.random.default_rng(0).integers(0, 256, (6, 28, 28))
        for part in ("train", "t10k"):
            self.write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", images)
            self.write_idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(6))
        data = load(name, data_dir=tmp_path)
        assert np.allclose(data.x_test[:, 0], (images / 255 - mean) / std, atol=1e-6)
        assert data.x_train.dtype == np.float32
        assert data.y_train.tolist() == [0, 1, 2, 3, 4, 5]

    def test_truncated_idx(self, tmp_path: Path) -> None:
        self.test_idx_files(tmp_path, "mnist", "MNIST", 0.1307, 0.3081)
        path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"MNIST cannot be read from .*MNIST/raw.* in place of damaged"):
            load("mnist", data_dir=tmp_path)

    def test_emnist_is_upright_and_starts_at_zero(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, 28, 28))
        for part in ("train", "test"):
            prefix = tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}"
            self.write_idx(prefix.with_name(f"{prefix.name}-images-idx3-ubyte"), images.swapaxes(1, 2))
            self.write_idx(prefix.with_name(f"{prefix.name}-labels-idx1-ubyte"), np.array([1, 26]))
        data = load("emnist", data_dir=tmp_path, emnist_split="letters")
        assert np.allclose(data.x_train[:, 0] * 0.3317 + 0.1736, images / 255, atol=1e-6)
        assert (data.y_train.tolist(), data.num_classes) == ([0, 25], 26)

    def test_usps(self, tmp_path: Path) -> None:
        line = "3 " + " ".join(f"{i}:{1 if i == 2 else -1}" for i in range(1, 257))
        for name in ("usps.bz2", "usps.t.bz2"):
            (tmp_path / name).write_bytes(bz2.compress(f"{line}\n".encode()))
        data = load("usps", data_dir=tmp_path)
        pixels = data.x_train * 0.2989 + 0.2469
        assert pixels.shape == (1, 1, 16, 16)
        assert pixels[0, 0, 0, 1] == pytest.approx(1)
        assert pixels.sum() == pytest.approx(1, abs=1e-4)
        assert data.y_train.tolist() == [2]

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
    def test_colour_comes_channels_first(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """CIFAR files hold (n, 32, 32, 3), SVHN files (n, 3, 32, 32) and ``labels``."""
        images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)

        class Source:
            def __init__(self, root: Path, **kinds: object) -> None:
                self.data = images if name == "svhn" else np.moveaxis(images, 1, -1)
                self.targets = self.labels = [0, 1, 2, 3]

        fake = type("Datasets", (), {"CIFAR10": Source, "CIFAR100": Source, "SVHN": Source})
        monkeypatch.setattr(torchvision_sources, "_torchvision_datasets", lambda: fake)
        data = load(name)
        assert data.shape == (3, 32, 32)
        slopes = [np.polyfit(images[:, c].ravel(), data.x_train[:, c].ravel(), 1) for c in range(3)]
        for slope, intercept in slopes:
            assert 0.19 < 1 / (255 * slope) < 0.29
            assert 0.40 < -intercept / slope / 255 < 0.52

    def test_no_file_and_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import cifar, mnist

        def offline(*_: object, **__: object) -> None:
            raise OSError("no network")

        monkeypatch.setattr(cifar, "download_and_extract_archive", offline)
        monkeypatch.setattr(mnist, "download_and_extract_archive", offline)
        with pytest.raises(ValueError, match=r"CIFAR10 .*no network.*cifar-10-python.tar.gz.*set data-dir"):
            load("cifar10", data_dir=tmp_path)
        with pytest.raises(ValueError, match=r"EMNIST .*no network.*emnist-balanced") as caught:
            load("emnist", data_dir=tmp_path)
        assert "\n" not in str(caught.value)

    def test_torch_and_torchvision_do_not_match(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken:
            def find_spec(self, name: str, *_: object) -> None:
                if name.startswith("torchvision"):
                    raise RuntimeError("operator torchvision::nms does not exist")

        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
        with pytest.raises(
            ValueError, match=r"torchvision::nms.*do not match; install both together: pip install"
        ):
            load("mnist")


def test_a_sparse_file_that_would_be_too_large_is_refused_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "wide").write_text("1 1:1 2000000000:1\n0 3:1\n" * 40)
    with pytest.raises(
        ValueError, match=r"wide: 80 samples of 2,000,000,000 features .* take 640 GB as float32, and \d"
    ):
        load("libsvm", data_dir=tmp_path, train_file="wide")
