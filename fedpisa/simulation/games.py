"""A run whose task has players: any algorithm, played in turns."""

from __future__ import annotations

from collections.abc import Callable

from fedpisa.clients.step_sizes import StepSizeSchedule
from fedpisa.clients.turns import Game
from fedpisa.config.run import RunConfig
from fedpisa.strategies._turns import Turns
from fedpisa.strategies.base import Algorithm
from fedpisa.tasks.base import Task


def in_turns(
    config: RunConfig, algorithm: Algorithm, task: Task, schedule_of: Callable[[int], StepSizeSchedule]
) -> Turns:
    """Return an algorithm that the players of a task play in turns.

    Parameters
    ----------
    config
        The run's configuration.
    algorithm
        The algorithm, with its hyper-parameters before any schedule.
    task
        The task, which has players.
    schedule_of
        Function from a player's number of rounds to the schedule of its step sizes.

    Raises
    ------
    ValueError
        If the algorithm, or another key of the configuration, is not for players.
    """
    refused = {
        f"server-strategy = {config.server_strategy!r}: Flower's strategies know one model, and not whose turn it is": (
            config.server_strategy != "none"
        ),
        f"differential-privacy = {config.differential_privacy!r}: the accounting is that of one model": (
            config.differential_privacy != "none"
        ),
        "exact-diagnostics = true: the players minimise different losses, so there is no common objective": (
            config.exact_diagnostics
        ),
        f"early-stopping = {config.early_stopping}: the validation loss is one player's, and the other raises it": (
            config.early_stopping > 0
        ),
    }
    for cause, is_set in refused.items():
        if is_set:
            raise ValueError(f"{cause}: remove the key for a task with players")
    game = Game.of(task, {})
    rounds = {name: game.own_rounds(name, config.num_server_rounds) for name in dict.fromkeys(task.turns)}
    schedules = {name: schedule_of(max(own, 1)) for name, own in rounds.items()}
    return Turns(algorithm, Game.of(task, schedules), task.averages)
