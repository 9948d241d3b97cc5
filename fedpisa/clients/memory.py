"""What a client remembers beside its algorithm's state: the task's memory, such as a recurrent model's state.

Both are one mapping wherever states are stored. An algorithm never sees the memory, and no message has it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.clients.batches import BatchSampler
from fedpisa.tasks.base import Task

_PREFIX: Final = "task/"
_ROUND: Final = "round"
"""Name of the round after which the memory was kept, a scalar ``()``; 0 before the first."""


PERIOD: Final = "period"
"""Name of the period in which a client has made its samples, a scalar ``()``; 0 before the first."""


def initial_state(task: Task, update: LocalUpdate, params_P: Tensor) -> Arrays:
    """Return a client's state before its first round, with the task's memory if that lasts longer than a round."""
    state = update.init(params_P)
    if task.rollouts is not None:
        kept = {name: value.to(params_P) for name, value in task.rollouts.no_samples().items()}
        return {**state, **stored({**kept, PERIOD: params_P.new_zeros(())})}
    if task.carry_state != "epoch":
        return state
    memory = task.initial_memory(num_rows(update.batch_sampler()))
    return with_memory(state, {name: value.to(params_P) for name, value in memory.items()}, params_P, 0)


def with_memory(state: Arrays, memory: Arrays, params_P: Tensor, server_round: int) -> Arrays:
    """Return a client's state with the memory after a round."""
    kept = {**memory, _ROUND: torch.full((), server_round, dtype=params_P.dtype, device=params_P.device)}
    return {**state, **stored(kept)}


def without_memory(state: Arrays) -> Arrays:
    """Return the algorithm's part of a client's state.

    Examples
    --------
    >>> sorted(without_memory({"dual": torch.zeros(1), "task/hidden": torch.zeros(2, 3)}))
    ['dual']
    """
    return {name: value for name, value in state.items() if not name.startswith(_PREFIX)}


def memory_of(state: Arrays) -> dict[str, Tensor]:
    """Return the task's part of a client's state, by the names of the task.

    Examples
    --------
    >>> sorted(memory_of({"dual": torch.zeros(1), "task/hidden": torch.zeros(2, 3)}))
    ['hidden']
    """
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def stored(memory: Arrays) -> dict[str, Tensor]:
    """Return the task's part of a client's state under the names that it has there."""
    return {f"{_PREFIX}{name}": value for name, value in memory.items()}


def memory_before(
    task: Task, sampler: BatchSampler, state: Arrays, params_P: Tensor, server_round: int
) -> Arrays:
    """Return a client's memory at the beginning of a round: the initial one unless it is from the round before."""
    if task.carry_state == "none":
        return {}
    memory = {name: value.to(params_P) for name, value in task.initial_memory(num_rows(sampler)).items()}
    if task.carry_state != "epoch":
        return memory
    goes_on = state[f"{_PREFIX}{_ROUND}"] == server_round - 1
    return {name: torch.where(goes_on, state[f"{_PREFIX}{name}"], value) for name, value in memory.items()}


def sampler_of(task: Task, update: LocalUpdate) -> BatchSampler:
    """Return the rule that selects a client's samples: the update's, in order if the task carries a state.

    Raises
    ------
    ValueError
        If a state is to be carried with ``batch-size = "full"``.
    """
    sampler = update.batch_sampler()
    if task.carry_state == "none":
        return sampler
    num_rows(sampler)
    return sampler.in_order(task.carry_state)


def num_rows(sampler: BatchSampler) -> int:
    """Return the number of samples of a mini-batch, each of which has a row of memory."""
    size = sampler.batch_size
    if size == "full":
        raise ValueError(
            'carry-state with batch-size = "full" carries nothing, because all windows are in one mini-batch: set '
            'batch-size to the number of streams, such as 20, or carry-state = "none"'
        )
    return size
