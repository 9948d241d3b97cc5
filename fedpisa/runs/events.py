"""The events that a run sends to its listeners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from fedpisa.tasks.measures import CLASSIFICATION, Measure

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.results import Result
    from fedpisa.runs.run_files import Row


@final
@dataclass(frozen=True)
class RunStarted:
    """The run is checked and built; the first round follows.

    ``resumed`` is the last finished round of a resumed run. ``num_test`` and ``num_validation`` count the
    samples that evaluations use; the latter is 0 without validation samples.
    ``privacy`` says what differential privacy protects. ``measures`` are those of the task.
    """

    config: RunConfig
    num_parameters: int
    num_train: int
    num_test: int
    engine: str
    device: str
    resumed: int | None = None
    num_validation: int = 0
    privacy: str = ""
    measures: Sequence[Measure] = CLASSIFICATION


@final
@dataclass(frozen=True)
class RoundFinished:
    """A round's row of ``metrics.jsonl``; round 0 is the initial model."""

    row: Row
    num_server_rounds: int


@final
@dataclass(frozen=True)
class Stopping:
    """A signal arrived: the run stops after this round and its checkpoint; a second signal ends it at once."""

    signum: int


@final
@dataclass(frozen=True)
class Generated:
    """The texts or images that the model of the last round ``number`` made, as files by name."""

    number: int
    files: Mapping[str, bytes]


@final
@dataclass(frozen=True)
class RunFinished:
    """The run's result, with any status; ``before`` if the run had already ended and did no round."""

    result: Result
    before: bool = False


Event = RunStarted | RoundFinished | Stopping | Generated | RunFinished
