"""One client's round in plain PyTorch: the reference for the faster engines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, LocalUpdate, MiniBatches
from fedpisa.clients.batches import BatchIndices
from fedpisa.clients.clipping import clipped
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.memory import memory_before, sampler_of, with_memory, without_memory
from fedpisa.clients.rollouts import completed, samples_in, with_samples
from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule
from fedpisa.datasets.client_data import ClientData
from fedpisa.rng import seeded
from fedpisa.tasks.augment import augmented
from fedpisa.tasks.base import Rollouts, Task
from fedpisa.tasks.module_values import own_attributes

BUFFERS = "buffers"
"""Name of the module's buffers in broadcasts and uploads."""
OF_EVERY_CLIENT = frozenset({"train-loss", "local-steps"})
"""Metrics that every client reports with every algorithm."""


@final
@dataclass(frozen=True)
class Client:
    """One client: its task, algorithm and samples.

    Parameters
    ----------
    task
        Module and loss.
    update
        The algorithm's local update.
    data
        The samples and targets of this client alone; see `ClientData.only`.
    client_id
        The client's number ``0 .. N-1``; its random streams depend on it.
    seed
        The run's seed.
    schedule
        Factors of the update's step sizes by round.
    """

    task: Task
    update: LocalUpdate
    data: ClientData
    client_id: int
    seed: int
    schedule: StepSizeSchedule = UNSCHEDULED

    def run_round(
        self, server_round: int, down: Arrays, state: Arrays, indices: BatchIndices | None = None
    ) -> LocalResult:
        """Return the round's result; buffers are in the upload, ``train-loss`` and ``local-steps`` in the metrics.

        ``indices`` is what the sampler draws for this client, with keys, if that is known already. The caller then
        restores the global generators.
        """
        if self.task.rollouts is not None:
            return self._on_rollouts(self.task.rollouts, server_round, down, state)
        update = self.schedule.scaled(self.update, server_round).at_round(server_round)
        update = update.for_broadcast(down)
        id_1, device = np.array([self.client_id]), self.data.x.device
        sampler = sampler_of(self.task, update)
        restore = indices is None
        if indices is None:
            indices = sampler.draw(self.data.sizes_N, id_1, server_round, self.seed)
            indices = indices.with_keys(self.seed, id_1, update.key_round(server_round))
        steps = int(indices.steps_S[0])
        index_KCB = torch.from_numpy(indices.index_SKCB[0, :steps]).to(device)
        weight_KCB = torch.from_numpy(indices.weight_SKCB[0, :steps]).to(device, self.task.dtype)
        assert indices.key_SK is not None
        key_K = torch.from_numpy(indices.key_SK[0, :steps]).to(device)
        down = dict(down)
        buffers_Q = down.pop(BUFFERS, down["params"].new_zeros(0))
        memory = memory_before(self.task, sampler, state, down["params"], server_round)
        fresh_KC: Iterable[Tensor | None] = [None] * steps
        if indices.fresh_SKC is not None:
            fresh_KC = torch.from_numpy(indices.fresh_SKC[0, :steps]).to(device)
        has_memory, state = self.task.carry_state == "epoch", without_memory(state)
        work, losses = update.start(down, state), []
        stream = (self.seed, "dropout", server_round, self.client_id)
        with seeded(*stream, restore=restore), own_attributes(self.task.module):
            parts = zip(index_KCB, weight_KCB, key_K, fresh_KC, strict=True)
            for index_CB, weight_CB, key, fresh_C in parts:
                gradient = AutogradGradient(self.task, buffers_Q, memory)
                x, y_CB = self.data.samples(index_CB)
                x = augmented(self.task.augment, x, key)
                batch = MiniBatches(x, y_CB, weight_CB, key, fresh_C)
                bounded = clipped(gradient, self.task.max_grad_norm)
                work = update.step(bounded, down, state, work, batch)
                buffers_Q, memory = gradient.buffers_Q, gradient.memory_after
                losses += [] if gradient.loss is None else [gradient.loss]
        outcome = update.finish(down, state, work)
        after = outcome.state
        if has_memory:
            after = with_memory(after, memory, down["params"], server_round)
        return LocalResult(
            upload={**outcome.upload, BUFFERS: buffers_Q} if len(buffers_Q) else outcome.upload,
            state=after,
            metrics={
                **outcome.metrics,
                "train-loss": torch.stack(losses).mean(),
                "local-steps": torch.tensor(float(indices.gradients_S[0])),
            },
        )

    def _on_rollouts(self, rollouts: Rollouts, server_round: int, down: Arrays, state: Arrays) -> LocalResult:
        """Return the round's result on samples that the broadcast model makes; see `fedpisa.clients.rollouts`."""
        buffers_Q = down.get(BUFFERS, down["params"].new_zeros(0))
        model = down["params"], buffers_Q
        current = with_samples(rollouts, self.update, self.client_id, server_round, *model, state)
        data = samples_in({name: value[None] for name, value in current.items()}, np.zeros(1, np.int64), 1)
        client = replace(self, task=self.task.without_rollouts(), data=data)
        result = client.run_round(server_round, down, current)
        return completed(rollouts, state, current, result, BUFFERS)
