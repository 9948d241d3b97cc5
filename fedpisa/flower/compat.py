"""All uses of Flower's private modules; tested with each supported release.

- `ensure_identity`: a `Message` needs the task identity of a Flower process. The in-process Grids set one if there is
  none.
- `stamp`: Flower numbers a message when it is pushed to a SuperLink. An in-process Grid does this itself.
- `TRANSPORT_ERRORS`, `APP_RAISED`: codes of Flower's error replies for a node that is away or whose app failed.
- `encode`, `decode`: a `RecordDict` to bytes in Flower's format, and back.
- `start_ray`, `ray_as_guest`: the part of Flower's simulation runtime that runs client apps in Ray's actors.
- `TensorArray`: an `Array` around a tensor, which is encoded only when its bytes are read.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

try:
    from flwr.common.constant import ErrorCode
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    raise ImportError(
        f"flwr {version('flwr')} does not fit: fedpisa needs flwr>=1.41,<1.43; "
        "install it with: pip install 'flwr>=1.41,<1.43'"
    ) from error

if TYPE_CHECKING:  # it imports a database and a web server
    from flwr.server.superlink.fleet.vce.backend import Backend as Backend

__all__ = [
    "APP_RAISED",
    "TRANSPORT_ERRORS",
    "Run",
    "TensorArray",
    "decode",
    "encode",
    "ensure_identity",
    "payload_bytes",
    "ray_as_guest",
    "stamp",
    "start_ray",
    "to_record",
    "to_tensor",
    "to_tensors",
]

SERVER_NODE_ID = 1
"""Flower's number of the server; the clients have the numbers after it."""
FIRST_CLIENT_NODE_ID = 2
TRANSPORT_ERRORS = frozenset(
    (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
)
"""Codes of the error replies that Flower makes for lost messages."""
APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
"""Code of the error reply of a client app that raised an exception."""
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about GPUs for clients without one
}
"""Environment variables for Ray; variables that are already set have precedence."""


def ensure_identity() -> None:
    """Set the Flower task identity of this process if it has none."""
    for name, value in (("_task_id", 0), ("_run_id", 0), ("_node_id", SERVER_NODE_ID)):
        if getattr(TaskIdentity, name) is None:
            setattr(TaskIdentity, name, value)


def stamp(message: Message, message_id: str) -> Message:
    """Set a message's number, and return the message."""
    message.metadata.__dict__["_message_id"] = message_id
    return message


@contextmanager
def ray_as_guest() -> Iterator[None]:
    """Set Ray's environment, and restore what Ray changes: the environment, SIGTERM's handler, `random`'s generator."""
    handler, environment, state = signal.getsignal(signal.SIGTERM), dict(os.environ), random.getstate()
    os.environ.update(_RAY_ENVIRONMENT | environment)
    # Ray's processes inherit the mask: a closed terminal must not end them before the round does.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(state)


def start_ray(app: Callable[[], ClientApp], address: str | None, num_cpus: float, num_gpus: float) -> Backend:
    """Return Flower's Ray backend with as many actors for an app as fit.

    Raises
    ------
    ImportError
        If Ray is not installed.
    ConnectionError
        If there is no cluster at the address.
    ValueError
        If no actor fits.
    """
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    init_args: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address is not None:
        init_args["address"] = address
    resources: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    with ray_as_guest():
        backend = RayBackend({"init_args": init_args, "client_resources": resources})
        try:
            backend.build(app)
        except ValueError:
            backend.terminate()
            raise
    return backend


def encode(records: RecordDict) -> bytes:
    """Return records of any kind as bytes.

    Examples
    --------
    >>> records = RecordDict({"state": to_record({"dual": torch.ones(2)})})
    >>> decode(encode(records))["state"]["dual"].numpy().tolist()
    [1.0, 1.0]
    """
    content: bytes = recorddict_to_proto(records).SerializeToString()
    return content


def decode(content: bytes) -> RecordDict:
    """Return the records of bytes from `encode`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(content))


@final
class TensorArray(Array):
    """A Flower array around a tensor, which is encoded only when its bytes are read.

    Examples
    --------
    >>> array = TensorArray(torch.ones(2))
    >>> array.shape, array.dtype, array.numpy().tolist(), len(array.data) > 8
    ((2,), 'float32', [1.0, 1.0], True)
    """

    # Flower sends the name of the class, and the receiver looks it up.
    __qualname__ = Array.__qualname__

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__.update(
            tensor=tensor,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            stype="numpy.ndarray",
            _is_dirty=True,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array in NumPy's own format."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["tensor"].detach().cpu().numpy(), allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return a copy as a NumPy array."""
        copy: np.ndarray[Any, Any] = self.__dict__["tensor"].detach().cpu().numpy().copy()
        return copy


def to_record(arrays: Mapping[str, Tensor]) -> ArrayRecord:
    """Wrap named tensors without encoding them."""
    record = ArrayRecord()
    for name, tensor in arrays.items():
        record[name] = TensorArray(tensor)
    return record


def to_tensor(array: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an array as a tensor of ``dtype`` on ``device``."""
    if isinstance(array, TensorArray):
        tensor: Tensor = array.__dict__["tensor"]
    else:
        tensor = torch.from_numpy(array.numpy())
    return tensor.to(dtype=dtype, device=device)


def to_tensors(
    record: Mapping[str, Array], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return a record's arrays as tensors of ``dtype`` on ``device``."""
    return {name: to_tensor(array, dtype, torch.device(device)) for name, array in record.items()}


def payload_bytes(arrays: Mapping[str, Array | Tensor]) -> int:
    """Return the bytes of the numbers in named arrays, without any format's headers."""
    total = 0
    for array in arrays.values():
        dtype = str(array.dtype).removeprefix("torch.")
        itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        total += int(np.prod(array.shape, dtype=np.int64)) * itemsize
    return total
