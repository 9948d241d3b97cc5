"""Constrained types of hyper-parameters; a configuration with a value outside the range is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""Any finite number."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=True)]
"""A number greater than 0."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=True)]
"""A number that is not negative."""
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number, at least 0."""
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
"""1, 2, ..., small enough for products of two such numbers."""
NonNegativeInt = Annotated[int, Field(ge=0)]
"""0, 1, 2, ..."""
Fraction = Annotated[float, Field(gt=0, le=1)]
"""A number in (0, 1]."""
Probability = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""A number in [0, 1)."""


@final
@dataclass(frozen=True)
class Step:
    """A mark in the annotation of a hyper-parameter that a schedule may change.

    Parameters
    ----------
    inverse
        Whether the value is the inverse of a step size.
    key
        Name of the key for users; by default the name of the hyper-parameter.
    """

    inverse: bool = False
    key: str = ""


StepSize = Annotated[Positive, Step()]
"""A step size, which a schedule multiplies."""
InverseStepSize = Annotated[Positive, Step(inverse=True)]
"""The inverse of a step size or a term of it, as in PISA's ``1 / (sigma + rho Q)``; a schedule divides it."""
NonNegativeInverseStepSize = Annotated[NonNegative, Step(inverse=True)]
"""An `InverseStepSize` that may be zero."""

_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def bytes_of(size: object) -> int:
    """Return the number of bytes of a size such as ``2000000000``, ``2GB`` or ``500 MB``.

    Raises
    ------
    PydanticCustomError
        If ``size`` has another form; it is a ValueError.

    Examples
    --------
    >>> bytes_of("1.5 GB"), bytes_of(0)
    (1500000000, 0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?B|)", str(size).strip().upper())
    if match is None:
        raise PydanticCustomError("bytes", 'a number of bytes, or one with KB, MB, GB or TB such as "2GB"')
    return int(Decimal(match[1]) * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(bytes_of), Field(lt=2**63)]
"""An amount of memory."""
