"""Text as numbers: characters, words, or the tokens of a local tokenizer of Hugging Face's."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.components import one_line


@final
@dataclass(frozen=True)
class Tokenised:
    """Texts as the numbers of their tokens.

    Parameters
    ----------
    numbers
        The tokens of each text, ``(n_i,)`` int64.
    vocabulary
        Text of each token in the order of the numbers.
    tokenizer
        Content of the ``tokenizer.json`` that made the tokens; ``None`` for characters and words.
    """

    numbers: tuple[NDArray[np.int64], ...]
    vocabulary: tuple[str, ...]
    tokenizer: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What a data set says about its tokens, as parameters of `Dataset`."""
        return {
            "num_classes": len(self.vocabulary),
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
        }


def tokenised(texts: Sequence[str], tokens: str, more: Iterable[str] = ()) -> Tokenised:
    """Return texts in tokens.

    Parameters
    ----------
    texts
        The texts; characters and words number those that occur in any of them.
    tokens
        ``char``, ``word``, or the path of a ``tokenizer.json`` or of its folder.
    more
        Further characters or words of the vocabulary.

    Raises
    ------
    ValueError
        If the tokenizer is missing or damaged, or cannot read a text.

    Examples
    --------
    >>> made = tokenised(["to be", "or to"], "word")
    >>> made.vocabulary, [part.tolist() for part in made.numbers]
    (('be', 'or', 'to'), [[2, 0], [1, 2]])
    """
    if tokens in ("char", "word"):
        parts = [split(text, words=tokens == "word") for text in texts]
        return numbered(parts, {*more}.union(*parts))
    tokenizer = read_text(tokenizer_path(tokens))
    numbers = tuple(encoded(text, tokenizer) for text in texts)
    return Tokenised(numbers, _vocabulary(tokenizer), tokenizer)


def numbered(parts: Iterable[Sequence[str]], tokens: Iterable[str]) -> Tokenised:
    """Return texts, each a sequence of characters or words, in the numbers of the sorted distinct ``tokens``.

    Examples
    --------
    >>> numbered(["ba"], "abc").numbers[0].tolist()
    [1, 0]
    """
    vocabulary = tuple(sorted({*tokens}))
    number_of = {token: number for number, token in enumerate(vocabulary)}
    numbers = tuple(np.array([number_of[token] for token in part], np.int64) for part in parts)
    return Tokenised(numbers, vocabulary)


def split(text: str, words: bool) -> Sequence[str]:
    """Return a text's characters, or its words: what stands between spaces or line breaks."""
    return text.split() if words else text


def encoded(text: str, tokenizer: str) -> NDArray[np.int64]:
    """Return a text's tokens, without special ones at its ends.

    Parameters
    ----------
    text
        The text.
    tokenizer
        Content of a ``tokenizer.json``.

    Raises
    ------
    ValueError
        If the tokenizer cannot be used, or has no token for a part of the text.
    """
    made = _tokenizer(tokenizer)
    try:
        return np.array(made.encode(text, add_special_tokens=False).ids, np.int64)
    except Exception as error:  # the package raises no other kind
        raise ValueError(
            f"the tokenizer cannot read a text ({one_line(error)[:200]}): take one that knows all its tokens"
        ) from error


def decode(numbers: Iterable[int], vocabulary: Sequence[str], tokenizer: str | None = None) -> str:
    """Return the text of tokens: that of the tokenizer, or characters side by side, or words with spaces between them.

    Examples
    --------
    >>> decode([1, 0, 1], ("n", "o")), decode([1, 0], ("be", "to"))
    ('ono', 'to be')
    """
    if tokenizer is not None:
        text: str = _tokenizer(tokenizer).decode([int(one) for one in numbers], skip_special_tokens=False)
        return text
    between = "" if all(len(token) == 1 for token in vocabulary) else " "
    return between.join(vocabulary[number] for number in numbers)


def padding_number(tokens: str) -> int:
    """Return the number of a tokenizer's padding token; of its end token, if it has no other.

    Parameters
    ----------
    tokens
        Path of a ``tokenizer.json`` or of its folder. A ``tokenizer_config.json`` beside it may name the token.

    Raises
    ------
    ValueError
        If no file names such a token, or the tokenizer lacks it.
    """
    path = tokenizer_path(tokens)
    config = path.with_name("tokenizer_config.json")
    named: Any = {}
    try:
        padding = json.loads(read_text(path)).get("padding")
        if padding:
            return int(padding["pad_id"])
        if os.path.isfile(config):
            named = json.loads(read_text(config))
        token = named.get("pad_token") or named.get("eos_token")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} or {config.name} beside it is damaged; write the tokenizer again"
        ) from error
    content = token.get("content") if isinstance(token, dict) else token
    number = None if content is None else _tokenizer(read_text(path)).token_to_id(content)
    if number is None:
        raise ValueError(f"{path} has no padding token; name one of its tokens as pad_token in {config}")
    return int(number)


def tokenizer_path(tokens: str) -> Path:
    """Return the path of a tokenizer's file.

    Raises
    ------
    ValueError
        If there is none.
    """
    place = Path(os.path.expanduser(tokens))
    path = place / "tokenizer.json" if os.path.isdir(place) else place
    if not os.path.isfile(path):
        raise ValueError(
            f"tokens = {tokens!r}: {path} does not exist; set char, word, or the path of a tokenizer.json, as "
            "save_pretrained of transformers writes it"
        )
    return path


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    ValueError
        If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start}); store it as UTF-8") from error


def _vocabulary(tokenizer: str) -> tuple[str, ...]:
    """Return the texts of a tokenizer's tokens, those that were added too; a number without a token has none."""
    token_of = {number: token for token, number in _tokenizer(tokenizer).get_vocab().items()}
    return tuple(token_of.get(number, "") for number in range(max(token_of, default=-1) + 1))


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "tokens from a tokenizer.json need the extra language; run pip install 'fedpisa[language]'"
        ) from error
    try:
        made = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the package raises no other kind
        raise ValueError(
            f"the tokenizer.json cannot be used ({one_line(error)[:200]}); write it again with save_pretrained of "
            "transformers"
        ) from error
    # The file may cut or pad each text to a length.
    made.no_truncation()
    made.no_padding()
    return made
