"""The client that trains its own model and sends nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult
from fedpisa.clients.sgd import SGDUpdate
from fedpisa.tasks.base import Task


@final
@dataclass(frozen=True)
class OwnModelUpdate(SGDUpdate):
    r"""SGD on the client's own model ``w_i``, see `SGDUpdate`; uploads nothing.

    ``v_0 = w_i``, and ``w_i = v_K`` after the round. The client's state is the ``drift`` ``w_i - w``: the server's
    model ``w`` is the initial one in all rounds.
    """

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if the module has buffers, because these are common to all clients."""
        if names := task.buffer_layout.names:
            raise ValueError(
                f"algorithm local: the model's {names[0]!r} would be averaged over the clients, whose models are their "
                f"own: {task.without(names[0])}"
            )

    def init(self, params_P: Tensor) -> Arrays:
        """Start at the initial model."""
        return {"drift": torch.zeros_like(params_P)}

    def centre(self, down: Arrays, state: Arrays) -> Tensor:
        """Return the client's model ``w_i`` ``(P,)``."""
        return down["params"] + state["drift"]

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Keep the trained model."""
        return LocalResult({}, {"drift": state["drift"] + work["drift"]}, {})
