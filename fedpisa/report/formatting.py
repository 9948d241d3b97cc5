"""Numbers as text, for the tables and for sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedpisa.report.statistics import Comparison, Estimate

if TYPE_CHECKING:
    from fedpisa.tasks.measures import Measure

NOTHING = "–"
"""Placeholder of a missing number."""


def number(value: float | None, measure: Measure | None = None) -> str:
    """Return a measured value: an accuracy in per cent with two digits, anything else with four significant ones.

    Examples
    --------
    >>> number(1234.5678), number(56789.0), number(None)
    ('1235', '56,789', '–')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if measure is not None and measure.percent:
        return f"{100 * value:.2f}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def spread(value: Estimate | None, measure: Measure | None = None) -> str:
    """Return ``mean ± sd``, or the mean alone for a single seed.

    An accuracy has two digits; else the deviation has two significant ones, and the mean ends where it does.

    Examples
    --------
    >>> from fedpisa.report.statistics import estimate
    >>> spread(estimate([10.0, 20.0, 60.0])), spread(estimate([0.61, 0.58])), spread(estimate([1.0]))
    ('30 ± 26', '0.595 ± 0.021', '1')
    """
    if value is None:
        return NOTHING
    if value.sd is None:
        return number(value.mean, measure)
    if measure is not None and measure.percent:
        return f"{number(value.mean, measure)} ± {number(value.sd, measure)}"
    if value.sd == 0 or not 1e-6 < value.sd < 1e9:
        return f"{number(value.mean)} ± {value.sd:.2g}"
    digits = max(0, 1 - math.floor(math.log10(value.sd)))
    return f"{value.mean:,.{digits}f} ± {value.sd:,.{digits}f}"


def interval(value: Estimate | None, measure: Measure | None = None) -> str:
    """Return the 95% interval as ``[low, high]``; a single seed has none."""
    if value is None or value.low is None:
        return NOTHING
    return f"[{number(value.low, measure)}, {number(value.high, measure)}]".replace("-", "−")


def difference(value: Estimate | None, measure: Measure) -> str:
    """Return a difference with its sign; accuracies differ by percentage points."""
    if value is None:
        return NOTHING
    text = number(abs(value.mean), measure)
    return text if float(text) == 0 else ("+" if value.mean > 0 else "−") + text


def fixed(value: Estimate | None, digits: int) -> str:
    """Return ``mean ± sd`` with ``digits`` digits after the point."""
    if value is None:
        return NOTHING
    tail = "" if value.sd is None else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{tail}"


def p_value(p: float | None) -> str:
    """Return a p-value.

    Examples
    --------
    >>> p_value(0.0472), p_value(0.00001), p_value(1.0), p_value(None)
    ('0.047', '<0.001', '1', '–')
    """
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}".rstrip("0").rstrip(".") if p >= 0.9995 else f"{p:.3f}"


def verdict(found: Comparison) -> str:
    """Return the result of a comparison in words."""
    if found.difference is None:
        return "no seed in common"
    if found.difference.n < 2:
        return "one pair: no test"
    return "significant" if found.significant else "not significant"
