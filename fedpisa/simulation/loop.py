"""The reference Grid: real client apps, one after the other, behind real records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpisa.flower.messages import Broadcast
from fedpisa.simulation.contexts import ContextGrid, transport


@final
class LoopGrid(ContextGrid):
    """Runs a Flower `ClientApp` for every message, arrays encoded on the way as they would be on a network.

    Any client app runs on it. It is the oracle of the faster engines.

    Parameters
    ----------
    client_app
        The app.
    num_clients, run_config
        See `ContextGrid`.
    reason
        Why the clients are not stacked, if they could have been.
    """

    engine = "loop"

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        run_config: Mapping[str, bool | float | int | str] = {},
        *,
        reason: str = "",
    ) -> None:
        super().__init__(num_clients, run_config)
        self.client_app, self.reason = client_app, reason

    @property
    def info(self) -> Mapping[str, object]:
        """What ``run.json`` says about the way in which gradients are computed."""
        return {"path": "loop", **({"path_reason": self.reason} if self.reason else {})}

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Call the client app for each message in turn; see `InProcessGrid.with_errors` for apps that raise."""
        requests, answers = list(requests), list[Message | Exception]()
        for request in requests:
            client_id = self.client_of(request.metadata.dst_node_id)
            if request.has_content():
                request.content = transport(request.content)
            try:
                reply = self.client_app(request, self.context(client_id))
            except Exception as error:
                answers.append(error)
                continue
            if reply.has_content():
                reply.content = transport(reply.content)
            answers.append(reply)
        return self.with_errors(requests, answers)
