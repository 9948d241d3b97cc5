"""Text in the tokens of a local tokenizer: the numbers are the tokenizer's, and a run's texts can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.datasets.text import own_windows, windows
from fedpisa.datasets.tokens import decode, encoded, padding_number, tokenised
from fedpisa.families.data import load, partition
from fedpisa.runs.results import load_result

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra language")

TEXTS = {"a": "the café sat on the mat. " * 12, "b": "a dog dug a bog, and hid! " * 14}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a byte-level BPE that cuts and pads texts, and puts a special token before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXTS.values(), trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(5)
    made.enable_padding(length=4000, pad_id=0, pad_token="<s>")
    made.add_special_tokens(["<last>"])
    folder = tmp_path_factory.mktemp("bpe")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of words, of which those that it lacks are unknown; the number 2 has no token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"row": 4, "your": 1, "[UNK]": 0, "boat": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("words")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, content in TEXTS.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return folder


def plain(folder: Path) -> Any:
    """Return the tokenizer without the file's length."""
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


def keys_of(texts: Path, tokens: Path, **more: Any) -> dict[str, Any]:
    keys = {
        **{"dataset": "text", "data-file": str(texts), "tokens": str(tokens), "window": 4},
        **{"partitioner": "natural", "num-clients": 2, "num-server-rounds": 2, "algorithm": "fedavg"},
        **{"model": "lstm", "hidden": 4, "task": "language", "sample-tokens": 12},
    }
    return {**keys, **{key.replace("_", "-"): value for key, value in more.items()}}


def test_numbers_are_those_of_the_tokenizer(texts: Path, bpe: Path) -> None:
    """No special token, length or padding of the file counts; a folder and its file give the same."""
    whole = load("text", data_file=str(texts), tokens=str(bpe), window=4)
    parts = partition(whole, "natural", num_clients=2)[1]
    for part, content in zip(parts, TEXTS.values(), strict=True):
        ids = np.array(plain(bpe).encode(content, add_special_tokens=False).ids)
        x, y = windows(ids[: len(ids) * 9 // 10], 4)
        assert len(x) > 8
        assert np.array_equal(whole.x_train[part], x)
        assert np.array_equal(whole.y_train[part], y)
    same = load("text", data_file=str(texts), tokens=str(bpe / "tokenizer.json"), window=4)
    assert np.array_equal(same.x_test, whole.x_test)
    assert whole.num_classes == plain(bpe).get_vocab_size(with_added_tokens=True)
    assert whole.vocabulary is not None
    assert whole.vocabulary[-1] == "<last>"


def test_a_number_without_a_token(tmp_path: Path, words: Path) -> None:
    (tmp_path / "song.txt").write_text("row row your boat gently " * 9)
    data = load("text", data_file=str(tmp_path / "song.txt"), tokens=str(words), window=2)
    assert data.vocabulary == ("[UNK]", "your", "", "boat", "row")
    assert data.x_train[:2].tolist() == [[4, 4], [1, 3]]
    assert data.y_train[:2].tolist() == [[4, 1], [3, 0]]
    assert decode(data.x_train[1], data.vocabulary, data.tokenizer) == "your boat"


def test_a_run_keeps_the_tokenizer_and_writes_text(texts: Path, bpe: Path, tmp_path: Path) -> None:
    result = fedpisa.run(keys_of(texts, bpe), tmp_path / "run")
    assert len(result.rows) == 3
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (bpe / "tokenizer.json").read_bytes()
    assert not (tmp_path / "run" / "vocabulary.json").exists()
    load_result(tmp_path / "run")
    written = (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")
    prompts = [eval(part.split("\n", 1)[0]) for part in written.split("=== after ")[1:]]
    data = load("text", data_file=str(texts), tokens=str(bpe), window=4)
    assert len(prompts) == 3
    assert prompts[0] == plain(bpe).decode(data.x_test[0, :2].tolist())
    assert all(any(prompt in content for content in TEXTS.values()) for prompt in prompts)
    assert "Ġ" not in written  # how the tokenizer writes a space in its vocabulary


@pytest.mark.parametrize("size", ["larger", "equal", "smaller"])
def test_a_pretrained_model_with_more_tokens_or_fewer(
    texts: Path, bpe: Path, size: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra language")
    tokens = plain(bpe).get_vocab_size() + {"larger": 14, "equal": 0, "smaller": -1}[size]
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=tokens, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    keys = keys_of(texts, bpe, model="hf-causal-lm", pretrained=str(tmp_path / "base"))
    del keys["hidden"]
    if size == "smaller":
        with pytest.raises(ValueError, match=f"the data have {tokens + 1} tokens, and the pretrained model"):
            fedpisa.run(keys)
        return
    assert np.isfinite(fedpisa.run(keys).history["test_perplexity"]).all()


def test_a_nodes_own_text_has_the_same_tokens(texts: Path, bpe: Path) -> None:
    content = (bpe / "tokenizer.json").read_text(encoding="utf-8")
    x, y = own_windows(texts / "a.txt", (), False, 4, content)
    wanted_x, wanted_y = windows(encoded(TEXTS["a"], content), 4)
    assert np.array_equal(x, wanted_x)
    assert np.array_equal(y, wanted_y)


def test_the_padding_token(bpe: Path, words: Path, tmp_path: Path) -> None:
    assert padding_number(str(bpe)) == 0
    with pytest.raises(ValueError, match=r"has no padding token; name one of its tokens as pad_token in"):
        padding_number(str(words))
    (tmp_path / "tokenizer.json").write_bytes((words / "tokenizer.json").read_bytes())
    config = tmp_path / "tokenizer_config.json"
    for named, number in (
        ({"eos_token": "boat"}, 3),
        ({"eos_token": "boat", "pad_token": {"content": "row"}}, 4),
    ):
        config.write_text(json.dumps(named))
        assert padding_number(str(tmp_path)) == number
    config.write_text("[")
    with pytest.raises(ValueError, match=r"tokenizer_config.json beside it is damaged"):
        padding_number(str(tmp_path))


def test_what_is_no_tokenizer(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokens = '.*none': .*none does not exist; set char, word, or the path"
    ):
        load("text", data_file=str(texts), tokens=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"tokenizer.json does not exist; set char"):
        load("text", data_file=str(texts), tokens=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the tokenizer.json cannot be used \(.*; write it again") as caught:
        load("text", data_file=str(texts), tokens=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_text_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=r"the tokenizer cannot read a text \(.*: take one that knows"
    ) as caught:
        tokenised(["c"], str(tmp_path))
    assert "\n" not in str(caught.value)
