"""Samples that the broadcast model makes, as in reinforcement learning.

A client makes its samples at the beginning of a round, in the first round of each *period*. They are memory, see
`fedpisa.clients.memory`: a client that stops goes on with the same samples, and a repeated request gets the same reply,
because the samples depend on the seed, the client, the period and the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, LocalUpdate
from fedpisa.clients.batches import Ints
from fedpisa.clients.memory import PERIOD, memory_of, stored, without_memory
from fedpisa.datasets.client_data import ClientData
from fedpisa.tasks.base import Rollouts, Task

ENV_STEPS, REWARD = "env-steps", "train-reward"
OF_PLAYING_CLIENTS = frozenset({ENV_STEPS, REWARD})
"""Metrics that clients report if they make their samples."""


def with_samples(
    rollouts: Rollouts,
    update: LocalUpdate,
    client_id: int,
    server_round: int,
    params_P: Tensor,
    buffers_Q: Tensor,
    state: Arrays,
) -> Arrays:
    """Return a client's state with the samples of a round: new ones if those that it has are of an earlier period."""
    period, memory = rollouts.period(server_round), memory_of(state)
    if int(memory[PERIOD]) == period:
        return state
    made = rollouts.collected(client_id, period, params_P, buffers_Q, memory)
    own = update.init(params_P) if rollouts.restarts else without_memory(state)
    return {**own, **stored({**made, PERIOD: torch.full_like(memory[PERIOD], period)})}


def with_samples_of_cohort(
    rollouts: Rollouts,
    update: LocalUpdate,
    ids_S: Ints,
    server_round: int,
    params_P: Tensor,
    buffers_Q: Tensor,
    states_S: Arrays,
) -> Arrays:
    """Return several clients' states with the samples of a round, made by one client after the other."""
    if bool((memory_of(states_S)[PERIOD] == rollouts.period(server_round)).all()):
        return states_S
    rows: Sequence[Arrays] = [
        with_samples(
            rollouts,
            update,
            client_id,
            server_round,
            params_P,
            buffers_Q,
            {name: value[row] for name, value in states_S.items()},
        )
        for row, client_id in enumerate(ids_S.tolist())
    ]
    return {name: torch.stack([row[name] for row in rows]) for name in states_S}


def samples_in(states_S: Arrays, ids_S: Ints, num_clients: int) -> ClientData:
    """Return the samples in the states of some clients, as those of clients with these numbers."""
    memory = memory_of(states_S)
    size = memory["x"].shape[1]
    begin_N = np.zeros(num_clients, np.int64)
    begin_N[ids_S] = size * np.arange(len(ids_S))
    x, y = (memory[name].flatten(0, 1) for name in ("x", "y"))
    return ClientData(x, y, begin_N, np.full(num_clients, size))


def trial_data(task: Task, data: ClientData) -> ClientData:
    """Return samples on which the module can be tried: the clients', or some if they have none yet."""
    if task.rollouts is None:
        return data
    x, y = task.rollouts.trial_samples()
    return ClientData(x.to(data.x.device), y.to(data.x.device), np.zeros(1, np.int64), np.array([len(x)]))


def require_no_samples(task: Task, update: LocalUpdate, exact_diagnostics: bool) -> None:
    """Raise a ValueError if clients make their samples, and something needs samples or states that last."""
    if task.rollouts is None:
        return
    if exact_diagnostics:
        raise ValueError(
            "exact-diagnostics = true needs all samples of the clients, which a policy makes as it goes: remove the key"
        )
    if task.rollouts.restarts and update.incremental:
        raise ValueError(
            "restart-duals = true: the server adds up what clients of this algorithm send, so their states cannot "
            "begin anew: set restart-duals = false"
        )


def completed(
    rollouts: Rollouts, before: Arrays, state: Arrays, result: LocalResult, buffers: str
) -> LocalResult:
    """Return the result of a round on samples that were made: with memory, counted steps and moments to send.

    Parameters
    ----------
    rollouts
        How samples are made.
    before, state
        A client's state before the round and with the round's samples, or the stacked states of clients.
    result
        The result on these samples.
    buffers
        Name of the module's buffers in the upload.
    """
    memory = memory_of(state)
    size = memory["x"].shape[memory[PERIOD].dim()]
    is_new = memory[PERIOD] != memory_of(before)[PERIOD]
    upload = dict(result.upload)
    if buffers in upload:
        upload[buffers] = rollouts.sent_buffers(upload[buffers], memory)
    return LocalResult(
        upload=upload,
        state={**result.state, **stored(memory)},
        metrics={**result.metrics, ENV_STEPS: size * is_new.to(memory["reward"]), REWARD: memory["reward"]},
    )
