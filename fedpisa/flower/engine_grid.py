"""What a run needs of its Grid: in this process, with Ray, or on a SuperLink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedpisa.strategies.base import ClientStates


class EngineGrid(Grid, ABC):
    """A Flower Grid that can carry a run, and go on with one."""

    engine: str
    """What ``run.json`` calls it."""

    @property
    @abstractmethod
    def client_states(self) -> ClientStates | None:
        """What all clients keep; ``None`` where that stays with them, and with it the trust in their replies."""

    @property
    def clients(self) -> Mapping[int, int]:
        """The nodes' client numbers, where they have some of their own."""
        return {}

    @property
    def sizes_N(self) -> Sequence[int] | None:
        """The number of samples that each client reported before round 1; ``None`` if the data set defines it."""
        return None

    @property
    def info(self) -> Mapping[str, object]:
        """What ``run.json`` says about the clients."""
        return {}

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """Return what the server has to keep for the clients, for `restore`."""

    @abstractmethod
    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take up a `snapshot`."""

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
        """End what the Grid started; the next message starts it again."""
