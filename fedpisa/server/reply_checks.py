"""Checks of replies from untrusted clients, made before anything of a reply is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedpisa.flower.compat import TensorArray
from fedpisa.flower.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND

MOST_EXAMPLES: Final = 10**9
"""Samples that one client may claim; with them it claims weight."""


@final
@dataclass(frozen=True)
class Screen:
    """What every valid reply of a round has.

    Parameters
    ----------
    server_round
        The round that it answers.
    shapes
        Its arrays' shapes, by name.
    metrics
        Its scalars' names, besides the number of examples.
    dtype
        The arrays' floating-point type.
    max_norm
        The largest Euclidean norm of an array.
    """

    server_round: int
    shapes: Mapping[str, tuple[int, ...]]
    metrics: frozenset[str]
    dtype: torch.dtype
    max_norm: float

    def fault(self, reply: Message) -> str | None:
        """Return what is wrong with a reply, ``None`` if nothing is."""
        if reply.has_error():
            return f"its client failed: {reply.error.reason or reply.error.code}"
        if not reply.has_content():
            return "it is empty"
        content = reply.content
        if sorted(content) != sorted((ARRAYS, METRICS, CONFIG)):
            return f"it has the records {sorted(content)}, not {sorted((ARRAYS, METRICS, CONFIG))}"
        of = content.config_records[CONFIG].get(SERVER_ROUND) if CONFIG in content.config_records else None
        if of != self.server_round:
            return f"it is of round {of!r}, not {self.server_round}"
        if METRICS not in content.metric_records or ARRAYS not in content.array_records:
            return "a record is not of its kind"
        return self._metrics_fault(content.metric_records[METRICS]) or self._arrays_fault(
            content.array_records[ARRAYS]
        )

    def _metrics_fault(self, metrics: MetricRecord) -> str | None:
        wanted = sorted({*self.metrics, NUM_EXAMPLES})
        if sorted(metrics) != wanted:
            return f"it has the metrics {sorted(metrics)}, not {wanted}"
        for name, value in metrics.items():
            if not isinstance(value, int | float):
                return f"{name} is not a number"
            if not math.isfinite(value):
                return f"{name} is {value}"
        count = metrics[NUM_EXAMPLES]
        if not isinstance(count, int) or not 1 <= count <= MOST_EXAMPLES:
            return f"{NUM_EXAMPLES} is {count}, not a whole number from 1 to {MOST_EXAMPLES}"
        return None

    def _arrays_fault(self, arrays: ArrayRecord) -> str | None:
        if sorted(arrays) != sorted(self.shapes):
            return f"it has the arrays {sorted(arrays)}, not {sorted(self.shapes)}"
        for name, shape in self.shapes.items():
            values = numbers(arrays[name], shape, self.dtype)
            if isinstance(values, str):
                return f"{name} {values}"
            norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
            if not math.isfinite(norm):
                return f"{name} is not finite"
            if norm > self.max_norm:
                return f"{name} has the norm {norm:.3g}, above {self.max_norm:.3g}"
        return None


def numbers(array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | str:
    """Return an array's numbers, or why it does not have that shape and type.

    No header is interpreted: the bytes must begin with the one that the shape and the type have in NumPy's
    format, and go on with as many bytes as their numbers take.

    Examples
    --------
    >>> from flwr.app import Array
    >>> array = Array(np.ones(2, np.float32))
    >>> numbers(array, (2,), torch.float32)
    tensor([1., 1.])
    >>> numbers(array, (3,), torch.float32)
    'is float32 of shape (2,), not float32 of shape (3,)'
    """
    name = str(dtype).removeprefix("torch.")
    if array.dtype != name or tuple(array.shape) != shape:
        return f"is {array.dtype} of shape {tuple(array.shape)}, not {name} of shape {shape}"
    if isinstance(array, TensorArray):
        tensor: Tensor = array.__dict__["tensor"]
        return tensor
    if array.stype != "numpy.ndarray":
        return f"is encoded as {array.stype!r}, not 'numpy.ndarray'"
    header, data = _header(shape, name), array.data
    length = len(header) + math.prod(shape) * np.dtype(name).itemsize
    if len(data) != length or data[: len(header)] != header:
        return "is not what its description says"
    values: Any = np.frombuffer(data, name, offset=len(header)).reshape(shape)
    return torch.from_numpy(values.copy())


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what NumPy's format writes before the numbers."""
    buffer = BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()
