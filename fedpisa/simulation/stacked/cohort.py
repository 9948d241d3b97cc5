"""A cohort's round as one pure function: all of its clients stacked, or, where that is quicker, one after the other.

Shapes: ``S`` clients, ``P`` parameters, ``Q`` buffer entries, ``K`` local steps, ``C`` mini-batches of a step,
``B`` samples of a mini-batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fedpisa.clients.base import Arrays, LocalResult, LocalUpdate, MiniBatches
from fedpisa.clients.batches import BatchIndices, Ints
from fedpisa.clients.client import BUFFERS
from fedpisa.clients.clipping import clipped
from fedpisa.clients.memory import memory_before, sampler_of, with_memory, without_memory
from fedpisa.clients.sgd import SGDSteps
from fedpisa.datasets.client_data import ClientData
from fedpisa.rng import seeded, torch_seeded
from fedpisa.simulation.stacked.compat_torch import of_all_clients
from fedpisa.simulation.stacked.fused_kernels import run_alone, without_fused_kernels
from fedpisa.simulation.stacked.fused_sgd import is_fusible, take_fused_steps
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.simulation.stacked.sequential import SequentialGradient, sequential_gradient
from fedpisa.simulation.stacked.threads import Threads
from fedpisa.tasks.augment import augmented
from fedpisa.tasks.base import Task

Path = Literal["written-out", "one-by-one", "stacked", "autograd"]
"""How gradients are computed: written out for all clients at once, or for one after the other; by `torch.func` for all
clients at once, or by plain autograd for one after the other."""
WORTH_A_THREAD: Final = 5_000_000
"""Multiplications of a cohort's local step from which it is spread: clients x samples x tokens x weights."""


class Common(NamedTuple):
    """What a cohort's clients share in a round, beside the module; see `run_cohort`.

    Inside `_run_stacked` the update is the round's, and buffers have been taken out of the broadcast.
    """

    update: LocalUpdate
    data: ClientData
    seed: int
    server_round: int
    down: Mapping[str, Tensor]
    sequential: SequentialGradient | None


def run_cohort(
    task: Task,
    update: LocalUpdate,
    data: ClientData,
    seed: int,
    ids_S: Ints,
    server_round: int,
    down: Mapping[str, Tensor],
    states_S: Arrays,
    copies: Sequence[Task] = (),
    begin: int = 0,
    *,
    path: Path,
    threads: Threads | None = None,
) -> LocalResult:
    """Return the stacked outcome of a cohort's round; for each client what `Client.run_round` returns.

    Clients with more steps come first inside, so that those still at work are always a prefix: a client
    that is done is neither computed nor masked. Within a mini-batch, padding has weight 0.

    Parameters
    ----------
    task, update, data, seed
        What the clients share.
    ids_S
        The cohort.
    server_round
        1, 2, ...
    down
        The broadcast.
    states_S
        The clients' states.
    copies
        Copies of ``task``, one for each further thread that may take a part of the cohort: PyTorch puts tensors
        into a module while it calls it.
    begin
        How many clients of the round came before these: what a module draws is not to be drawn again.
    path
        How gradients are computed, which has been proved right for the module.
    threads
        A thread for ``task`` and for each of the copies; by default new ones.
    """
    of_round = update.at_round(server_round)
    indices = sampler_of(task, of_round).draw(data.sizes_N[ids_S], ids_S, server_round, seed)
    indices = indices.with_keys(seed, ids_S, of_round.key_round(server_round))
    # Frozen weights are multiplied too, and all weights with each token of a sample.
    size = sum(parameter.numel() for parameter in task.module.parameters())
    tokens = 1 if data.x.is_floating_point() else data.x[:1].numel()
    if task.inputs is not None:
        tokens = max(1, task.inputs.num_integers)
    multiplications = len(ids_S) * indices.weight_SKCB[0, 0].size * tokens * size
    tasks = (task, *copies)[: len(ids_S)] if multiplications >= WORTH_A_THREAD else (task,)
    parts = _deal_out(indices.steps_S, len(tasks))
    written_out = path in ("written-out", "one-by-one")
    sequential = sequential_gradient(task, data.x) if written_out else None
    # A client whose convolutions are computed alone anyway has its vectors in the cache from step to step.
    run = _run_one_by_one if path == "one-by-one" else _run_stacked

    def run_part(task: Task, rows_S: Ints) -> LocalResult:
        own = {name: _rows(value, rows_S) for name, value in states_S.items()}
        if path == "autograd":
            drawn = indices.rows(rows_S)
            return run_alone(task, update, data, seed, ids_S[rows_S], server_round, down, own, drawn)
        # Each thread's copy of the module has other layers.
        gradient = sequential if task is tasks[0] or not written_out else sequential_gradient(task, data.x)
        common = Common(update, data, seed, server_round, down, gradient)
        return run(task, common, ids_S[rows_S], own, indices.rows(rows_S))

    # A module that draws from other generators is not stacked; see `differs`. A client that runs alone seeds all of
    # them, and on several threads at once it does not restore them.
    restored = seeded if path == "autograd" else torch_seeded
    with restored(seed, "dropout", server_round, *([begin] if begin else [])):
        if len(tasks) == 1:
            outcomes = [run_part(task, parts[0])]
        else:
            outcomes = (threads or Threads(len(tasks))).map(run_part, tasks, parts)
    back = np.argsort(np.concatenate(parts))
    in_order: LocalResult = map_tensors(lambda value: _rows(value, back), join(outcomes))
    return in_order


def _deal_out(steps_S: Ints, parts: int) -> list[Ints]:
    """Return the clients of each part, those with more steps first, and as many of them in one part as in another."""
    if (steps_S == steps_S[0]).all():
        return np.array_split(np.arange(len(steps_S)), parts)
    order_S = np.argsort(-steps_S, kind="stable")
    return [order_S[number::parts] for number in range(parts)]


def _rows(value: Tensor, rows_S: Ints) -> Tensor:
    """Return some of a tensor's rows: consecutive ones as a view, because copies of whole cohorts take their time."""
    if (np.diff(rows_S) == 1).all():
        return value[rows_S[0] : rows_S[0] + len(rows_S)]
    return value.index_select(0, torch.from_numpy(rows_S).to(value.device))


def _run_one_by_one(
    task: Task, common: Common, ids_S: Ints, states_S: Arrays, indices: BatchIndices
) -> LocalResult:
    """Return the stacked outcome of clients, computed one by one."""
    outcomes = []
    for row in range(len(ids_S)):
        own = {name: value[row : row + 1] for name, value in states_S.items()}
        outcomes.append(_run_stacked(task, common, ids_S[row : row + 1], own, indices.rows(np.array([row]))))
    stacked: LocalResult = join(outcomes)
    return stacked


class Batches(NamedTuple):
    """The mini-batches of some clients' steps: rows of all samples, weights, random keys, and where memory is cleared.

    ``fresh_SKC`` is false without memory.
    """

    rows_SKCB: Tensor
    weight_SKCB: Tensor
    key_SK: Tensor
    fresh_SKC: Tensor


class Carry(NamedTuple):
    """What clients take from one local step to the next; ``work`` is empty before the first.

    ``losses_S`` is the number of steps whose losses ``loss_S`` adds up: a step may do without a gradient.
    """

    work: Arrays
    buffers_SQ: Tensor
    loss_S: Tensor
    losses_S: Tensor
    memory: Arrays


@torch.no_grad()
def _run_stacked(
    task: Task, common: Common, ids_S: Ints, states_S: Arrays, indices: BatchIndices
) -> LocalResult:
    """Return the stacked outcome of clients that are ordered by their steps, those with most first."""
    update, data, _, server_round, down, sequential = common
    update, shared = update.at_round(server_round).for_broadcast(down), dict(down)
    common = common._replace(update=update, down=shared)
    device, steps = data.x.device, int(indices.steps_S.max())
    assert indices.key_SK is not None
    batches = Batches(
        torch.from_numpy(indices.index_SKCB + data.begin_N[ids_S, None, None, None]).to(device),
        torch.from_numpy(indices.weight_SKCB).to(device, task.dtype),
        torch.from_numpy(indices.key_SK[:, :steps]).to(device),
        torch.from_numpy(
            np.zeros(indices.index_SKCB.shape[:3], np.bool_)
            if indices.fresh_SKC is None
            else indices.fresh_SKC
        ).to(device),
    )
    buffers_Q = shared.pop(BUFFERS, shared["params"].new_zeros(0))
    none_S = shared["params"].new_zeros(len(ids_S))
    params_P, sampler = shared["params"], sampler_of(task, update)
    memory_S: Arrays = {}
    if task.carry_state != "none":
        memory_S = vmap(lambda state, _: memory_before(task, sampler, state, params_P, server_round))(
            states_S, none_S
        )
    states_S = without_memory(states_S)
    carry = Carry({}, buffers_Q.expand(len(ids_S), -1), none_S, none_S, memory_S)
    fused = sequential is not None and is_fusible(update, task.max_grad_norm)
    take_steps = _take_fused_steps if fused else _take_stretches
    with without_fused_kernels(task.module, device):
        carry = take_steps(task, common, states_S, carry, batches, indices.steps_S)
    outcome: LocalResult = vmap(lambda state, work: update.finish(shared, state, work))(states_S, carry.work)
    after: Arrays = outcome.state
    if task.carry_state == "epoch":
        after = vmap(lambda own, memory: with_memory(own, memory, params_P, server_round))(
            after, carry.memory
        )
    buffers = {BUFFERS: carry.buffers_SQ} if carry.buffers_SQ.shape[1] else {}
    metrics = {
        **outcome.metrics,
        "train-loss": carry.loss_S / carry.losses_S,
        "local-steps": torch.from_numpy(indices.gradients_S).to(carry.loss_S),
    }
    return LocalResult({**outcome.upload, **buffers}, dict(after), metrics)


def _take_stretches(
    task: Task, common: Common, states_S: Arrays, carry: Carry, batches: Batches, steps_S: Ints
) -> Carry:
    """Take an update's steps, those between two clients' ends at a time."""
    done: list[Carry] = []
    for begin, end, active in _stretches(steps_S):
        if active < len(carry.loss_S):
            done.insert(0, map_tensors(lambda value, a=active: value[a:], carry))
            carry = map_tensors(lambda value, a=active: value[:a], carry)
        states = {name: value[:active] for name, value in states_S.items()}
        carry = _take_steps(
            task, common, states, carry, Batches(*(part[:active, begin:end] for part in batches))
        )
    whole: Carry = join([carry, *done])
    return whole


def _take_steps(task: Task, common: Common, states_S: Arrays, carry: Carry, batches: Batches) -> Carry:
    """Take any update's steps for all clients in one `vmap`."""
    update, data, _, _, down, sequential = common

    def of_one(state: Arrays, carry: Carry, batches: Batches) -> Carry:
        work, buffers_Q, loss, losses, memory = carry
        # Begun here, the model is not stacked: all clients' first gradients are at the same point.
        work = work or update.start(down, state)
        for rows_CB, weight_CB, key, fresh_C in zip(*(part.unbind() for part in batches), strict=True):
            x, y_CB = of_all_clients(data.samples, rows_CB)
            x = augmented(task.augment, x, key)
            gradient = StackedGradient(task, buffers_Q, sequential, memory)
            bounded = clipped(gradient, task.max_grad_norm)
            batch = MiniBatches(x, y_CB, weight_CB, key, fresh_C)
            work = update.step(bounded, down, state, work, batch)
            buffers_Q, memory = gradient.buffers_Q, gradient.memory_after
            if gradient.loss is not None:
                loss, losses = loss + gradient.loss, losses + 1
        return Carry(work, buffers_Q, loss, losses, memory)

    after: Carry = vmap(of_one, randomness="different")(states_S, carry, batches)
    return after


def _take_fused_steps(
    task: Task, common: Common, states_S: Arrays, carry: Carry, batches: Batches, steps_S: Ints
) -> Carry:
    """Take the steps of plain SGD; see `fedpisa.simulation.stacked.fused_sgd`."""
    update, data, _, _, down, sequential = common
    assert sequential is not None
    assert isinstance(update, SGDSteps)
    work = vmap(lambda state, _: update.start(down, state))(states_S, carry.loss_S)
    weight_KSB = batches.weight_SKCB.flatten(2).unbind(1)
    active_K = (steps_S[:, None] > np.arange(len(weight_KSB))).sum(0).tolist()

    def samples_of(rows_SCB: Tensor, key_S: Tensor) -> tuple[Tensor, Tensor]:
        x, y_SCB = data.samples(rows_SCB)
        return augmented(task.augment, x, key_S).flatten(1, 2), y_SCB.flatten(1, 2)

    steps = zip(batches.rows_SKCB.unbind(1), batches.key_SK.unbind(1), weight_KSB, active_K, strict=True)
    samples = (
        (*samples_of(rows_SCB[:active], key_S[:active]), weight_SB[:active])
        for rows_SCB, key_S, weight_SB, active in steps
    )
    work, loss_S = take_fused_steps(update, sequential, task.closed_form, down, states_S, work, samples)
    return carry._replace(work=work, loss_S=loss_S, losses_S=torch.from_numpy(steps_S).to(loss_S))


def _stretches(steps_S: Ints) -> Iterator[tuple[int, int, int]]:
    """Yield first step, end and number of clients of every stretch of steps between two clients' ends.

    Examples
    --------
    >>> list(_stretches(np.array([4, 4, 1])))
    [(0, 1, 3), (1, 4, 2)]
    """
    ends = np.unique(steps_S).tolist()
    for begin, end in itertools.pairwise([0, *ends]):
        yield begin, end, int((steps_S > begin).sum())


def map_tensors(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """Return a tree of dictionaries and named tuples, with a function of the tensors at each place of some trees.

    Examples
    --------
    >>> map_tensors(torch.add, {"a": torch.tensor(1)}, {"a": torch.tensor(2)})
    {'a': tensor(3)}
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, Mapping):
        return {
            name: map_tensors(function, value, *(other[name] for other in others))
            for name, value in tree.items()
        }
    return type(tree)(*(map_tensors(function, *values) for values in zip(tree, *others, strict=True)))


def join(parts: list[Any]) -> Any:
    """Concatenate trees of tensors along their first axis."""
    return parts[0] if len(parts) == 1 else map_tensors(lambda *values: torch.cat(values), *parts)
