"""The events that a run sends to its listeners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.results import Result, Row


@final
@dataclass(frozen=True)
class RunStarted:
    """Everything is checked and built; the first round follows.

    Of a run that goes on, ``resumed`` is the round after which it does.
    """

    config: RunConfig
    num_parameters: int
    num_train: int
    num_test: int
    engine: str
    device: str
    resumed: int | None = None


@final
@dataclass(frozen=True)
class RoundFinished:
    """A round's row of ``metrics.jsonl``; round 0 is the initial model."""

    row: Row
    num_server_rounds: int


@final
@dataclass(frozen=True)
class Stopping:
    """A signal came: the round is finished and a checkpoint written; a second signal ends at once."""

    signum: int


@final
@dataclass(frozen=True)
class RunFinished:
    """The run's result, with any status; ``before`` if it had ended already and nothing was done."""

    result: Result
    before: bool = False


Event = RunStarted | RoundFinished | Stopping | RunFinished
