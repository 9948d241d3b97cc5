"""Which replies a server uses, where it does not run the clients itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from logging import getLogger
from typing import final

from flwr.app import Message

from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.clients.client import OF_EVERY_CLIENT
from fedpisa.server.reply_checks import Screen
from fedpisa.server.reply_spec import reply_spec
from fedpisa.strategies.base import norm
from fedpisa.tasks.layout import ParamLayout

_LOG = getLogger("fedpisa")


@final
@dataclass(frozen=True)
class ReplyFilter:
    """Drop what is not a valid reply of somebody who was asked; with too few of the others a round is void.

    Parameters
    ----------
    max_upload_norm
        Largest norm of an array that passes, as a multiple of ``1 + ||w||``.
    min_replies
        Without so many replies the model stays as it is.
    """

    max_upload_norm: float = 1e6
    min_replies: int = 1

    def accepted(
        self,
        replies: Iterable[Message],
        asked: Collection[int],
        server_round: int,
        update: LocalUpdate,
        down: Arrays,
        buffers: Arrays,
        layout: ParamLayout,
    ) -> tuple[list[Message], dict[str, float]]:
        """Return the replies to use and the round's columns; log what is wrong with each of the others.

        Parameters
        ----------
        replies
            All replies that arrived.
        asked
            The nodes of the cohort.
        server_round
            The round.
        update
            The clients' update, which says what a reply looks like.
        down, buffers
            What was broadcast.
        layout
            The module's parameters.
        """
        wanted = reply_spec(update, server_round, down, layout)
        screen = Screen(
            server_round,
            {**wanted.upload, **{name: tuple(value.shape) for name, value in buffers.items()}},
            wanted.metrics | OF_EVERY_CLIENT,
            layout.dtype,
            self.max_upload_norm * (1 + norm(down["params"])),
        )
        kept: dict[int, Message] = {}
        dropped = 0
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in asked:
                fault: str | None = "it was not asked"
            elif node in kept:
                fault = "it has replied already"
            else:
                fault = screen.fault(reply)
            if fault is None:
                kept[node] = reply
            else:
                dropped += 1
                _LOG.warning("round %d: reply of node %d dropped: %s", server_round, node, fault)
        columns = {"replies": float(len(kept)), "dropped-replies": float(dropped)}
        if len(kept) < self.min_replies:
            text = "round %d: %d replies, and min-replies is %d: the model stays as it is"
            _LOG.warning(text, server_round, len(kept), self.min_replies)
            return [], columns
        return list(kept.values()), columns
