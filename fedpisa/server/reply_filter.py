"""The choice of the valid replies, and the bound on updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from flwr.app import Message
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.components import printable
from fedpisa.server.limited_log import LimitedLog
from fedpisa.server.reply_checks import Contract, RefusedError

MAX_UPLOAD_NORM: Final = 100.0
"""Bound on updates where clients are real nodes; see ``max_upload_norm``."""
FLOOR: Final = 1e-3
"""Share of the `ReplyFilter.scale` that always counts as the median update."""
STRIKES: Final = 3
"""Number of refused replies in a row after which the server drops what it keeps of a client."""


@final
@dataclass(frozen=True)
class Filtered:
    """The replies of a round after the checks.

    Parameters
    ----------
    accepted
        The valid replies, by node.
    refused
        Number of the others.
    repeated
        The nodes of which `STRIKES` replies in a row were refused, the last one in this round.
    """

    accepted: Mapping[int, Message]
    refused: int
    repeated: tuple[int, ...]


@final
class ReplyFilter:
    """Accepts at most one valid reply of each node that was asked, and logs what is wrong with each other reply.

    A client's *update* is its upload minus that of an idle client, see `fedpisa.server.reply_spec.idle_result`. Its
    norm may be ``max_upload_norm`` times the median of the round's updates. For this, the median counts as at most the
    ``scale`` of its array and as at least `FLOOR` times the scale. The scale is ``1 + ||w||`` at the start, or the
    median of the first round if that is larger. It does not change during a run, and so the bound cannot grow from
    round to round.

    Parameters
    ----------
    max_upload_norm
        Largest norm of an update, as a multiple of the round's median; ``None`` is no bound.
    min_replies
        Number of valid replies that a round needs.
    sizes_N
        Number of samples of each client, as it was reported before round 1.
    further
        Names of metrics in replies that do not depend on the algorithm.
    """

    def __init__(
        self,
        max_upload_norm: float | None = None,
        min_replies: int = 1,
        sizes_N: Sequence[int] = (),
        further: frozenset[str] = frozenset(),
    ) -> None:
        self.further = further
        self.max_upload_norm = max_upload_norm
        self.min_replies = min_replies
        self.sizes_N = tuple(map(int, sizes_N))
        self.scale: dict[str, float] = {}
        self._in_a_row: Counter[int] = Counter()

    def check(
        self,
        replies: Iterable[Message],
        asked: Mapping[int, str],
        contract: Contract,
        idle_of: Callable[[int], Arrays] | None,
        start: float,
        log: LimitedLog,
    ) -> Filtered:
        """Return the round's valid replies.

        Parameters
        ----------
        replies
            All replies that arrived.
        asked
            The nodes of the cohort, with the names of their clients.
        contract
            What a valid reply has.
        idle_of
            Function of a node that returns the upload of an idle client in its place, NaN where any value is valid.
            Without a bound on updates it is ``None``.
        start
            ``1 + ||w||`` of the global model, which counts in the first round.
        log
            The log of refused replies.
        """
        accepted: dict[int, Message] = {}
        uploads: dict[int, Arrays] = {}
        faults: list[tuple[object, str]] = []
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                if type(node) is not int or node not in asked:
                    raise RefusedError("it was not asked")
                if node in accepted:
                    raise RefusedError("it has replied already")
                uploads[node] = contract.check(reply)
                accepted[node] = reply
            except RefusedError as error:
                faults.append((node, str(error)))
            except Exception as error:  # a reply can be anything, and must not end the run
                faults.append((node, f"it cannot be read ({type(error).__name__})"))
        if self.max_upload_norm is not None and idle_of is not None and uploads:
            beyond = self._beyond(uploads, idle_of, start, self.max_upload_norm)
            faults += beyond.items()
            accepted = {node: reply for node, reply in accepted.items() if node not in beyond}
        refused = set[int]()
        for source, fault in faults:
            name = f"node {printable(source, 20)}"
            if type(source) is int and source in asked:
                name = asked[source]
                refused.add(source)
            log.warning(contract.server_round, f"reply of {name} refused: {fault}")
        refused -= accepted.keys()
        for node in accepted:
            del self._in_a_row[node]
        self._in_a_row.update(refused)
        lies = self.max_upload_norm is not None
        repeated = tuple(sorted(node for node in refused if lies and self._in_a_row[node] == STRIKES))
        return Filtered(accepted, len(faults), repeated)

    def _beyond(
        self, uploads: Mapping[int, Arrays], idle_of: Callable[[int], Arrays], start: float, factor: float
    ) -> dict[int, str]:
        """Return the nodes whose updates are too large, each with the reason."""
        idle = {node: idle_of(node) for node in uploads}
        faults: dict[int, str] = {}
        for name, example in next(iter(uploads.values())).items():
            norms = {
                node: _distance(upload[name], idle[node][name])
                for node, upload in uploads.items()
                if name in idle[node]
            }
            median = sorted(norms.values())[(len(norms) - 1) // 2] if norms else 0.0
            if example.dim() and name not in self.scale:
                # Of one or two clients, one that lies would set the scale.
                self.scale[name] = max(start, median if len(norms) > 2 else 0.0)
            for node, value in norms.items():
                scale = self.scale[name] if example.dim() else abs(float(idle[node][name]))
                bound = factor * max(min(median, scale), FLOOR * scale)
                if value > bound:
                    faults[node] = f"the update of {name} has the norm {value:.3g}, above {bound:.3g}"
        return faults


def _distance(values: Tensor, idle: Tensor) -> float:
    """Return the Euclidean norm of the difference in float64, without the entries where ``idle`` is NaN."""
    difference = values.double() - idle.to(values.device).double()
    return float(torch.linalg.vector_norm(torch.nan_to_num(difference)))
