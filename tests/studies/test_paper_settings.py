"""Two rounds of each of the paper's settings, on small data of the right shape and with small models.

Only the data's place, the model's width, the size of mini-batches and the number of rounds are changed. Torchvision's
widest models have no key for their width, so the tests put narrow ones of the same depth in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import fedpisa
from fedpisa.config.run import load_config
from fedpisa.datasets import torchvision_sources

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
ROUNDS: dict[str, object] = {"num-server-rounds": 2, "eval-every": 2}
FEW: dict[str, object] = {**ROUNDS, "batch-size": 2}
WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def read(*_: object, **__: object) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10) for n in (40, 10)]

    monkeypatch.setattr(torchvision_sources, "_read", read)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet34", "vgg11", "densenet121"])
@pytest.mark.usefixtures("cifar")
def test_cifar10(model: str) -> None:
    two_rounds(f"cifar10-{model}", FEW)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision", reason="torchvision has the models").models
    original = models.get_model

    def get_model(name: str, num_classes: int, **options: Any) -> nn.Module:
        if name == "vit_b_16":
            return models.VisionTransformer(224, 16, 12, 2, hidden_dim=8, mlp_dim=16, num_classes=num_classes)
        if name == "densenet121":
            return models.DenseNet(4, (6, 12, 24, 16), num_init_features=8, num_classes=num_classes)
        model = original(name, num_classes=num_classes, **options)
        if name == "alexnet":
            model.classifier[1], model.classifier[4] = nn.Linear(256 * 6 * 6, 16), nn.Linear(16, 16)
            model.classifier[6] = nn.Linear(16, num_classes)
        return model

    monkeypatch.setattr(models, "get_model", get_model)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("model", ["resnet18", "vit_b_16", "alexnet", "densenet121"])
def test_imagenet_in_large_batches(tmp_path: Path, model: str) -> None:
    images(tmp_path)
    two_rounds(f"imagenet-large-{model}", {**FEW, "batches-per-round": 1, "data-dir": str(tmp_path)})


@pytest.mark.slow
def test_imagenet(tmp_path: Path) -> None:
    images(tmp_path)
    two_rounds("imagenet-resnet18", {**FEW, "data-dir": str(tmp_path)})


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("name", ["cifar10-wgan", "cifar10-wgan-gp"])
def test_gan(name: str) -> None:
    result = two_rounds(name, {**FEW, "width": 2, "latent": 3, "fid-samples": 20})
    assert result.history["test_fid_own"].iloc[-1] > 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_ptb(tmp_path: Path, layers: int) -> None:
    rng = np.random.default_rng(0)
    for part, lines in (("train", 300), ("test", 20)):
        text = "\n".join(" ".join([*rng.permutation(WORDS)]) for _ in range(lines))
        (tmp_path / f"ptb.{part}.txt").write_text(text)
    two_rounds(f"ptb-lstm-{layers}", {**FEW, "data-dir": str(tmp_path), "embed": 4, "hidden": 6})


@pytest.mark.parametrize("name", ["recipes-gpt2", "recipes-gpt2-medium"])
def test_recipes(tmp_path: Path, name: str) -> None:
    folder = pretrained(tmp_path)
    rows = [f"{' '.join(WORDS[i % 9 :])},{' '.join(WORDS[: i % 19])}" for i in range(40)]
    (tmp_path / "recipes.csv").write_text("\n".join(["ingredients,instructions", *rows]))
    places = {"data-dir": str(tmp_path), "tokens": folder, "pretrained": folder, "warmup-rounds": 1}
    two_rounds(name, {**FEW, "batches-per-round": 2, **places})


def test_nanogpt(tmp_path: Path) -> None:
    folder = pretrained(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 600))
    places = {"data-file": str(tmp_path / "text.txt"), "tokens": folder}
    two_rounds("nanogpt-nsisa", {**FEW, "batch-size": 1, **places, "width": 12})


@pytest.mark.parametrize("env", ["ant", "humanoid", "halfcheetah", "inverteddoublependulum"])
def test_mujoco(env: str) -> None:
    pytest.importorskip("mujoco", reason="the extra control is not installed")
    changes = {**ROUNDS, "rollout-steps": 4, "eval-episodes": 1, "batch-size": 2}
    result = two_rounds(f"mujoco-{env}", changes)
    assert result.history["env_steps"].dropna().iloc[0] == 16
    assert np.isfinite(result.history["test_return"].dropna()).all()


def two_rounds(name: str, changes: dict[str, object]) -> fedpisa.Result:
    config = load_config(PAPER / f"{name}.toml").to_mapping()
    assert config.keys() >= changes.keys() - {"embed", "hidden"}
    result = fedpisa.run({**config, **changes})
    assert len(result.history)
    assert np.isfinite(result.history["train_loss"].dropna()).all()
    return result


def images(folder: Path) -> None:
    """Write ImageNet's layout with two classes."""
    image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 1)):
        for kind in ("n01", "n02"):
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (260, 280, 3), np.uint8)
                image.fromarray(pixels).save(folder / part / kind / f"{number}.png")


def pretrained(folder: Path) -> str:
    """Write a small GPT-2 with random weights and the tokenizer of `WORDS`, and return their folder."""
    transformers = pytest.importorskip("transformers", reason="the extra language is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra language is not installed")
    place = folder / "gpt2"
    numbers = {word: number for number, word in enumerate([*WORDS, "<pad>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_padding(pad_token="<pad>", pad_id=len(WORDS))
    shape = transformers.GPT2Config(
        vocab_size=len(numbers),
        n_positions=180,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(shape).save_pretrained(place)
    tokenizer.save(str(place / "tokenizer.json"))
    return str(place)
