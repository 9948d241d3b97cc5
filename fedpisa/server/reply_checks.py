"""Checks of replies from untrusted clients, made before anything of a reply is used.

A reply can be anything. Each field's type is checked before its value, and a text that quotes a field is short.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final, final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.components import printable
from fedpisa.flower.compat import TensorArray
from fedpisa.flower.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND

MOST_EXAMPLES: Final = 10**9
"""Largest number of samples of one client."""
LARGEST_METRIC: Final = 1e30
"""Largest absolute value of a metric."""
NON_NEGATIVE: Final = frozenset({"local-steps", "squared-drift"})
"""Metrics that are never negative."""
_SHOWN: Final = 5
"""Number of names or sizes that a text quotes."""


class RefusedError(Exception):
    """What is wrong with a reply, on one line."""


@final
@dataclass(frozen=True)
class Contract:
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
    num_examples
        The number of samples that each node reported before round 1; any number if a node is missing.
    gradients
        The number of mini-batch gradients of each node in the round; any number if a node is missing.
    local_steps
        The number of local steps of each node in the round, as far as it is known.
    """

    server_round: int
    shapes: Mapping[str, tuple[int, ...]]
    metrics: frozenset[str]
    dtype: torch.dtype
    num_examples: Mapping[int, int] = field(default_factory=dict)
    gradients: Mapping[int, int] = field(default_factory=dict)
    local_steps: Mapping[int, int] = field(default_factory=dict)

    def check(self, reply: Message) -> Arrays:
        """Return the arrays of a reply.

        Raises
        ------
        RefusedError
            If the reply breaks the contract.
        """
        if reply.has_error():
            raise RefusedError(f"its client failed: {printable(reply.error.reason or reply.error.code)}")
        if not reply.has_content():
            raise RefusedError("it is empty")
        content = reply.content
        _require_names("records", content, (ARRAYS, METRICS, CONFIG))
        self._check_round(_record(content, CONFIG, ConfigRecord))
        self._check_metrics(_record(content, METRICS, MetricRecord), reply.metadata.src_node_id)
        arrays = _record(content, ARRAYS, ArrayRecord)
        _require_names("arrays", arrays, self.shapes)
        return {name: self._values(name, arrays[name]) for name in self.shapes}

    def _check_round(self, config: Any) -> None:
        _require_names("config entries", config, (SERVER_ROUND,))
        value = config[SERVER_ROUND]
        if type(value) is not int or value != self.server_round:
            raise RefusedError(f"it is of round {_quoted(value)}, not {self.server_round}")

    def _check_metrics(self, metrics: Any, node: int) -> None:
        _require_names("metrics", metrics, {*self.metrics, NUM_EXAMPLES})
        for name in (NUM_EXAMPLES, *sorted(self.metrics)):
            value = metrics[name]
            if type(value) not in (int, float):
                raise RefusedError(f"{name} is not a number")
            if not abs(value) <= LARGEST_METRIC:
                raise RefusedError(f"{name} is {_quoted(value)}, not a number of at most {LARGEST_METRIC:g}")
            if name in NON_NEGATIVE and value < 0:
                raise RefusedError(f"{name} is {value}, below 0")
        count, steps = metrics[NUM_EXAMPLES], metrics["local-steps"]
        if type(count) is not int or not 1 <= count <= MOST_EXAMPLES:
            raise RefusedError(f"{NUM_EXAMPLES} is {count}, not a whole number from 1 to {MOST_EXAMPLES}")
        if count != self.num_examples.get(node, count):
            raise RefusedError(f"{NUM_EXAMPLES} is {count}, not {self.num_examples[node]} as before round 1")
        if np.float32(steps) != np.float32(self.gradients.get(node, steps)):  # clients compute it in float32
            raise RefusedError(f"local-steps is {steps}, not {self.gradients[node]}")

    def _values(self, name: str, array: Array) -> Tensor:
        values = numbers(array, self.shapes[name], self.dtype)
        if isinstance(values, str):
            raise RefusedError(f"{name} {values}")
        if not math.isfinite(float(torch.linalg.vector_norm(values, dtype=torch.float64))):
            raise RefusedError(f"{name} is not finite")
        return values


def numbers(array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | str:
    """Return an array's numbers, or why it does not have that shape and type.

    No header is interpreted. The bytes must begin with the header that the shape and the type have in NumPy's format,
    and continue with as many bytes as their numbers take.

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
    sizes = tuple(array.shape) if isinstance(array.shape, tuple | list) else None
    if array.dtype != name or sizes != shape:
        found = "no shape" if sizes is None else f"shape {_shape(sizes)}"
        return f"is {printable(array.dtype, 40)} of {found}, not {name} of shape {shape}"
    if isinstance(array, TensorArray):
        tensor: Tensor = array.__dict__["tensor"]
        return tensor
    if array.stype != "numpy.ndarray":
        return f"is encoded as {_quoted(array.stype)}, not 'numpy.ndarray'"
    header, data = _header(shape, name), array.data
    length = len(header) + math.prod(shape) * np.dtype(name).itemsize
    if not isinstance(data, bytes) or len(data) != length or data[: len(header)] != header:
        return "is not what its description says"
    values: Any = np.frombuffer(data, name, offset=len(header)).reshape(shape)
    return torch.from_numpy(values.copy())


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the bytes before the numbers in NumPy's format."""
    buffer = BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _record(content: RecordDict, name: str, kind: type) -> Any:
    """Return a record of a kind."""
    record = content[name]
    if not isinstance(record, kind):
        raise RefusedError(f"its record {name} is a {type(record).__name__}, not a {kind.__name__}")
    return record


def _require_names(what: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raise `RefusedError` if two collections of names differ."""
    if set(found) != set(expected):
        some = [printable(name, 40) for name in sorted(found)[:_SHOWN]]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RefusedError(f"it has the {what} {some}{more}, not {sorted(expected)}")


def _shape(sizes: tuple[object, ...]) -> str:
    """Return a short text for a shape."""
    inner = ", ".join(map(_quoted, sizes[:_SHOWN]))
    return f"({inner}{',' if len(sizes) == 1 else ', ...' if len(sizes) > _SHOWN else ''})"


def _quoted(value: object) -> str:
    """Return a short text for a value that can be of any type and length."""
    if isinstance(value, str):
        return printable(repr(value[:50]), 50)
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST_METRIC):
        return repr(value)
    return f"a {type(value).__name__}"
