"""The messages of a round as two objects, which avoids an object for each client.

A `Broadcast` has the content for all nodes, and a `StackedReplies` has the replies along a first axis ``S``. Both are
iterables of ordinary Flower messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.flower.compat import payload_bytes, stamp, to_record, to_tensor

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records in a message, Flower's own."""
NUM_EXAMPLES, SERVER_ROUND = "num-examples", "server-round"
"""Flower's names of ``n_i`` and the number of the round."""
CONFIRMED_ROUND = "confirmed-round"
"""Name of the last round whose reply from the node arrived, 0 for none; see `LocalUpdate.incremental`."""

STATE_LOST = 1000
"""Code of the error reply of a client without the state that the server expects; Flower's codes are smaller."""


@final
@dataclass(frozen=True)
class Broadcast:
    """The training request to several nodes; only the confirmed round differs between nodes.

    Parameters
    ----------
    content
        Arrays and config.
    node_ids
        The nodes.
    confirmed_S
        The last round whose reply from each node arrived; ``None`` if the algorithm does not need it.
    """

    content: RecordDict
    node_ids: Sequence[int]
    confirmed_S: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.node_ids)

    def __iter__(self) -> Iterator[Message]:
        config = self.content.config_records[CONFIG]
        for position, node_id in enumerate(self.node_ids):
            content = self.content
            if self.confirmed_S is not None:
                confirmed = ConfigRecord({**config, CONFIRMED_ROUND: self.confirmed_S[position]})
                content = RecordDict({ARRAYS: content[ARRAYS], CONFIG: confirmed})
            yield stamp(Message(content, node_id, MessageType.TRAIN), f"{config[SERVER_ROUND]!s}-{node_id}")


@final
@dataclass(frozen=True)
class StackedReplies:
    """Training replies, stacked.

    Parameters
    ----------
    requests
        The requests, in the order of the replies.
    node_ids
        The nodes that replied.
    uploads_S
        Uploads by name, each ``(S, P)`` or ``(S,)``.
    num_examples_S
        Sample counts, float64.
    metrics_S
        Metrics by name, each ``(S,)``.
    """

    requests: Iterable[Message]
    node_ids: Sequence[int]
    uploads_S: Arrays
    num_examples_S: Tensor
    metrics_S: Arrays

    def __len__(self) -> int:
        return len(self.node_ids)

    def __iter__(self) -> Iterator[Message]:
        counts = self.num_examples_S.tolist()
        columns = {name: values.tolist() for name, values in self.metrics_S.items()}
        for row, request in enumerate(self.requests):
            upload = {name: stack[row] for name, stack in self.uploads_S.items()}
            metrics = {name: float(column[row]) for name, column in columns.items()}
            yield reply_to(request, upload, int(counts[row]), metrics)


def reply_to(request: Message, upload: Arrays, num_examples: int, metrics: Mapping[str, float]) -> Message:
    """Return a client's training reply, with the round of the request."""
    content = RecordDict(
        {
            ARRAYS: to_record(upload),
            METRICS: MetricRecord({NUM_EXAMPLES: num_examples, **metrics}),
            CONFIG: ConfigRecord({SERVER_ROUND: request.content.config_records[CONFIG][SERVER_ROUND]}),
        }
    )
    return Message(content, reply_to=request)


def state_lost_reply(request: Message) -> Message:
    """Return the error reply of a client without the state that the server expects."""
    return Message(Error(STATE_LOST, "the client's state is lost"), reply_to=request)


def lost_states(replies: Iterable[Message]) -> list[int]:
    """Return the nodes that report the loss of their state."""
    errors = (reply for reply in replies if reply.has_error())
    return [reply.metadata.src_node_id for reply in errors if reply.error.code == STATE_LOST]


def stack_replies(
    messages: Iterable[Message],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    client_of: Mapping[int, int] = {},
) -> StackedReplies | None:
    """Stack the replies without an error; return ``None`` if there are none.

    They are in the order of the client numbers, or of the node numbers for nodes that have none.

    Raises
    ------
    ValueError
        If two replies have different arrays or metrics.
    """
    replies = [message for message in messages if not message.has_error()]
    if not replies:
        return None
    replies.sort(
        key=lambda message: client_of.get(message.metadata.src_node_id, message.metadata.src_node_id)
    )
    arrays = [message.content.array_records[ARRAYS] for message in replies]
    metrics = [message.content.metric_records[METRICS] for message in replies]
    for message, array, metric in zip(replies, arrays, metrics, strict=True):
        if array.keys() != arrays[0].keys() or metric.keys() != metrics[0].keys():
            raise ValueError(
                f"the reply of node {message.metadata.src_node_id} carries {sorted(array)} and {sorted(metric)}, "
                f"others {sorted(arrays[0])} and {sorted(metrics[0])}; run the same ClientApp on all nodes"
            )
    where = torch.device(device)
    return StackedReplies(
        requests=[],
        node_ids=[message.metadata.src_node_id for message in replies],
        uploads_S={
            name: torch.stack([to_tensor(array[name], dtype, where) for array in arrays])
            for name in arrays[0]
        },
        num_examples_S=_column(metrics, NUM_EXAMPLES),
        metrics_S={name: _column(metrics, name) for name in metrics[0] if name != NUM_EXAMPLES},
    )


def _column(metrics: Sequence[MetricRecord], name: str) -> Tensor:
    """Return one scalar of every client ``(S,)``, float64."""
    values = []
    for metric in metrics:
        value = metric[name]
        if isinstance(value, list):
            raise ValueError(f"metric {name!r} of a reply is a list; report one number per client")
        values.append(float(value))
    return torch.tensor(values, dtype=torch.float64)


def count_bytes(messages: Iterable[Message]) -> int:
    """Return the size of all arrays in the messages in bytes, without headers."""
    if isinstance(messages, Broadcast):
        return len(messages) * _content_bytes(messages.content)
    if isinstance(messages, StackedReplies):
        return payload_bytes(messages.uploads_S)
    return sum(_content_bytes(message.content) for message in messages if message.has_content())


def _content_bytes(content: RecordDict) -> int:
    return sum(payload_bytes(record) for record in content.array_records.values())


def scalars(config: ConfigRecord, dtype: torch.dtype, device: torch.device | str = "cpu") -> Arrays:
    """Return the numbers in a config as scalars ``()``, such as ``proximal-mu``, a hyper-parameter from the server."""
    return {
        name: torch.tensor(value, dtype=dtype, device=device)
        for name, value in config.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
