"""The fast Grid: all sampled clients stacked, their local updates run as one under `torch.func.vmap`.

Shapes: ``S`` clients, ``P`` parameters, ``Q`` buffer entries, ``K`` local steps, ``C`` mini-batches of a step,
``B`` samples of a mini-batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from flwr.app import Message, MessageType
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_map

from fedpisa import streams
from fedpisa.apps.handlers import evaluation_reply
from fedpisa.clients.base import Arrays, LocalUpdate, MiniBatches, Outcome
from fedpisa.clients.data import ClientData
from fedpisa.clients.gradients import StackedGradient
from fedpisa.clients.local import BUFFERS, Client, seeded
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
from fedpisa.simulation.grid import InProcessGrid
from fedpisa.simulation.states import StackedStates
from fedpisa.task import Task


@final
class UnstackableError(ValueError):
    """A layer cannot run for stacked clients."""

    def __init__(self, layer: str, cause: str) -> None:
        super().__init__(
            f'{layer} cannot run for stacked clients ({cause}); use engine = "loop", or replace the layer'
        )


@final
class VmapGrid(InProcessGrid):
    """Runs a cohort's local updates stacked, tensors passed on as they are.

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

    Raises
    ------
    UnstackableError
        If a layer of the module cannot run stacked, by its name.
    """

    def __init__(self, task: Task, update: LocalUpdate, data: ClientData, seed: int) -> None:
        super().__init__(data.num_clients)
        refuse_unstackable(task, data)
        self.task, self.update, self.data, self.seed = task, update, data, seed
        self.states: StackedStates | None = None

    def exchange(self, requests: Broadcast | list[Message]) -> Iterable[Message]:
        """Run the requests' clients, those with the same content together."""
        if isinstance(requests, Broadcast):
            return self._train(requests, requests.node_ids, requests.content, requests.confirmed_S)
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
            answers = self._train(group, nodes, group[0].content, confirmed_S)
            for request, reply in zip(group, answers, strict=True):
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
        self.states = StackedStates.restored(here, self.num_clients) if here else None

    def _received(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        dtype, device = self.data.x.dtype, self.data.x.device
        return {**to_tensors(content[ARRAYS], dtype, device), **scalars(content[CONFIG], dtype, device)}

    def _evaluate(self, request: Message) -> Message:
        client_id = self.client_of(request.metadata.dst_node_id)
        client = Client(self.task, self.update, *self.data.client(client_id), client_id, self.seed)
        return evaluation_reply(request, client, self._received(request.content))

    def _train(
        self,
        requests: Iterable[Message],
        nodes: Sequence[int],
        content: Mapping[str, Any],
        confirmed_S: Sequence[int] | None,
    ) -> StackedReplies:
        down = self._received(content)
        ids_S = np.array([self.client_of(node) for node in nodes], dtype=np.int64)
        rows_S = torch.from_numpy(ids_S).to(self.data.x.device)
        if self.states is None:
            initial = self.update.init(down["params"])
            self.states = StackedStates(initial, self.num_clients, self.update.incremental)
        if confirmed_S is not None:
            self.states.settle(rows_S, torch.tensor(confirmed_S, device=rows_S.device))
        server_round = int(content[CONFIG][SERVER_ROUND])
        outcome = run_cohort(
            self.task, self.update, self.data, self.seed, ids_S, server_round, down, self.states.read(rows_S)
        )
        self.states.write(rows_S, outcome.state, server_round)
        sizes_S = torch.from_numpy(self.data.sizes_N[ids_S]).double()
        return StackedReplies(requests, nodes, outcome.upload, sizes_S, outcome.metrics)


def run_cohort(
    task: Task,
    update: LocalUpdate,
    data: ClientData,
    seed: int,
    ids_S: np.ndarray[Any, np.dtype[np.int64]],
    server_round: int,
    down: Mapping[str, Tensor],
    states_S: Arrays,
) -> Outcome:
    """Return the stacked outcome of a cohort's round; for each client what `Client.run_round` returns.

    Clients with more steps come first inside, so that those still at work are always a prefix: a client
    that is done is neither computed nor masked. Within a mini-batch, padding has weight 0.
    """
    update = update.at_round(server_round)
    plan = update.schedule().plan(data.sizes_N[ids_S], ids_S, server_round, seed)
    order_S = np.argsort(-plan.steps_S, kind="stable")
    device = data.x.device
    rows_SKCB = torch.from_numpy(plan.index_SKCB + data.begin_N[ids_S, None, None, None])[order_S].to(device)
    weight_SKCB = torch.from_numpy(plan.weight_SKCB[order_S]).to(data.x)
    key_SK = streams.step_keys(seed, ids_S[order_S], server_round, int(plan.steps_S.max()))
    keys = torch.from_numpy(key_SK).to(device)
    order = torch.from_numpy(order_S).to(device)
    states_S = {name: value[order] for name, value in states_S.items()}
    shared = dict(down)
    buffers_Q = shared.pop(BUFFERS, shared["params"].new_zeros(0))

    def first(state: Arrays, buffers_Q: Tensor, *batch: Tensor) -> Any:
        return local_step(state, update.start(shared, state), buffers_Q, *batch)

    def local_step(state: Arrays, work: Arrays, buffers_Q: Tensor, *batch: Tensor) -> Any:
        gradient = StackedGradient(task, buffers_Q)
        work = update.step(gradient, shared, state, work, MiniBatches(*batch))
        # The loss and whether there is one: a step may do without a gradient.
        loss = shared["params"].new_zeros(())
        seen = torch.stack([loss, loss] if gradient.loss is None else [gradient.loss, loss + 1])
        return work, gradient.buffers_Q, seen

    def finish(state: Arrays, work: Arrays) -> Outcome:
        return update.finish(shared, state, work)

    finished: list[Any] = []
    carry: Any = None
    with torch.no_grad(), seeded(seed, server_round):
        for k in range(int(plan.steps_S.max())):
            active = int((plan.steps_S > k).sum())
            rows_SCB = rows_SKCB[:active, k]
            batch = (data.x[rows_SCB], data.y[rows_SCB], weight_SKCB[:active, k], keys[:active, k])
            if k == 0:
                buffers_SQ = buffers_Q.expand(active, -1)
                work, buffers_SQ, loss_S = vmap(first, randomness="different")(states_S, buffers_SQ, *batch)
            else:
                if active < len(carry[2]):
                    finished.insert(0, tree_map(lambda value, a=active: value[a:], carry))
                    carry = tree_map(lambda value, a=active: value[:a], carry)
                states = {name: value[:active] for name, value in states_S.items()}
                work, buffers_SQ, loss_S = vmap(local_step, randomness="different")(
                    states, carry[0], carry[1], *batch
                )
                loss_S = carry[2] + loss_S
            carry = (work, buffers_SQ, loss_S)
        work, buffers_SQ, loss_S = _join([carry, *finished])
        outcome: Outcome = vmap(finish)(states_S, work)
    back = torch.from_numpy(np.argsort(order_S)).to(device)
    upload = dict(outcome.upload)
    if buffers_SQ.shape[1]:
        upload[BUFFERS] = buffers_SQ
    gradients_S = torch.from_numpy(plan.gradients_S[order_S]).to(loss_S)
    metrics = {**outcome.metrics, "train-loss": loss_S[:, 0] / loss_S[:, 1], "local-steps": gradients_S}
    in_order: Outcome = tree_map(lambda value: value[back], Outcome(upload, dict(outcome.state), metrics))
    return in_order


def _join(parts: list[Any]) -> Any:
    """Concatenate trees of tensors along their first axis."""
    return parts[0] if len(parts) == 1 else tree_map(lambda *values: torch.cat(values), *parts)


def refuse_unstackable(task: Task, data: ClientData) -> None:
    """Try the module on two stacked clients of two samples.

    Raises
    ------
    UnstackableError
        With the innermost layer that failed and the fix.
    """
    entered: list[str] = []
    hooks = []
    for name, module in task.module.named_modules():
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            layer = f"{name or 'the model'} ({type(module).__name__})"
            raise UnstackableError(layer, "its running statistics would count padding")

        def enter(module: nn.Module, inputs: Any, name: str = name) -> None:
            entered.append(f"{name or 'the model'} ({type(module).__name__})")

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            entered.pop()

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    x = data.x[:1].expand(2, 1, 2, *data.x.shape[1:])
    y = data.y[:1].expand(2, 1, 2)
    weight = data.x.new_full((2, 1, 2), 0.5)
    params = task.initial_params().to(data.x).expand(2, -1)
    buffers = task.initial_buffers().to(data.x).expand(2, -1)

    def gradient(params_P: Tensor, buffers_Q: Tensor, *batch: Tensor) -> Tensor:
        return StackedGradient(task, buffers_Q)(params_P, MiniBatches(*batch))[1]

    try:
        with seeded(0), warnings.catch_warnings():
            # What has no batching rule runs one client after the other, with this warning in every round.
            warnings.filterwarnings("error", "There is a performance drop", UserWarning)
            vmap(gradient, randomness="different")(params, buffers, x, y, weight)
    except (RuntimeError, UserWarning) as error:
        layer = entered[-1] if entered else "the model's loss or backward pass"
        cause = " ".join(str(error).split())[:200]
        raise UnstackableError(layer, cause) from error
    finally:
        for hook in hooks:
            hook.remove()
