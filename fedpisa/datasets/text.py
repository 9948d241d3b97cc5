"""Text as windows of tokens, each with the token that follows it: Shakespeare's roles, and text of your own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.base import Dataset, Samples
from fedpisa.datasets.tokens import Tokenised, encoded, numbered, read_text, split, tokenised
from fedpisa.typing import PositiveInt

_ORIGIN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_MD5 = "6fb458f1232090904fb40fe944165e91"


def tinyshakespeare(*, data_dir: Path, num_clients: int, window: PositiveInt = 64) -> Dataset:
    """Speeches of Shakespeare's roles, character by character; the clients are the roles with most text.

    The file ``tinyshakespeare.txt`` in ``data-dir`` has 1,115,394 characters, 65 of them different, and 299 roles. Its
    MD5 sum is checked. ``num-clients`` says how many roles are taken. A role's text is its speeches, each with a line
    break behind it. It is cut into windows, as that of `text`: use the partitioner ``natural``.

    Parameters
    ----------
    window
        Number of characters of a sample.

    Raises
    ------
    ValueError
        If the file is missing or is not the original, or a role has too little text for a window.

    References
    ----------
    A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015.
    """
    path = data_dir / "tinyshakespeare.txt"
    if not os.path.isfile(path):
        raise ValueError(
            f"{path} does not exist; download it from {_ORIGIN} or set data-dir to the folder that has it"
        )
    whole = path.read_bytes()
    if hashlib.md5(whole, usedforsecurity=False).hexdigest() != _MD5:
        raise ValueError(
            f"{path} is damaged or another file (its MD5 sum is not {_MD5}); download it again from {_ORIGIN}, or "
            'read a text of your own with dataset = "text"'
        )
    everything = whole.decode()
    spoken = {role: "".join(f"{s}\n" for s in speeches) for role, speeches in roles(everything).items()}
    most = sorted(spoken, key=lambda role: (-len(spoken[role]), role))
    enough = sum(_has_window(len(words), window) for words in spoken.values())
    if num_clients > enough:
        raise ValueError(
            f"{enough} roles of tinyshakespeare have text for window = {window}, and num-clients = {num_clients}; set "
            f"num-clients to at most {enough}{' or lower window' * (window > 1)}"
        )
    # Windows of few roles may lack a character; the numbers are the same for all.
    texts = numbered([spoken[role] for role in most[:num_clients]], everything)
    return _of_clients("tinyshakespeare", texts, window)


def text(*, data_file: str, tokens: str = "char", window: PositiveInt = 64) -> Dataset:
    """Text of your own: a file, or a folder whose .txt files are the clients.

    The vocabulary is made of all the text, or is that of a tokenizer. The first nine tenths of each file are for
    training and the rest for the test. Both are cut into windows that do not overlap; what is left over at the end is
    dropped. The target of each token is the next one. Use the partitioner ``natural`` for a folder, and ``iid`` for a
    file.

    Parameters
    ----------
    data_file
        Path of the file or the folder; the text is UTF-8.
    tokens
        ``char`` or ``word``: what stands between spaces or line breaks; or the path of a ``tokenizer.json`` of Hugging
        Face's, or of its folder (extra ``language``). Token ``i`` is then the tokenizer's, as a pretrained model knows
        it, and no special tokens are added.
    window
        Number of tokens of a sample.

    Raises
    ------
    ValueError
        If there is no such file or no .txt file in the folder, a file is not UTF-8, or is too short for a window, or
        the tokenizer cannot be used.
    """
    place = Path(os.path.expanduser(data_file))
    is_folder = os.path.isdir(place)
    paths = sorted(path for path in place.glob("*.txt") if os.path.isfile(path)) if is_folder else [place]
    if not paths:
        raise ValueError(
            f"data-file {place} has no .txt files; give a file, or a folder with one for each client"
        )
    if not os.path.isfile(paths[0]):
        raise ValueError(f"data-file {place} does not exist; give a text file, or a folder of .txt files")
    texts = tokenised([read_text(path) for path in paths], tokens)
    for path, part in zip(paths, texts.numbers, strict=True):
        if not _has_window(len(part), window):
            raise ValueError(
                f"{path} has {len(part)} tokens, and a training window of {window} with its targets needs "
                f"{_least(window)}; lower window{' or remove the file' * is_folder}"
            )
    return _of_clients(place.stem, texts, window, grouped=is_folder)


def ptb(*, data_dir: Path, window: PositiveInt = 70) -> Dataset:
    """Penn Treebank [1]_, word by word: the files ``ptb.train.txt`` and ``ptb.test.txt`` in ``data-dir``.

    Each line ends with the token ``<eos>``. The vocabulary is that of the training text. The text is one: use the
    partitioner ``iid``.

    Parameters
    ----------
    window
        Number of words of a sample.

    Raises
    ------
    ValueError
        If a file is missing, is too short for a window, or the test text has a word that the training text lacks.

    References
    ----------
    .. [1] Mikolov, Karafiat, Burget, Cernocky, Khudanpur, "Recurrent Neural Network Based Language Model", Interspeech
       2010, which made this version of the corpus.
    """
    paths = {part: data_dir / f"ptb.{part}.txt" for part in ("train", "test")}
    for path in paths.values():
        if not os.path.isfile(path):
            raise ValueError(f"{path} does not exist; set data-dir to the folder that has it")
    words = {part: read_text(path).replace("\n", " <eos> ").split() for part, path in paths.items()}
    vocabulary = tuple(sorted({*words["train"]}))
    number_of = {word: number for number, word in enumerate(vocabulary)}
    if unknown := sorted({*words["test"]} - {*vocabulary}):
        raise ValueError(
            f"{paths['test']} has {unknown[0]!r}, which the training text lacks; take files of one version"
        )
    made = {
        part: windows(np.array([number_of[w] for w in own], np.int64), window) for part, own in words.items()
    }
    for part, path in paths.items():
        if not len(made[part][0]):
            raise ValueError(
                f"{path} has {len(words[part])} words, too few for window = {window}; lower window"
            )
    return Dataset.of(
        "ptb",
        made["train"],
        made["test"],
        num_classes=len(vocabulary),
        vocabulary=vocabulary,
        default_model="lstm",
    )


def own_windows(
    place: Path, vocabulary: Sequence[str], words: bool, window: int, tokenizer: str | None = None
) -> Samples:
    """Return the windows of all text of a file, or of a folder's .txt files, in the tokens of a vocabulary.

    Parameters
    ----------
    place
        The file or folder.
    vocabulary
        The tokens, in the order of their numbers.
    words
        Whether tokens are words instead of characters.
    window
        Number of tokens of a sample.
    tokenizer
        Content of the ``tokenizer.json`` that makes the tokens, if they are not characters or words.

    Raises
    ------
    ValueError
        If there is no text, it is too short for a window, or it has a token that is not in the vocabulary.
    """
    paths = sorted(place.glob("*.txt")) if os.path.isdir(place) else [place]
    number_of = {token: number for number, token in enumerate(vocabulary)}
    parts = []
    for path in paths:
        if tokenizer is not None:
            parts.append(windows(encoded(read_text(path), tokenizer), window))
            continue
        part = split(read_text(path), words)
        if unknown := sorted({*part} - {*vocabulary}):
            raise ValueError(
                f"{path} has {len(unknown)} tokens that the run's vocabulary of {len(vocabulary)} lacks, such as "
                f"{unknown[0]!r}: remove them, or let the server's text have them"
            )
        parts.append(windows(np.array([number_of[token] for token in part], np.int64), window))
    if not any(len(x) for x, _ in parts):
        raise ValueError(f"{place} has no text for a window of {window} tokens: give a longer text")
    return _joined(parts)


def roles(play: str) -> Mapping[str, list[str]]:
    r"""Return each role's speeches. A speech is a block of lines after the role's name and a colon.

    Examples
    --------
    >>> dict(roles("All:\nSpeak, speak.\n\nFirst Citizen:\nYou are all\nresolved\n\nAll:\nResolved."))
    {'All': ['Speak, speak.', 'Resolved.'], 'First Citizen': ['You are all\nresolved']}
    """
    found: dict[str, list[str]] = {}
    for block in play.split("\n\n"):
        speech = re.fullmatch(r"([^\n:]{1,40}):\n(.+)", block.strip("\n"), re.DOTALL)
        if speech:
            found.setdefault(speech[1], []).append(speech[2])
    return found


def windows(numbers: NDArray[np.int64], window: int) -> Samples:
    """Return the tokens ``(n, T)`` of consecutive windows, and the tokens after them ``(n, T)``.

    Examples
    --------
    >>> x, y = windows(np.arange(8), 3)
    >>> x.tolist(), y.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    used = (len(numbers) - 1) // window * window if len(numbers) else 0
    return numbers[:used].reshape(-1, window), numbers[1 : used + 1].reshape(-1, window)


def _of_clients(name: str, texts: Tokenised, window: int, grouped: bool = True) -> Dataset:
    """Return the windows of each client's text, of which the last tenth is for the test."""
    train, test = [], []
    for part in texts.numbers:
        train.append(windows(part[: _border(len(part))], window))
        test.append(windows(part[_border(len(part)) :], window))
    sizes = [len(x) for x, _ in train]
    if not any(len(x) for x, _ in test):
        longest = max(len(part) - _border(len(part)) for part in texts.numbers)
        raise ValueError(
            f"{name}: the last tenths of the texts have {longest} tokens at most, too few for a test window of "
            f"{window}; lower window"
        )
    return Dataset.of(
        name,
        _joined(train),
        _joined(test),
        groups=np.repeat(np.arange(len(sizes)), sizes) if grouped else None,
        test_groups=np.repeat(np.arange(len(test)), [len(x) for x, _ in test]),
        default_model="lstm",
        **texts.fields,
    )


def _joined(parts: Sequence[Samples]) -> Samples:
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x, y


def _border(size: int) -> int:
    """Return the number of tokens before the test part."""
    return size * 9 // 10


def _has_window(size: int, window: int) -> bool:
    return _border(size) > window


def _least(window: int) -> int:
    """Return the smallest number of tokens that gives a training window."""
    return -(-10 * (window + 1) // 9)
