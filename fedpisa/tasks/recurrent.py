"""Recurrent modules whose state goes from one window of a text to the next, and penalties on their outputs.

Shapes: ``B`` sequences of ``T`` tokens, ``Z`` numbers of a sequence's state, ``H`` recurrent outputs at a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from fedpisa.datasets.client_data import ClientData
from fedpisa.models.recurrent import Steps


@final
@dataclass(frozen=True)
class Recurrence:
    """How a loss uses a recurrent module's state.

    Parameters
    ----------
    carry_state
        How far the state is carried: not at all, over the mini-batches of a ``round``, or over rounds until a client's
        text begins anew, an ``epoch``.
    activation_penalty, slowness_penalty
        Factors of `penalties`.

    Examples
    --------
    >>> import torch
    >>> hidden = torch.tensor([[[1.0], [3.0]]])
    >>> Recurrence("none", 2.0, 1.0).penalties(Steps(hidden, hidden[:, 0], hidden, hidden))
    tensor([14.])
    """

    carry_state: Literal["none", "round", "epoch"] = "none"
    activation_penalty: float = 0.0
    slowness_penalty: float = 0.0

    def penalties(self, steps: Steps) -> Tensor:
        """Return ``a mean_th d_th^2 + b mean_th (h_t+1,h - h_th)^2`` of each sequence ``(B,)``, ``d`` after dropout."""
        total_B = steps.hidden_BTH.new_zeros(len(steps.hidden_BTH))
        if self.activation_penalty:
            total_B = total_B + self.activation_penalty * steps.dropped_BTH.square().mean((1, 2))
        if self.slowness_penalty and steps.hidden_BTH.shape[1] > 1:
            change_BTH = steps.hidden_BTH[:, 1:] - steps.hidden_BTH[:, :-1]
            total_B = total_B + self.slowness_penalty * change_BTH.square().mean((1, 2))
        return total_B

    def check(self, module: nn.Module) -> None:
        """Raise a ValueError if a module has no state that it can be given."""
        if not isinstance(getattr(module, "state_size", None), int):
            raise ValueError(
                f"carry-state, activation-penalty and slowness-penalty need a recurrent model, and this is a "
                f"{type(module).__name__} without state_size: take lstm or awd-lstm, or remove the keys"
            )


def state_size(module: nn.Module) -> int:
    """Return the length ``Z`` of a recurrent module's state."""
    size = module.state_size
    assert isinstance(size, int)
    return size


def texts_side_by_side(data: ClientData, batch_size: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield the windows ``(B,)`` of each pass over texts, and whether they begin these; otherwise they go on.

    Row ``b`` goes on with the text of row ``b`` of the pass before. A text begins with a client, and where a window
    does not follow the one before it.

    Parameters
    ----------
    data
        Windows of texts, those of a client in their order.
    batch_size
        Largest number of windows of a pass.

    Examples
    --------
    >>> x = torch.tensor([[0, 1], [0, 1], [2, 3], [4, 5]])
    >>> data = ClientData(x, x + 1, np.array([0, 1]), np.array([1, 3]))
    >>> [(rows_B.tolist(), begins) for rows_B, begins in texts_side_by_side(data, 2)]
    [([1, 0], True), ([2], False), ([3], False)]
    """
    x, y = data.all()
    begins_n = torch.ones(len(x), dtype=torch.bool)
    begins_n[1:] = _is_gap(x, y).cpu()
    begins_n[torch.from_numpy(data.begin_N)] = True
    begin_R = np.flatnonzero(begins_n.numpy())
    length_R = np.diff(begin_R, append=len(x))
    order = np.argsort(
        -length_R, kind="stable"
    )  # the longest first, so that those that go on are the first rows
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        for number in range(int(length_R[some[0]])):
            rows_B = begin_R[some[length_R[some] > number]] + number
            yield torch.from_numpy(rows_B).to(x.device), number == 0


def _is_gap(x: Tensor, y: Tensor) -> Tensor:
    """Return whether each window but the first ``(n - 1,)`` does not follow the one before it.

    The last target of a window is the first token of the next one.
    """
    return x[1:, 0] != y[:-1, -1]


def require_consecutive(data: ClientData) -> None:
    """Raise a ValueError if clients' windows are not consecutive parts of one text each."""
    for client_id in range(data.num_clients):
        gaps = _is_gap(*data.client(client_id)).nonzero()
        if len(gaps):
            raise ValueError(
                f"carry-state: windows {int(gaps[0])} and {int(gaps[0]) + 1} of client {client_id} do not follow each "
                'other in a text: set partitioner = "natural" or "consecutive", give a node one text, or set '
                'carry-state = "none"'
            )
