"""Recipes of your own: a table of texts, each of which is a sample."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpisa.components import one_line
from fedpisa.datasets.base import IGNORED, Dataset, Samples
from fedpisa.datasets.tokens import padding_number, read_text, tokenised
from fedpisa.typing import PositiveInt

_COLUMNS: Final = ("ingredients", "instructions")
_PADDING: Final = "\N{SYMBOL FOR NULL}"
"""What fills short texts of characters or words; it has one character, as `decode` needs."""


def recipes(
    *,
    data_dir: Path,
    recipes_file: str = "recipes.csv",
    tokens: str = "char",
    window: PositiveInt = 180,
    mask_padding: bool = True,
) -> Dataset:
    """Recipes of a CSV with the columns ``ingredients`` and ``instructions``: one sample each.

    A sample's text is the ingredients, a line break and the instructions. Its first ``window`` tokens are the features,
    and the token after each of them is the target. Shorter texts are padded at the end. The first nine tenths of the
    recipes are for training and the rest for the test. Use the partitioner ``iid``.

    Parameters
    ----------
    recipes_file
        Name of the file in ``data-dir``, or its path; the text is UTF-8.
    tokens
        ``char`` or ``word``: what stands between spaces or line breaks; or the path of a ``tokenizer.json`` of Hugging
        Face's, or of its folder (extra ``language``), which then names the padding token.
    window
        Number of tokens of a sample.
    mask_padding
        Whether targets behind the end of a text do not count. Otherwise the model learns to write the padding token.

    Raises
    ------
    ValueError
        If the file is missing or is no such CSV, a recipe has fewer than two tokens, or the tokenizer cannot be used or
        has no padding token.
    """
    path = data_dir / os.path.expanduser(recipes_file)
    made = tokenised(_texts(path), tokens, more=[_PADDING])
    by_symbol = made.tokenizer is None
    padding = made.vocabulary.index(_PADDING) if by_symbol else padding_number(tokens)
    for number, part in enumerate(made.numbers, 1):
        if len(part) < 2:
            raise ValueError(
                f"{path}: recipe {number} has {len(part)} tokens, too few for a target; remove it"
            )
    border = len(made.numbers) * 9 // 10
    train, test = (
        _padded(part, window, padding, IGNORED if mask_padding else padding)
        for part in (made.numbers[:border], made.numbers[border:])
    )
    return Dataset.of("recipes", train, test, default_model="lstm", **made.fields)


def _texts(path: Path) -> list[str]:
    """Return each recipe's text."""
    if not os.path.isfile(path):
        raise ValueError(
            f"{path} does not exist; put a CSV with the columns {' and '.join(_COLUMNS)} there, or set recipes-file"
        )
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}; name the columns in the first line")
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.reader.line_num}: {one_line(error)}; correct the CSV"
        ) from error
    for number, row in enumerate(rows, 1):
        # The reader marks what a row lacks by a None, and what it has too much by the key None.
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: recipe {number} has {'more' if None in row else 'fewer'} fields than the first line has "
                "columns; put texts with commas or line breaks in quotes"
            )
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} recipes; give at least two, one to train and one to test")
    return ["\n".join(row[name] for name in _COLUMNS) for row in rows]


def _padded(texts: Sequence[NDArray[np.int64]], window: int, padding: int, target: int) -> Samples:
    """Return the first tokens of texts and those after them, both ``(n, T)``, filled with ``padding`` and ``target``.

    Examples
    --------
    >>> x, y = _padded([np.array([1, 2]), np.array([3, 4, 5, 6])], 2, 0, -100)
    >>> x.tolist(), y.tolist()
    ([[1, 2], [3, 4]], [[2, -100], [4, 5]])
    """
    x, y = (np.full((len(texts), window), fill, np.int64) for fill in (padding, target))
    for row, text in enumerate(texts):
        x[row, : len(text)] = text[:window]
        y[row, : len(text) - 1] = text[1 : window + 1]
    return x, y
