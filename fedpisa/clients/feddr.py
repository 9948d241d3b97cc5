r"""The client of FedDR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.fedadmm import DifferenceSGD


@final
@dataclass(frozen=True)
class FedDRUpdate(DifferenceSGD):
    r"""``y_i <- y_i + relaxation (w - w_i)``, ``w_i ~ prox_{f_i / sigma}(y_i)``; uploads the change of ``2 w_i - y_i``.

    The client keeps ``pi_i = sigma (w_i - y_i)`` instead of ``y_i``. Then ``2 w_i - y_i = w_i + pi_i / sigma = z_i``,
    and the proximal problem is the augmented Lagrangian around ``c = w_i + relaxation (w - w_i)``: SGD on
    ``f_i(v) + <pi_i, v - c> + sigma/2 ||v - c||^2`` from ``c``, ``pi_i <- pi_i + sigma (v_K - c)``. With
    ``relaxation = 1``, ``c = w``.

    Parameters
    ----------
    relaxation
        The paper's ``alpha`` in (0, 2); 1 is plain Douglas-Rachford splitting.

    Examples
    --------
    ``f(v) = v^2 / 2`` at ``w = 4``, one step of length 1/2, ``sigma = 1``: ``w_i = 2`` and ``y_i = 4``, so ``z_i = 0``.

    >>> update = FedDRUpdate(learning_rate=0.5, sigma=1.0)
    >>> down, state = {"params": torch.tensor([4.0])}, update.init(torch.zeros(1))
    >>> work = update.step(lambda v, b: (v @ v / 2, v), down, state, update.start(down, state), None)
    >>> update.finish(down, state, work).upload["change"]
    tensor([-4.])
    """

    relaxation: Annotated[float, Field(gt=0, lt=2)] = 1.0

    def centre(self, down: Arrays, state: Arrays) -> Tensor:
        """Return ``w_i + relaxation (w - w_i)``, or ``w`` in the first round."""
        w_P = down["params"]
        local_P = torch.where(state["seen"] > 0, state["z"] - state["dual"] / self.sigma, w_P)
        return local_P + self.relaxation * (w_P - local_P)
