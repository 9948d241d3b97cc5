"""The fast Grid: all sampled clients stacked, their local updates run as one under `torch.func.vmap`.

Where a kernel cannot be stacked, the clients run one after the other in the same Grid.

Shapes: ``S`` clients, ``P`` parameters, ``Q`` buffer entries, ``K`` local steps, ``C`` mini-batches of a step,
``B`` samples of a mini-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from flwr.app import Message, MessageType
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalResult, LocalUpdate
from fedpisa.clients.batches import Ints
from fedpisa.clients.client import BUFFERS, Client
from fedpisa.clients.memory import initial_state
from fedpisa.clients.rollouts import completed, samples_in, trial_data, with_samples_of_cohort
from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule
from fedpisa.components import LOG, one_line
from fedpisa.datasets.client_data import ClientData
from fedpisa.flower.client_app import evaluation_reply
from fedpisa.flower.compat import to_tensors
from fedpisa.flower.messages import (
    ARRAYS,
    CONFIG,
    CONFIRMED_ROUND,
    SERVER_ROUND,
    Broadcast,
    StackedReplies,
    scalars,
)
from fedpisa.rng import seeded
from fedpisa.simulation.grid import InProcessGrid
from fedpisa.simulation.stacked.client_states import StackedStates
from fedpisa.simulation.stacked.cohort import Path, join, run_cohort
from fedpisa.simulation.stacked.compat_torch import private
from fedpisa.simulation.stacked.gradient_check import (
    UnstackableError,
    differs,
    generators,
    require_stackable,
)
from fedpisa.simulation.stacked.sequential import sequential_gradient
from fedpisa.simulation.stacked.threads import Threads
from fedpisa.storage.client_rows import UNLIMITED
from fedpisa.strategies.base import ClientStates
from fedpisa.tasks.base import Samples, Task
from fedpisa.tasks.module_values import own_attributes
from fedpisa.tasks.modules import copy_of


@final
class VmapGrid(InProcessGrid):
    """Runs a cohort's local updates in one call, stacked where the module allows it; tensors are passed on as they are.

    Parameters
    ----------
    task
        Module and loss.
    update
        The algorithm's local update.
    data
        All clients' samples.
    seed
        The run's seed.
    block
        How many clients are computed at once; 0 for all. Halved whenever the device's memory proves too small.
    state_memory
        Bytes that the clients' states may take in memory; see `StackedStates`.
    schedule
        How the update's step sizes change with the round.

    Raises
    ------
    UnstackableError
        If a layer of the module cannot run stacked, by its name, and not because of a kernel without a batching rule.
    """

    engine = "vmap"

    def __init__(
        self,
        task: Task,
        update: LocalUpdate,
        data: ClientData,
        seed: int,
        block: int = 0,
        state_memory: int = UNLIMITED,
        schedule: StepSizeSchedule = UNSCHEDULED,
    ) -> None:
        super().__init__(data.num_clients)
        private()  # its warning is not the model's
        tried, learner = trial_data(task, data), task.without_rollouts()
        self.path, self.path_reason = choose_path(learner, tried)
        self.learner = learner
        self.task, self.update, self.data, self.seed = task, update, data, seed
        self.block = block or data.num_clients
        self.state_memory, self.schedule = state_memory, schedule
        self.states: StackedStates | None = None
        on_cpu = data.x.device.type == "cpu"
        # What is drawn while the model runs comes from generators that threads would share.
        # PyTorch's own threads share the products of dense layers.
        in_one_piece = not on_cpu or self.path == "written-out" or draws(learner, tried)
        number = 1 if in_one_piece else torch.get_num_threads()
        self.threads = Threads(number)
        self.copies = [
            learner.with_module(copy_of(task.module), autocast=task.autocast) for _ in range(number - 1)
        ]

    @property
    def info(self) -> Mapping[str, object]:
        """What ``run.json`` says about the way in which gradients are computed."""
        return {"path": self.path, **({"path_reason": self.path_reason} if self.path_reason else {})}

    @property
    def client_states(self) -> ClientStates:
        """Everything is in this process."""
        return self

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Run the requests' clients, those with the same content together.

        If this raises, each client of a broadcast runs alone. Those that raise then give error replies.

        Raises
        ------
        OSError
            If the clients' states cannot be read or written. This is not a failure of a client.
        """
        if isinstance(requests, Broadcast):
            nodes, content, confirmed_S = requests.node_ids, requests.content, requests.confirmed_S
            try:
                stacked = self._train(requests, nodes, content, confirmed_S)
                self._has_replied = True
                return stacked
            except OSError:
                raise
            except Exception:
                messages, answers = list(requests), list[Message | Exception]()
                for row, message in enumerate(messages):
                    confirmed = None if confirmed_S is None else confirmed_S[row : row + 1]
                    try:
                        answers += self._train([message], nodes[row : row + 1], content, confirmed, first=row)
                    except OSError:
                        raise
                    except Exception as error:
                        answers.append(error)
                if not self._has_replied and all(isinstance(answer, Exception) for answer in answers):
                    raise
                return self.with_errors(messages, answers)
        replies: dict[int, Message] = {}
        groups: dict[object, list[Message]] = {}
        for request in requests:
            if request.metadata.message_type == MessageType.EVALUATE:
                replies[id(request)] = self._evaluate(request)
            elif request.metadata.message_type != MessageType.TRAIN:
                raise ValueError(
                    f"a {request.metadata.message_type!r} message: stacked clients only train and evaluate; "
                    "use a LoopGrid with a ClientApp of your own"
                )
            else:
                config = dict(request.content[CONFIG])
                config.pop(CONFIRMED_ROUND, None)
                key = (id(request.content[ARRAYS]), *sorted(config.items()))
                groups.setdefault(key, []).append(request)
        for group in groups.values():
            group.sort(key=lambda request: request.metadata.dst_node_id)
            nodes = [request.metadata.dst_node_id for request in group]
            configs = [request.content.config_records[CONFIG] for request in group]
            told = all(CONFIRMED_ROUND in config for config in configs)
            confirmed_S = [int(str(config[CONFIRMED_ROUND])) for config in configs] if told else None
            stacked = self._train(group, nodes, group[0].content, confirmed_S)
            for request, reply in zip(group, stacked, strict=True):
                replies[id(request)] = reply
        return [replies[id(request)] for request in requests]

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]``; see `fedpisa.strategies.base.ClientStates`."""
        return torch.zeros(()) if self.states is None else self.states.weighted_sum(name, weights_N)

    def state(self, client_id: int) -> Arrays | None:
        """Return one client's state; see `fedpisa.strategies.base.ClientStates`."""
        return None if self.states is None else self.states.row(client_id)

    def snapshot(self) -> dict[str, Tensor]:
        """Return all clients' states, for `restore`."""
        return {} if self.states is None else self.states.snapshot()

    def restore(self, kept: Arrays) -> None:
        """Take up the states of a `snapshot`."""
        here = {name: value.to(self.data.x.device) for name, value in kept.items()}
        self.states = StackedStates.restored(here, self.num_clients, self.state_memory) if here else None

    def _received(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        dtype, device = self.task.dtype, self.data.x.device
        return {**to_tensors(content[ARRAYS], dtype, device), **scalars(content[CONFIG], dtype, device)}

    def _evaluate(self, request: Message) -> Message:
        client_id = self.client_of(request.metadata.dst_node_id)
        client = Client(self.task, self.update, self.data.only(client_id), client_id, self.seed)
        return evaluation_reply(request, client, self._received(request.content))

    def _train(
        self,
        requests: Iterable[Message],
        nodes: Sequence[int],
        content: Mapping[str, Any],
        confirmed_S: Sequence[int] | None,
        first: int = 0,
    ) -> StackedReplies:
        down = self._received(content)
        ids_S = np.array([self.client_of(node) for node in nodes], dtype=np.int64)
        rows_S = torch.from_numpy(ids_S).to(self.data.x.device)
        if self.states is None:
            initial = initial_state(self.task, self.update, down["params"])
            self.states = StackedStates(initial, self.num_clients, self.update.incremental, self.state_memory)
        if confirmed_S is not None:
            self.states.roll_back_unconfirmed(rows_S, torch.tensor(confirmed_S, device=rows_S.device))
        server_round = int(content[CONFIG][SERVER_ROUND])
        own = self.states.read(rows_S)
        outcome = self._outcome(ids_S, server_round, down, own, first)
        self.states.write(rows_S, outcome.state, server_round)
        sizes_S = torch.from_numpy(self.data.sizes_N[ids_S]).double()
        return StackedReplies(requests, nodes, outcome.upload, sizes_S, outcome.metrics)

    def _outcome(
        self, ids_S: Ints, server_round: int, down: Arrays, states_S: Arrays, first: int
    ) -> LocalResult:
        """Return the clients' outcome, on samples that they make if the task says so."""
        rollouts = self.task.rollouts
        if rollouts is None:
            return self._in_blocks(ids_S, server_round, down, states_S, first)
        model = down["params"], down.get(BUFFERS, down["params"].new_zeros(0))
        own = with_samples_of_cohort(rollouts, self.update, ids_S, server_round, *model, states_S)
        made = samples_in(own, ids_S, self.num_clients)
        result = self._in_blocks(ids_S, server_round, down, own, first, made)
        return completed(rollouts, states_S, own, result, BUFFERS)

    def _in_blocks(
        self,
        ids_S: Ints,
        server_round: int,
        down: Arrays,
        states_S: Arrays,
        first: int = 0,
        made: ClientData | None = None,
    ) -> LocalResult:
        """Return the clients' outcome, computed for as many clients at a time as fit into memory.

        ``first`` clients of the round come before them. ``made`` are samples that they have made.
        """
        update = self.schedule.scaled(self.update, server_round)
        common = (self.learner, update, self.data if made is None else made, self.seed)
        outcomes: list[LocalResult] = []
        begin = 0
        while begin < len(ids_S):
            part = slice(begin, begin + self.block)
            own = {name: value[part] for name, value in states_S.items()}
            try:
                outcomes.append(
                    run_cohort(
                        *common,
                        ids_S[part],
                        server_round,
                        down,
                        own,
                        self.copies,
                        first + begin,
                        path=self.path,
                        threads=self.threads,
                    )
                )
            except torch.OutOfMemoryError as error:
                self.block = min(self.block, len(ids_S) - begin) // 2
                if not self.block:
                    raise ValueError(
                        f"one client's local step does not fit into the memory of {self.data.x.device} "
                        f'({one_line(error)}): take a smaller batch-size, or device = "cpu"'
                    ) from error
                LOG.warning("out of memory: from now on %d clients at a time", self.block)
            else:
                begin = part.stop
        whole: LocalResult = join(outcomes)
        return whole


def choose_path(task: Task, data: ClientData) -> tuple[Path, str]:
    """Return how clients' gradients are computed, proved on the module and the data at hand, and why not quicker.

    Only plain autograd takes a mini-batch in pieces.

    Raises
    ------
    UnstackableError
        If stacked clients would not get the gradients of plain autograd, for another cause than a kernel without a
        batching rule.
    """
    # The noise of pieces differs from that of a whole mini-batch, which the proof takes.
    path, reason = _quickest_path(replace(task, micro_batch_size=0), data)
    if task.micro_batch_size and path != "autograd":
        return "autograd", f"micro-batch-size = {task.micro_batch_size}"
    return path, reason


def _quickest_path(task: Task, data: ClientData) -> tuple[Path, str]:
    """Return the quickest path that is right for the module, and why not a quicker one."""
    require_stackable(task.module)
    sequential = sequential_gradient(task, data.x)
    reason = "the module is not a sequence of known layers"
    if task.draws_noise:
        reason = "the losses depend on noise, which is drawn anew in each step"
    if sequential is not None:
        reason = differs(task, data, sequential=True)
        if not reason:
            return "one-by-one" if sequential.body_names else "written-out", ""
    try:
        difference = differs(task, data, sequential=False)
    except UnstackableError as error:
        if not error.is_fused:
            raise
        return "autograd", error.reason
    if difference:
        raise UnstackableError("the model", difference)
    return "stacked", reason


def draws(task: Task, data: ClientData) -> bool:
    """Return whether the module draws random numbers in training, as dropout does."""
    with seeded(0, "trial"), torch.no_grad(), own_attributes(task.module):
        before = generators()
        start_P = task.initial_params()
        x, y = (part[:1].expand(2, *part.shape[1:]) for part in (data.x, data.y))
        key = torch.zeros((), dtype=torch.int64, device=x.device)
        samples = Samples(x, y, start_P.new_ones(2), key)
        task.losses(task.layout.unflatten(start_P), task.initial_buffers(), samples)
        return before != generators()
