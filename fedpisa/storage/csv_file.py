"""CSV files that a spreadsheet shows as text and numbers, and never as formulas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fedpisa.components.names import escaped

if TYPE_CHECKING:
    import pandas as pd

_FORMULA: Final = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet takes for the beginning of a formula."""
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]inf", re.IGNORECASE)


def to_csv(frame: pd.DataFrame) -> bytes:
    """Return a table as a CSV file without an index, whose titles and texts are `safe_cell`s.

    Examples
    --------
    >>> import pandas as pd
    >>> print(to_csv(pd.DataFrame({"name": ["=1+1"], "change": [-0.5]})).decode(), end="")
    name,change
    '=1+1,-0.5
    """
    safe = frame.rename(columns=safe_cell)
    for name in safe.columns[[not _is_number(kind) for kind in safe.dtypes]]:
        safe[name] = safe[name].map(safe_cell, na_action="ignore")
    text: str = safe.to_csv(index=False)
    return text.encode()


def safe_cell(value: Any) -> Any:
    r"""Return a number unchanged, and any other value as a text that is not a formula.

    Examples
    --------
    >>> safe_cell(-1.5), safe_cell("-1.5"), safe_cell("-1+cmd|' /C calc'!A0"), safe_cell("a\x1b[2J")
    (-1.5, '-1.5', "'-1+cmd|' /C calc'!A0", 'a\\x1b[2J')
    """
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    begins_formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{escaped(text)}" if begins_formula else escaped(text)


def _is_number(kind: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(kind) or is_bool_dtype(kind)
