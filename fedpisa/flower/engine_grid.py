"""The interface of a run's Grid: in this process, with Ray, or on a SuperLink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedpisa.strategies.base import ClientStates


class EngineGrid(Grid, ABC):
    """A Flower Grid that can run and resume a run."""

    engine: str
    """Name of the Grid in ``run.json``."""

    @property
    @abstractmethod
    def client_states(self) -> ClientStates | None:
        """The states of all clients; ``None`` if clients keep them, and the server does not trust their replies."""

    @property
    def clients(self) -> Mapping[int, int]:
        """The nodes' client numbers; empty if the server numbers the nodes."""
        return {}

    @property
    def sizes_N(self) -> Sequence[int] | None:
        """The number of samples that each client reported before round 1; ``None`` if the data set defines it."""
        return None

    @property
    def info(self) -> Mapping[str, object]:
        """Entries for ``run.json`` about the clients."""
        return {}

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """Return the clients' states, as far as the Grid has them, for `restore`."""

    @abstractmethod
    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Restore a `snapshot`."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def close(self) -> None:
        """Stop the processes of the Grid; the next message starts them again."""
