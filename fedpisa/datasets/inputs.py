"""Samples of several features, such as tokens and their mask, packed into one array of integers.

Engines carry one array of features, also for a model that takes several. These lie in it side by side, and `Inputs`
says which columns are whose. Integers and truth values keep their value, and floats their bits: nothing is rounded. A
model gets the features as it expects them.

Shapes: ``n`` samples, ``W`` columns, and any leading axes ``...`` of tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Several: TypeAlias = Mapping[str, NDArray[Any]] | tuple[NDArray[Any], ...]
"""Features ``(n, *shape)`` by name, or in order."""

_BITS: Final = {"float32": np.int32, "float64": np.int64}
"""Integers of the same size as floats."""


@final
@dataclass(frozen=True)
class Inputs:
    """What the columns of packed features are.

    Parameters
    ----------
    names
        Names of the features, by which ``forward`` takes them; none if it takes them in order.
    shapes
        Shape of one sample of each feature.
    dtypes
        ``float32``, ``float64``, ``int64`` or ``bool`` of each feature.

    Examples
    --------
    >>> import torch
    >>> features = {"ids": np.array([[7, 2**60 + 1]]), "weight": np.array([0.1])}
    >>> inputs = Inputs.of("data", features)
    >>> str(inputs), inputs.width
    ('ids (2,) int64, weight () float64', 3)
    >>> in_order, by_name = inputs.arguments(torch.from_numpy(inputs.packed("data", features)), torch.float64)
    >>> in_order, by_name["ids"].tolist(), by_name["weight"].tolist()
    ((), [[7, 1152921504606846977]], [0.1])
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, source: str, features: Several) -> Self:
        """Return what several features are; ``source`` names the data in errors.

        Raises
        ------
        ValueError
            If there are none, a name is no keyword, or an array holds no numbers.
        """
        named = isinstance(features, Mapping)
        wrong = [name for name in features if named and not (isinstance(name, str) and name.isidentifier())]
        if wrong or not features:
            what = f"a feature by the name {wrong[0]!r}" if wrong else "no features"
            raise ValueError(
                f"{source} has {what}; a model is called as module(**features), so give names such as input_ids"
            )
        kept = {name: _kept(source, name, values) for name, values in _items(features)}
        return cls(
            tuple(kept) if named else (),
            tuple(values.shape[1:] for values in kept.values()),
            tuple(str(values.dtype) for values in kept.values()),
        )

    def packed(self, source: str, features: Several) -> NDArray[np.int64]:
        """Return the features ``(n, W)`` side by side; ``source`` names the data in errors.

        Raises
        ------
        ValueError
            If they are other features, their lengths differ, or a number is NaN or infinite.
        """
        found = Inputs.of(source, features)
        by_name = dict(_items(features))
        if sorted(found._described()) != sorted(self._described()) or bool(found.names) != bool(self.names):
            raise ValueError(
                f"{source} has the features {found}, and {self} are wanted; give all samples the same features"
            )
        kept = [_kept(source, key, by_name[key]) for key in self._keys()]
        lengths = [len(values) for values in kept]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"{source} has features of {', '.join(map(str, lengths))} samples ({self}); give each one of every "
                "sample"
            )
        for name, values in zip(self._keys(), kept, strict=True):
            if not np.isfinite(values).all():
                sample = int(np.nonzero(~np.isfinite(values))[0][0])
                raise ValueError(
                    f"{source}: sample {sample} has a NaN or infinite number in the feature {name}; remove the sample "
                    "or fill in the value"
                )
        return np.concatenate([_bits(values.reshape(len(values), -1)) for values in kept], axis=1)

    def arguments(self, x: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the positional and the keyword arguments of a model for packed samples ``(..., W)``.

        Floats get the ``dtype``; integers are int64, and truth values bool.
        """
        import torch

        sizes = [math.prod(shape) for shape in self.shapes]
        parts = tuple(
            _of_bits(part, kind, dtype).reshape(*part.shape[:-1], *shape)
            for part, kind, shape in zip(torch.split(x, sizes, -1), self.dtypes, self.shapes, strict=True)
        )
        return ((), dict(zip(self.names, parts, strict=True))) if self.names else (parts, {})

    @property
    def width(self) -> int:
        """Number of columns ``W``."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def num_integers(self) -> int:
        """Number of a sample's integers, such as tokens."""
        kinds = zip(self.shapes, self.dtypes, strict=True)
        return sum(math.prod(shape) for shape, kind in kinds if kind == "int64")

    @property
    def shape(self) -> dict[str, tuple[int, ...]] | tuple[tuple[int, ...], ...]:
        """Shapes of a sample's features, by name or in order."""
        return dict(zip(self.names, self.shapes, strict=True)) if self.names else self.shapes

    def __str__(self) -> str:
        return ", ".join(self._described())

    def to_text(self) -> str:
        """Return a text of which `of_text` makes equal inputs.

        Examples
        --------
        >>> inputs = Inputs(("ids",), ((3,),), ("int64",))
        >>> Inputs.of_text(inputs.to_text()) == inputs
        True
        """
        return json.dumps([self.names, self.shapes, self.dtypes])

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Return the inputs that a text of `to_text` describes."""
        names, shapes, dtypes = json.loads(text)
        return cls(tuple(names), tuple(map(tuple, shapes)), tuple(dtypes))

    def _keys(self) -> Sequence[str | int]:
        return self.names or range(len(self.shapes))

    def _described(self) -> list[str]:
        """Return each feature in words."""
        return [
            f"{key} {shape} {dtype}"
            for key, shape, dtype in zip(self._keys(), self.shapes, self.dtypes, strict=True)
        ]


def is_several(features: object) -> bool:
    """Return whether features are several: a dictionary, or a tuple with an array among its entries.

    A tuple of numbers is one vector.

    Examples
    --------
    >>> [is_several(one) for one in ({"a": np.zeros(2)}, (np.zeros((2, 2)), 1.0), (0.5, 1.0), np.zeros(2))]
    [True, True, False, False]
    """
    if isinstance(features, tuple):
        return any(getattr(part, "ndim", 0) > 0 for part in features)
    return isinstance(features, Mapping)


def stacked(samples: Sequence[Any]) -> Several:
    """Return several features of all samples, given those of each.

    Raises
    ------
    ValueError
        If a sample has other features than the first one, or of other shapes.

    Examples
    --------
    >>> {name: values.tolist() for name, values in stacked([{"a": [1, 2]}, {"a": [3, 4]}]).items()}
    {'a': [[1, 2], [3, 4]]}
    """
    first = samples[0]
    keys = dict(_items(first)).keys()
    for number, sample in enumerate(samples):
        if type(sample) is not type(first) or dict(_items(sample)).keys() != keys:
            raise ValueError(f"sample {number} has other features than the first one")
    columns = {}
    for key in keys:
        try:
            columns[key] = np.stack([np.asarray(sample[key]) for sample in samples])
        except (TypeError, ValueError) as error:
            raise ValueError(f"feature {key}: {error}") from error
    return columns if isinstance(first, Mapping) else tuple(columns.values())


def rows_of(features: NDArray[Any] | Several, rows: NDArray[np.int64]) -> NDArray[Any] | Several:
    """Return some of the samples of one or several features."""
    if isinstance(features, tuple):
        return tuple(values[rows] for values in features)
    if isinstance(features, Mapping):
        return {name: values[rows] for name, values in features.items()}
    return features[rows]


def require_one(inputs: Inputs | None, what: str, fix: str) -> None:
    """Raise a ValueError if samples have several features where ``what`` takes one array.

    Examples
    --------
    >>> require_one(Inputs(("a",), ((3,),), ("int64",)), "standardize = true", "remove it")
    Traceback (most recent call last):
      ...
    ValueError: standardize = true takes one array of features, and a sample has a (3,) int64: remove it
    """
    if inputs is not None:
        raise ValueError(f"{what} takes one array of features, and a sample has {inputs}: {fix}")


def _items(features: Any) -> list[tuple[Any, Any]]:
    return list(features.items() if isinstance(features, Mapping) else enumerate(features))


def _kept(source: str, name: str | int, given: Any) -> NDArray[Any]:
    """Return a feature as it is kept: float64, float32, int64 or bool. Integers of 8 bits are pixels, thus numbers."""
    values: NDArray[Any] = np.asarray(given)
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind not in "fiub" or not (kind in "fb" or np.can_cast(values.dtype, np.int64)):
        raise ValueError(f"{source}: feature {name} holds {values.dtype}; give floats, int64 or bool")
    if values.ndim == 0 or values.size == 0:
        raise ValueError(
            f"{source}: feature {name} has shape {values.shape}; give at least one sample and one number, as an array "
            "(samples, ...)"
        )
    if kind == "b":
        return values
    if kind in "iu" and size > 1:
        return values.astype(np.int64, copy=False)
    return values.astype(np.float64 if kind == "f" and size > 4 else np.float32, copy=False)


def _bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return each number as an integer of the same bits, or of the same value if it is an integer or truth value."""
    bits = _BITS.get(str(values.dtype))
    return (values if bits is None else np.ascontiguousarray(values).view(bits)).astype(np.int64)


def _of_bits(x: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Return the numbers of which `_bits` made integers."""
    import torch

    if kind == "float32":
        return x.to(torch.int32).view(torch.float32).to(dtype)
    if kind == "float64":
        return x.view(torch.float64).to(dtype)
    return x != 0 if kind == "bool" else x
