"""The end of a run whose validation loss no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.runs.run_files import Row


@final
@dataclass
class EarlyStopping:
    """Counts the evaluations since the lowest validation loss.

    Parameters
    ----------
    patience
        Number of evaluations without a lower validation loss after which the run ends; 0 never ends it.

    Examples
    --------
    >>> stopping = EarlyStopping(patience=2)
    >>> for number, loss in enumerate([3.0, 2.0, 2.5, 2.0]):
    ...     stopping.observe({"round": number, "validation_loss": loss})
    >>> stopping.is_due, stopping.best_round
    (True, 1)
    """

    patience: int
    best_loss: float = math.inf
    best_round: int = 0
    waited: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the run ends."""
        return 0 < self.patience <= self.waited

    def observe(self, row: Row) -> None:
        """Take note of a round; one without a validation loss changes nothing."""
        loss = row.get("validation_loss")
        if loss is None:
            return
        self.waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_round, self.waited = loss, int(row["round"] or 0), 0

    def snapshot(self) -> dict[str, Tensor]:
        """Return what `restore` needs; nothing without patience."""
        if not self.patience:
            return {}
        state = [self.best_loss, self.best_round, self.waited]
        return {"state": torch.tensor(state, dtype=torch.float64)}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from a `snapshot`."""
        if kept:
            self.best_loss, best_round, waited = kept["state"].tolist()
            self.best_round, self.waited = int(best_round), int(waited)
