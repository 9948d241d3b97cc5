"""Recipes of a table: each text is cut or padded to the window, and the padding does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedpisa
from fedpisa.datasets.base import IGNORED
from fedpisa.datasets.tokens import decode
from fedpisa.families.data import load, partition
from fedpisa.tasks.language import Language

HEADER = "name,ingredients,instructions\n"
FEW = HEADER + 'toast,bread,"heat\nit, eat it"\ntea,water tea,brew it\n'
"""Two recipes: the first is for training and the second for the test."""


def written(folder: Path, content: str, name: str = "recipes.csv") -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder


def many(n: int = 20) -> str:
    return HEADER + "".join(f"r{i},{'a' * (i % 3 + 1)},{'bc' * (i % 4 + 1)}\n" for i in range(n))


def test_words_are_cut_and_padded(tmp_path: Path) -> None:
    """The vocabulary is brew, bread, eat, heat, it, "it,", tea, water and the padding."""
    data = load("recipes", data_dir=written(tmp_path, FEW), tokens="word", window=6)
    assert data.vocabulary == ("bread", "brew", "eat", "heat", "it", "it,", "tea", "water", "␀")
    assert data.x_train.tolist() == [[0, 3, 5, 2, 4, 8]]
    assert data.y_train.tolist() == [[3, 5, 2, 4, -100, -100]]
    assert data.x_test.tolist() == [[7, 6, 1, 4, 8, 8]]
    assert data.y_test.tolist() == [[6, 1, 4, -100, -100, -100]]
    assert (data.groups, data.split_labels, data.num_classes) == (None, None, 9)
    cut = load("recipes", data_dir=tmp_path, tokens="word", window=3)
    assert cut.x_train.tolist() == [[0, 3, 5]]
    assert cut.y_train.tolist() == [[3, 5, 2]]


def test_padding_that_counts(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"data_dir": written(tmp_path, FEW), "tokens": "word", "window": 6}
    masked, plain = load("recipes", **keys), load("recipes", **keys, mask_padding=False)
    assert np.array_equal(masked.x_train, plain.x_train)
    assert plain.y_train.tolist() == [[3, 5, 2, 4, 8, 8]]
    assert np.array_equal(np.where(masked.y_test == IGNORED, 8, masked.y_test), plain.y_test)


def test_characters_and_the_window_by_default(tmp_path: Path) -> None:
    data = load("recipes", data_dir=written(tmp_path, FEW))
    assert data.vocabulary is not None
    assert data.x_train.shape == data.y_train.shape == (1, 180)
    text = "bread\nheat\nit, eat it"
    assert decode(data.x_train[0], data.vocabulary) == text + "␀" * (180 - len(text))
    counted = data.y_train[0] != IGNORED
    assert decode(data.y_train[0][counted], data.vocabulary) == text[1:]


def test_the_last_tenth_is_for_the_test_and_clients_share_the_rest(tmp_path: Path) -> None:
    written(tmp_path, many(), "own.csv")
    data = load("recipes", data_dir=tmp_path, recipes_file="own.csv", window=8)
    assert (len(data.x_train), len(data.x_test)) == (18, 2)
    same = load("recipes", recipes_file=str(tmp_path / "own.csv"), window=8)
    assert np.array_equal(same.x_train, data.x_train)
    parts = partition(data, "iid", num_clients=3)[1]
    assert sorted(np.concatenate(parts)) == list(range(18))


def test_a_model_of_equal_chances_has_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    """Masked positions change neither the loss nor the measures of texts of any length."""
    data = load("recipes", data_dir=written(tmp_path, many()), window=8)
    y, v = torch.from_numpy(data.y_train), data.num_outputs
    outputs = torch.zeros(*y.shape, v, dtype=torch.float64)
    outputs[y == IGNORED] = torch.randn(v, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    language = Language()
    assert torch.allclose(language.loss(outputs, y), torch.tensor(float(v), dtype=torch.float64).log())
    means = {name: float(score.mean()) for name, score in language.sample_scores(outputs, y).items()}
    assert language.combine({"loss": 0.0, **means})["perplexity"] == pytest.approx(v, rel=1e-12)


def test_a_tokenizer(tmp_path: Path) -> None:
    """Its own padding token fills, and a run with it works."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra language")
    names = ["bread", "heat", "it,", "eat", "it", "water", "tea", "brew", "[PAD]"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    keys: dict[str, Any] = {"data_dir": written(tmp_path, FEW), "tokens": str(tmp_path), "window": 6}
    with pytest.raises(ValueError, match="has no padding token; name one of its tokens as pad_token"):
        load("recipes", **keys)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    data = load("recipes", **keys)
    assert data.x_train.tolist() == [[0, 1, 2, 3, 4, 8]]
    assert data.y_test.tolist() == [[6, 7, 4, -100, -100, -100]]
    assert (data.num_classes, data.vocabulary) == (9, tuple(names))


def test_a_run(tmp_path: Path) -> None:
    written(tmp_path, many())
    keys = {
        **{
            "dataset": "recipes",
            "data-dir": str(tmp_path),
            "window": 8,
            "partitioner": "iid",
            "num-clients": 3,
        },
        **{"algorithm": "fedavg", "model": "lstm", "hidden": 4, "num-server-rounds": 2},
    }
    vmap, loop = (fedpisa.run({**keys, "dtype": "float64", "engine": engine}) for engine in ("vmap", "loop"))
    assert len(vmap.rows) == 3
    np.testing.assert_allclose(vmap.history["test_perplexity"], loop.history["test_perplexity"], rtol=1e-10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,ingredients\na,b\n", "has no column 'instructions'; name the columns in the first line"),
        ("", "has no column 'ingredients'"),
        (HEADER + "tea,water,brew\n", "has 1 recipes; give at least two"),
        (HEADER + "tea,water\ntea,water,brew\n", "recipe 1 has fewer fields than the first line"),
        (HEADER + "tea,water,brew\ntea,water,brew, drink\n", "recipe 2 has more fields than the first"),
        (HEADER + 'tea,water,"brew\n', "line 2: unexpected end of data; correct the CSV"),
        (HEADER + "tea,water,brew\nair,,\n", "recipe 2 has 1 tokens, too few for a target; remove it"),
    ],
)
def test_what_is_no_table_of_recipes(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load("recipes", data_dir=written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipes.csv does not exist; put a CSV .*, or set recipes-file"):
        load("recipes", data_dir=tmp_path)
