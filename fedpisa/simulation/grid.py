"""Nodes and messages of the in-process Grids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from flwr.app import Error, Message

from fedpisa.flower.compat import APP_RAISED, FIRST_CLIENT_NODE_ID, Run, ensure_identity, stamp
from fedpisa.flower.engine_grid import EngineGrid
from fedpisa.flower.messages import Broadcast


class InProcessGrid(EngineGrid, ABC):
    """A Flower Grid whose nodes are simulated clients that answer at once.

    Parameters
    ----------
    num_clients
        ``N``. Client ``i`` is node ``i + 2``; the server is node 1.
    """

    def __init__(self, num_clients: int) -> None:
        ensure_identity()
        self.num_clients = num_clients
        self._run = Run.create_empty(0)
        self._replies: dict[str, Message] = {}
        self._has_replied = False
        self._pushed = 0

    @abstractmethod
    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Return the clients' replies, in the order of the requests."""

    def with_errors(
        self, requests: Sequence[Message], answers: Sequence[Message | Exception]
    ) -> list[Message]:
        """Return the answers as replies: the exception of a client app becomes an error reply.

        Raises
        ------
        RuntimeError
            If all client apps raised and no client has replied before. Then the app itself is wrong.
        """
        replies = []
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Exception):
                replies.append(Message(Error(APP_RAISED, cause_of(answer)), reply_to=request))
            else:
                replies.append(answer)
                self._has_replied = True
        if replies and not self._has_replied:
            first = requests[0]
            client_id, kind = self.client_of(first.metadata.dst_node_id), first.metadata.message_type
            error = answers[0]
            assert isinstance(error, Exception)
            raise RuntimeError(
                f"client {client_id} failed on a {kind!r} message: {cause_of(error)}"
            ) from error
        return replies

    def set_run(self, run: Run) -> None:
        """Set the run, which the Grid itself does not use; Flower's legacy apps ask for it."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run given to `set_run`; an empty one by default."""
        return self._run

    def get_node_ids(self) -> range:
        """Return all clients' node numbers."""
        return range(FIRST_CLIENT_NODE_ID, FIRST_CLIENT_NODE_ID + self.num_clients)

    def client_of(self, node_id: int) -> int:
        """Return the number ``0 .. N-1`` of a node's client."""
        client_id = node_id - FIRST_CLIENT_NODE_ID
        if not 0 <= client_id < self.num_clients:
            raise ValueError(f"there is no node {node_id}: use one of {self.get_node_ids()}")
        return client_id

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages, keep the replies, and return the messages' ids."""
        numbered = []
        for message in messages:
            self._pushed += 1
            numbered.append(stamp(message, str(self._pushed)))
        for request, reply in zip(numbered, self.send_and_receive(numbered), strict=True):
            self._replies[request.metadata.message_id] = reply
        return [message.metadata.message_id for message in numbered]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages; a reply can be pulled once."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and return the replies; ``timeout`` is ignored, because every client answers."""
        return self.exchange(messages if isinstance(messages, Broadcast) else list(messages))


def cause_of(error: BaseException) -> str:
    """Return the last line of the error that caused an error.

    Examples
    --------
    >>> cause_of(ValueError("no step today"))
    'no step today'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
