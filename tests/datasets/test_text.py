"""Text in windows: Shakespeare's roles with numbers counted independently, and files of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpisa.datasets.base import Dataset
from fedpisa.datasets.text import roles, windows
from fedpisa.datasets.tokens import decode
from fedpisa.families.data import load, partition

FindData = Callable[..., Path]
LARGEST = {
    **{"GLOUCESTER": 37_405, "DUKE VINCENTIO": 33_906, "KING RICHARD II": 32_044, "LEONTES": 25_444},
    **{"CORIOLANUS": 25_396, "ROMEO": 24_344, "PETRUCHIO": 23_236, "JULIET": 22_507},
    **{"MENENIUS": 22_370, "QUEEN MARGARET": 21_557},
}


def pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how often each character follows each other one."""
    return np.bincount(x.ravel() * 65 + y.ravel(), minlength=65**2).reshape(65, 65)


def perplexity(table: np.ndarray, data: Dataset) -> float:
    chances = table / table.sum(axis=1, keepdims=True)
    return float(np.exp(-np.log(chances[data.x_test, data.y_test]).mean()))


class TestTinyshakespeare:
    @pytest.fixture
    def folder(self, real_data: FindData) -> Path:
        return real_data("tinyshakespeare.txt")

    @pytest.fixture
    def data(self, folder: Path) -> Dataset:
        return load("tinyshakespeare", data_dir=folder)

    def test_the_file_and_its_roles(self, folder: Path) -> None:
        play = (folder / "tinyshakespeare.txt").read_text()
        assert (len(play), len(set(play))) == (1_115_394, 65)
        spoken = {role: sum(map(len, speeches)) for role, speeches in roles(play).items()}
        assert len(spoken) == 299
        assert dict(sorted(spoken.items(), key=lambda item: -item[1])[:10]) == LARGEST
        assert [sum(size >= least for size in spoken.values()) for least in (1_000, 5_000, 10_000)] == [
            141,
            64,
            35,
        ]

    def test_no_speech_is_lost(self, folder: Path) -> None:
        """Each block is a role's speech, or a role's name alone."""
        play = (folder / "tinyshakespeare.txt").read_text()
        blocks = [block.strip("\n") for block in play.split("\n\n")]
        alone = [block for block in blocks if block.endswith(":") and "\n" not in block]
        assert sum(map(len, roles(play).values())) == len(blocks) - len(alone) == 7_097

    def test_each_client_has_its_own_text_in_order(self, data: Dataset, folder: Path) -> None:
        speeches = roles((folder / "tinyshakespeare.txt").read_text())
        assert data.vocabulary is not None
        assert data.groups is not None
        for client, role in enumerate(LARGEST):
            own = "".join(f"{speech}\n" for speech in speeches[role])
            x, y = data.x_train[data.groups == client], data.y_train[data.groups == client]
            used = decode(x.ravel(), data.vocabulary)
            assert own.startswith(used)
            assert own[1:].startswith(decode(y.ravel(), data.vocabulary))
            assert len(own) * 0.9 - 65 <= len(used) <= len(own) * 0.9

    def test_shapes_and_vocabulary(self, data: Dataset) -> None:
        assert (data.x_train.shape, data.x_test.shape) == ((3786, 64), (416, 64))
        assert data.x_train.dtype == data.y_train.dtype == np.int64
        assert (data.num_classes, data.shape, data.target_shape) == (65, (64,), (64,))
        assert data.vocabulary is not None
        assert "".join(data.vocabulary[:5]) == "\n !$&"
        assert (data.default_model, data.split_labels) == ("lstm", None)

    def test_perplexities_of_counts(self, data: Dataset) -> None:
        counts = pairs(data.x_train, data.y_train).astype(float)
        unigram = np.tile(counts.sum(axis=0), (65, 1))
        assert perplexity(unigram, data) == pytest.approx(23.76, abs=5e-3)
        assert perplexity(counts + 0.1, data) == pytest.approx(11.23, abs=5e-3)

    def test_entropy_of_the_next_character(self, data: Dataset) -> None:
        """No bigram model can have a smaller loss on the training windows."""
        counts = pairs(data.x_train, data.y_train)
        seen = counts[counts > 0]
        of_pairs = -np.sum(seen * np.log(seen / seen.sum())) / seen.sum()
        firsts = counts.sum(axis=1)[counts.sum(axis=1) > 0]
        of_firsts = -np.sum(firsts * np.log(firsts / firsts.sum())) / firsts.sum()
        assert of_pairs - of_firsts == pytest.approx(2.408763, abs=1e-6)

    def test_num_clients_says_how_many_roles(self, folder: Path) -> None:
        few, many = (load("tinyshakespeare", data_dir=folder, num_clients=n) for n in (2, 4))
        assert few.vocabulary == many.vocabulary
        assert np.array_equal(few.x_train, many.x_train[: len(few.x_train)])
        parts = partition(many, "natural", num_clients=4)[1]
        assert [len(part) for part in parts] == [528, 479, 451, 359]
        assert load("tinyshakespeare", data_dir=folder, num_clients=299, window=4).groups is not None

    def test_too_many_clients(self, folder: Path) -> None:
        with pytest.raises(
            ValueError, match=r"260 roles .* num-clients = 261; set num-clients to at most 260 or"
        ):
            load("tinyshakespeare", data_dir=folder, num_clients=261)
        groups = load("tinyshakespeare", data_dir=folder, num_clients=260).groups
        assert groups is not None
        assert np.bincount(groups).min() > 0
        assert groups.max() == 259

    def test_missing_or_another_file(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"tinyshakespeare.txt does not exist; download it from https://raw"
        ):
            load("tinyshakespeare", data_dir=tmp_path)
        (tmp_path / "tinyshakespeare.txt").write_text("All:\nResolved.")
        with pytest.raises(ValueError, match=r"damaged or another file .* dataset = \"text\"$"):
            load("tinyshakespeare", data_dir=tmp_path)


class TestOwnText:
    def test_a_client_for_each_file(self, tmp_path: Path) -> None:
        (tmp_path / "b.txt").write_text("ab" * 50)
        (tmp_path / "a.txt").write_text("xyz" * 20)
        (tmp_path / "notes.md").write_text("not for the clients")
        data = load("text", data_file=str(tmp_path), window=5)
        assert (data.name, data.vocabulary) == (tmp_path.name, ("a", "b", "x", "y", "z"))
        first, second = partition(data, "natural", num_clients=2)[1]
        assert (len(first), len(second)) == ((54 - 1) // 5, (90 - 1) // 5)
        assert decode(data.x_train[first].ravel(), data.vocabulary) == ("xyz" * 20)[:50]
        assert decode(data.y_train[second].ravel(), data.vocabulary) == ("ab" * 50)[1:86]
        assert len(data.x_test) == 1 + 1

    def test_words(self, tmp_path: Path) -> None:
        file = tmp_path / "song.txt"
        file.write_text("row, row your\nboat " * 10)
        data = load("text", data_file=str(file), tokens="word", window=3)
        assert data.vocabulary == ("boat", "row", "row,", "your")
        assert data.groups is None
        assert decode(data.x_train[0], data.vocabulary) == "row, row your"
        assert decode(data.y_train[0], data.vocabulary) == "row your boat"

    @given(size=st.integers(0, 60), window=st.integers(1, 9))
    def test_windows_cover_all_but_a_rest(self, size: int, window: int) -> None:
        x, y = windows(np.arange(size), window)
        assert x.shape == y.shape == (max(size - 1, 0) // window, window)
        assert np.array_equal(x.ravel(), np.arange(x.size))
        assert np.array_equal(y, x + 1)
        assert size - 1 - x.size < window

    @given(size=st.integers(0, 200), window=st.integers(1, 15))
    def test_what_is_too_short_is_refused_with_the_size_that_is_not(self, size: int, window: int) -> None:
        from fedpisa.datasets import text

        assert text._has_window(size, window) == (len(windows(np.arange(size * 9 // 10), window)[0]) > 0)
        assert text._has_window(text._least(window), window)
        assert not text._has_window(text._least(window) - 1, window)

    @pytest.mark.parametrize(
        ("content", "keys", "message"),
        [
            (
                b"abcdefghij",
                {},
                "has 10 tokens, and a training window of 64 with its targets needs 73; lower window$",
            ),
            (
                b"ab" * 35,
                {"window": 60},
                "last tenths of the texts have 7 tokens at most, too few for a test window of 60",
            ),
            (b"\xff\xfe" * 50, {}, "is no UTF-8 text .byte 0.; store it as UTF-8"),
            (b"a" * 99, {"window": 5}, "only 1 class"),
            (b"ab" * 99, {"tokens": "line"}, "tokens"),
        ],
    )
    def test_what_does_not_fit(
        self, content: bytes, keys: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        (tmp_path / "own.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load("text", data_file=str(tmp_path / "own.txt"), **keys)
        assert "\n" not in str(caught.value)

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no \.txt files; give a file, or a folder"):
            load("text", data_file=str(tmp_path))
        with pytest.raises(ValueError, match=r"none\.txt does not exist; give a text file"):
            load("text", data_file=str(tmp_path / "none.txt"))

    def test_a_file_too_short_in_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("ab" * 99)
        (tmp_path / "b.txt").write_text("")
        with pytest.raises(ValueError, match=r"b\.txt has 0 tokens.*; lower window or remove the file"):
            load("text", data_file=str(tmp_path), window=5)


class TestPennTreebank:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "ptb.train.txt").write_text(" the cat <unk> sat \n on the mat \n the cat sat \n")
        (tmp_path / "ptb.test.txt").write_text(" the mat sat \n")
        return tmp_path

    def test_lines_end_with_a_token(self, folder: Path) -> None:
        data = load("ptb", data_dir=folder, window=3)
        assert data.vocabulary == ("<eos>", "<unk>", "cat", "mat", "on", "sat", "the")
        assert (
            decode(data.x_train.ravel(), data.vocabulary)
            == "the cat <unk> sat <eos> on the mat <eos> the cat sat"
        )
        assert (
            decode(data.y_train.ravel(), data.vocabulary)
            == "cat <unk> sat <eos> on the mat <eos> the cat sat <eos>"
        )
        assert decode(data.y_test.ravel(), data.vocabulary) == "mat sat <eos>"
        assert data.groups is None

    def test_what_cannot_be_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"ptb.test.txt has 4 words, too few for window = 4"):
            load("ptb", data_dir=folder, window=4)
        (folder / "ptb.test.txt").write_text("a dog\n")
        with pytest.raises(ValueError, match="has 'a', which the training text lacks"):
            load("ptb", data_dir=folder, window=1)
        (folder / "ptb.test.txt").unlink()
        with pytest.raises(ValueError, match=r"ptb.test.txt does not exist"):
            load("ptb", data_dir=folder)
