"""Tables of samples: columns go by name, and what a file does not say is asked for."""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.components import one_line

if TYPE_CHECKING:
    import pandas as pd

TABLES: Final = (".csv", ".csv.gz", ".parquet")
"""Endings of table files, in any case."""
LONGEST_NAME: Final = 200
"""Characters of the longest name of a column; a longer one is rather a row of a file without a header."""
_SEPARATORS: Final = ",;\t"
_NUMBER: Final = r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?i:inf(?:inity)?))"
_PADDED: Final = r"[+-]?0\d+"
_TRUTH: Final = ("True", "TRUE", "true", "False", "FALSE", "false")


@final
@dataclass(frozen=True)
class TableSchema:
    """Which columns of a table are features, in which order, and which are not.

    Parameters
    ----------
    label
        The label's column.
    group
        The column with each sample's natural client, if there is one.
    dropped
        Columns that are left out.
    features
        The features' columns in order; empty before a table has been read, which then gives them.
    classes
        The names of the classes, if they are known.
    """

    label: str = "label"
    group: str | None = None
    dropped: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def chosen(self) -> dict[str, str]:
        """The columns that have a meaning, by the key that names them."""
        return {"label-column": self.label, **({"group-column": self.group} if self.group else {})}

    def fitted(self, path: Path, columns: Sequence[str]) -> TableSchema:
        """Return the schema with the features of a table's columns.

        Raises
        ------
        ValueError
            If a column is missing or there is no feature.
        """
        for key, column in {
            **self.chosen,
            **{f"drop-columns ({name})": name for name in self.dropped},
        }.items():
            if column not in columns:
                raise ValueError(f"{path} has no column {column!r}; set {key} to one of {_few(columns)}")
        others = (*self.chosen.values(), *self.dropped)
        features = self.features or tuple(name for name in columns if name not in others)
        if not features:
            raise ValueError(f"{path} has no feature beside the column {self.label!r}; give at least one")
        missing = [name for name in features if name not in columns]
        extra = [name for name in columns if name not in (*features, *others)]
        if missing or extra:
            cause = f"no column {missing[0]!r}" if missing else f"a further column {extra[0]!r}"
            raise ValueError(f"{path} has {cause}: the features are {_few(features)}")
        return replace(self, features=features)


def read_table(path: Path, schema: TableSchema) -> tuple[TableSchema, dict[str, NDArray[Any]]]:
    """Return the fitted schema, and float64 features ``x`` ``(n, F)``, labels ``y`` and ``groups`` if there are any.

    Parameters
    ----------
    path
        A file that ends in one of `TABLES`.
    schema
        What the columns mean. If it has features already, the table's columns are put in their order.

    Raises
    ------
    ValueError
        If the file is malformed, or a column does not fit.
    """
    table = _read_parquet(path, schema) if path.suffix.lower() == ".parquet" else _read_csv(path, schema)
    if table.empty:
        raise ValueError(f"{path} has no samples; give at least two of every class")
    columns = [str(name) for name in table.columns]
    table.columns = columns
    _refuse_index(path, columns, schema)
    schema = schema.fitted(path, _require_unique(path, columns))
    features = table[list(schema.features)]
    arrays = {"x": _numbers(path, features), "y": _plain(path, table[schema.label])}
    if schema.group is not None:
        arrays["groups"] = _plain(path, table[schema.group])
    for column in schema.chosen.values():
        empty = table[column].isna().to_numpy() | (table[column] == "").to_numpy(dtype=bool, na_value=False)
        if empty.any():
            raise ValueError(
                f"{path}: row {int(empty.argmax())} has no {column}; fill it in or remove the row"
            )
    return schema, arrays


def _few(columns: Sequence[str]) -> str:
    text = ", ".join(columns)
    return text if len(text) <= 400 else f"{text[:400]}..."


def _read_csv(path: Path, schema: TableSchema) -> pd.DataFrame:
    import pandas as pd
    from pandas.errors import ParserWarning

    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = dropwhile(lambda line: not line.strip(), file)
            first = next(lines, "")
            separator = _separator(first, schema.label)
            header = next(csv.reader(chain([first], lines), delimiter=separator), [])
        _require_unique(path, header)
        _refuse_index(path, header, schema)
        texts = [name for name in schema.chosen.values() if name in header]
        # A class may be named like a missing value; a feature may not.
        missing = {name: _MISSING for name in header if name not in schema.chosen.values()}
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)
            # Without index_col pandas makes an index of the first column where rows are longer than the header.
            table = pd.read_csv(
                path,
                sep=separator,
                dtype=dict.fromkeys(texts, "str"),
                na_values=missing,
                keep_default_na=False,
                index_col=False,
                low_memory=False,
            )
        if len(header) == len(table.columns):
            table.columns = header  # pandas renames a column without a name
        return table.assign(**{name: _as_written(table[name], schema.classes) for name in texts})
    except ParserWarning:
        raise ValueError(
            f"{path}: a row has more cells than the header has names; name every column"
        ) from None
    except (
        OSError,
        EOFError,
        ValueError,
        csv.Error,
        zlib.error,
    ) as error:  # pandas' errors of a malformed file are ValueErrors
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}); check the file"
        ) from error


def _separator(first: str, label: str) -> str:
    """Return what separates the names of a header: what gives the label's column, or else what stands there most."""
    frequent = sorted(_SEPARATORS, key=first.count, reverse=True)
    fitting = (s for s in frequent if label in next(csv.reader([first], delimiter=s), []))
    return next(fitting, frequent[0])


def _as_written(texts: pd.Series[Any], classes: Sequence[str]) -> pd.Series[Any]:
    """Return a column of texts as numbers or truth values if all are; 007 is a name, because it is not 7.

    Texts that are names of classes stay: 1e5 is one if the classes are 1e5 and 2f5.
    """
    import pandas as pd

    if texts.empty or texts.isna().any():
        return texts
    texts = texts.str.strip()
    if texts.isin(classes).all():
        return texts
    if texts.str.fullmatch(_NUMBER).all() and not texts.str.fullmatch(_PADDED).any():
        numbers: pd.Series[Any] = pd.read_csv(io.StringIO("\n".join(texts)), header=None, low_memory=False)[0]
        return numbers
    return texts.str.lower() == "true" if texts.isin(_TRUTH).all() else texts


_MISSING: Final = [
    "",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "-nan",
    "-NaN",
    "null",
    "NULL",
    "None",
    "<NA>",
    "#N/A",
]
"""Cells of a feature that say that there is no value."""


def _read_parquet(path: Path, schema: TableSchema) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(f"{path} needs the extra parquet; run pip install 'fedpisa[parquet]'") from error
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(f"{path} cannot be read ({one_line(error)[:200]}); check the file") from error
    named = [str(name) for name in table.index.names if name is not None]
    wanted = (*schema.chosen.values(), *schema.dropped)
    unasked = [name for name in named if name not in wanted and name not in schema.features]
    if unasked:
        raise ValueError(
            f"{path}: its index {unasked[0]!r} may be a feature or a row number: write it with reset_index(), or set "
            f"drop-columns = [{unasked[0]!r}]"
        )
    return table.reset_index() if named else table.reset_index(drop=True)


def _require_unique(path: Path, columns: Sequence[str]) -> Sequence[str]:
    if len(longest := max(columns, key=len, default="")) > LONGEST_NAME:
        raise ValueError(
            f"{path} has a column name of {len(longest)} characters, {longest[:40]!r}...; write a header, or shorten it"
        )
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}; give every column a name")
    return columns


def _refuse_index(path: Path, columns: Sequence[str], schema: TableSchema) -> None:
    """Refuse a column without a name, which is a row number that was saved with the table."""
    for name in columns:
        nameless = not name.strip() or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)
        if nameless and name not in schema.dropped and name not in schema.features:
            raise ValueError(
                f"{path}: column {name!r} has no name, as a saved index has none: write the table with index=False, "
                f"or set drop-columns = [{name!r}]"
            )


def _numbers(path: Path, features: pd.DataFrame) -> NDArray[np.float64]:
    """Return a table of numbers as float64; say in which cell one is missing."""
    import pandas as pd

    for name, dtype in features.dtypes.items():
        if not (pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)):
            raise ValueError(f"{path}: column {name!r} does not hold numbers; encode it, or set drop-columns")
    x: NDArray[np.float64] = features.to_numpy(np.float64, na_value=np.nan)
    rows, columns = np.nonzero(np.isnan(x))
    if len(rows):
        name = features.columns[columns[0]]
        raise ValueError(
            f"{path}: row {rows[0]} has no number in column {name!r}; fill it in or remove the row"
        )
    return x


def _plain(path: Path, column: pd.Series[Any]) -> NDArray[Any]:
    """Return a column as numbers or strings; decimal numbers are numbers."""
    from decimal import Decimal

    values = column.to_numpy()
    if values.dtype.kind == "O":
        if any(isinstance(value, dict | list | tuple | np.ndarray) for value in values):
            raise ValueError(
                f"{path}: column {column.name!r} holds lists; give one number or text in each cell"
            )
        kinds = {type(value) for value in values}
        return values.astype(np.float64 if kinds <= {Decimal, float} else str)
    return values


def is_table(path: Path) -> bool:
    """Return whether a file's name is a table's."""
    return path.name.lower().endswith(TABLES)


def lost_columns(x: NDArray[np.float64], names: Sequence[str]) -> Mapping[str, int]:
    """Return, by column, how many different values float32 makes equal.

    Examples
    --------
    >>> lost_columns(np.array([[1.7e9, 0.5], [1.7e9 + 1, 1.5]]), ["time", "z"])
    {'time': 1}
    """
    found = {}
    for name, column in zip(names, x.T, strict=True):
        with np.errstate(over="ignore"):
            before, after = np.unique(column), np.unique(column.astype(np.float32))
        if len(after) < len(before):
            found[name] = len(before) - len(after)
    return found
