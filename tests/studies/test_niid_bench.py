"""NIID-Bench's studies have its exact settings, and run for a round on fake data."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpisa import run
from fedpisa.config.run import RunConfig
from fedpisa.datasets import libsvm, mnist, torchvision_sources

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NIID_BENCH = EXPERIMENTS / "niid_bench"
BENCHMARK = sorted(path for path in NIID_BENCH.glob("*.toml") if path.stem != "adult-sisa")
STUDIES = [*BENCHMARK, NIID_BENCH / "adult-sisa.toml", EXPERIMENTS / "paper" / "images-public.toml"]
PIXEL_STD = {"mnist": 0.3081, "fashion-mnist": 0.3530, "svhn": 0.1987, "cifar10": 0.2507}
by_study = pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
by_benchmark = pytest.mark.parametrize("path", BENCHMARK, ids=lambda path: path.stem)


def runs(path: Path) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Yield the variant, the sweep's point and the keys of each run of a study's first seed."""
    study = tomllib.loads(path.read_text())
    assert study.keys() <= {"name", "seeds", "base", "sweep", "variant"}
    sweep = study.get("sweep", {})
    for values in itertools.product(*sweep.values()):
        point = dict(zip(sweep, values, strict=True))
        for variant in study["variant"]:
            keys = {**study["base"], **point, **variant, "seed": study["seeds"][0]}
            yield keys.pop("name"), point, keys


@by_study
def test_every_run_is_a_configuration(path: Path) -> None:
    study = tomllib.loads(path.read_text())
    assert study["seeds"] == [0, 1, 2]
    names = [variant["name"] for variant in study["variant"]]
    assert len(set(names)) == len(names)
    for _, _, keys in runs(path):
        assert RunConfig.from_mapping(keys).num_clients == 10


def test_no_study_is_left_out() -> None:
    splits = {"splits", "labels", "noise"}
    images = {f"{name}-{split}" for name in ("mnist", "fashion-mnist", "cifar10", "svhn") for split in splits}
    rest = {"adult-splits", "adult-labels", "mnist-t10k-splits", "mnist-t10k-labels"}
    assert {path.stem for path in BENCHMARK} == images | rest


@by_benchmark
def test_settings_are_niid_benchs(path: Path) -> None:
    """Settings equal the scripts': parties, rounds, epochs, batch size, SGD, model, FedProx's mu, split."""
    dataset = path.stem.rpartition("-")[0]
    mus = set()
    for variant, point, keys in runs(path):
        config = RunConfig.from_mapping(keys)
        values = config.to_mapping()
        assert (config.num_clients, config.num_server_rounds, config.fraction_train) == (10, 50, 1.0)
        assert (values["local-epochs"], values["batch-size"], values.get("local-steps")) == (10, 64, None)
        assert (values["learning-rate"], values["momentum"], values["weight-decay"]) == (0.01, 0.9, 1e-5)
        assert values["dataset"] == {"adult": "a9a"}.get(dataset, dataset)
        assert values["model"] == ("tabular-mlp" if dataset == "adult" else "simple-cnn")
        assert variant.partition("-")[0] == values["algorithm"]
        if values["algorithm"] == "fedprox":
            assert variant == f"fedprox-{values['proximal-mu']:g}"
            mus.add(values["proximal-mu"])
        if values["partitioner"] in ("label-dirichlet", "quantity-dirichlet"):
            assert (values["dirichlet-alpha"], values["min-partition-size"]) == (0.5, 10)
        elif values["partitioner"] == "feature-noise":
            assert values["noise-std"] == pytest.approx(0.1 / PIXEL_STD[dataset], rel=1e-3)
        elif values["partitioner"] == "labels-per-client":
            assert values["labels-per-client"] in ((1,) if dataset == "adult" else (1, 2, 3))
        else:
            assert values["partitioner"] == "iid"
        assert set(point) <= {"partitioner", "labels-per-client"}
    assert mus == {0.001, 0.01, 0.1, 1.0}


@pytest.mark.parametrize("split", ["labels", "splits", "noise"])
def test_data_sets_differ_in_nothing_else(split: str) -> None:
    images = [path for path in BENCHMARK if path.stem.endswith(split) and path.stem != f"adult-{split}"]
    own = {"dataset", "noise-std"}
    first, *others = (
        [{k: v for k, v in keys.items() if k not in own} for *_, keys in runs(p)] for p in images
    )
    assert all(other == first for other in others)


def test_sisa_takes_as_many_gradients() -> None:
    """SISA's 500 rounds of one epoch take as many gradients as 50 rounds of ten epochs.

    The hyper-parameters are those of the paper's experiment.
    """
    paper = tomllib.loads((EXPERIMENTS / "paper" / "adult-label1.toml").read_text())
    for _, _, keys in runs(NIID_BENCH / "adult-sisa.toml"):
        assert (keys["num-server-rounds"], keys["batches-per-round"], keys["batch-size"]) == (500, "all", 64)
        for name in ("sigma", "rho", "lambda", "gamma", "gamma-every", "beta"):
            assert keys[name] == paper[name]


@pytest.fixture
def fake_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every data set's files by noise of the same shape."""
    rng = np.random.default_rng(0)

    def images(*shape: int) -> type:
        class Source:
            def __init__(self, root: Path, **kinds: object) -> None:
                self.data = rng.integers(0, 256, (400, *shape)).astype(np.uint8)
                self.targets = self.labels = np.arange(400) % 10

        return Source

    grey, colour = images(28, 28), images(32, 32, 3)
    sources = {"MNIST": grey, "FashionMNIST": grey, "CIFAR10": colour, "SVHN": images(3, 32, 32)}
    monkeypatch.setattr(torchvision_sources, "_torchvision_datasets", lambda: type("Fake", (), sources))
    monkeypatch.setattr(mnist, "_find", lambda folder, name: folder / name)
    idx = {"images": lambda: grey(Path()).data, "labels": lambda: (np.arange(400) % 10).astype(np.uint8)}
    monkeypatch.setattr(mnist, "_read_idx", lambda path, md5: idx[path.name.split("-")[1]]())
    monkeypatch.setattr(libsvm, "_existing", lambda path: path)
    monkeypatch.setattr(
        libsvm,
        "_read",
        lambda paths, n_features: [
            (rng.integers(0, 2, (n, n_features)).astype(np.float32), np.where(np.arange(n) % 4, -1.0, 1.0))
            for n in (32_561, 16_281)
        ],
    )


@by_study
@pytest.mark.slow
def test_a_round_runs_on_fake_data(path: Path, fake_data: None) -> None:
    """Every split and every algorithm of the file runs once, with two local steps."""
    short = {"num-server-rounds": 1}
    points: set[str] = set()
    algorithms: set[str] = set()
    for _, point, keys in runs(path):
        split = f"{point}{keys.get('partitioner')}{keys.get('labels-per-client')}"
        if split in points and keys["algorithm"] in algorithms:
            continue
        points.add(split)
        algorithms.add(keys["algorithm"])
        few = {"batches-per-round": 1} if keys["algorithm"] == "sisa" else {"local-steps": 2}
        result = run({**keys, **short, **few})
        assert result.status == "finished"
        assert len(result.partition) == 10
        assert result.parameters["1.weight" if "a9a" in keys["dataset"] else "0.weight"].shape[0] in (6, 32)
