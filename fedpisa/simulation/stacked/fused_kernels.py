"""PyTorch's fused kernels: a whole recurrent layer or attention in one operation.

Such a kernel has no batching rule, so `torch.func.vmap` cannot run it for stacked clients. On a processor it is quicker
than the stacked operations that it replaces: clients run one after the other, by plain autograd. On a GPU the kernels
are switched off and the clients stacked, unless PyTorch cannot stack what remains.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpisa.clients.base import Arrays, LocalResult, LocalUpdate
from fedpisa.clients.batches import BatchIndices, Ints
from fedpisa.clients.client import Client
from fedpisa.datasets.client_data import ClientData
from fedpisa.tasks.base import Task

_NO_RULE: Final = re.compile(r"batching rule (for|not implemented)|do not yet support aten::", re.IGNORECASE)
_NO_STATE: Final = "doesn't match the broadcast shape"


def lacks_batching_rule(error: Exception, layer: nn.Module | None) -> bool:
    """Return whether an error of a stacked call, inside a layer, says that a kernel has no batching rule.

    A recurrent layer says something else: without an initial state, it adds stacked inputs to a state that is not
    stacked.

    Examples
    --------
    >>> lacks_batching_rule(RuntimeError("Batching rule not implemented for aten::div.out"), None)
    True
    >>> lacks_batching_rule(RuntimeError("vmap: It looks like you're calling .item()"), nn.Linear(1, 1))
    False
    """
    if isinstance(layer, nn.RNNBase) and _NO_STATE in str(error):
        return True
    return _NO_RULE.search(str(error)) is not None


@contextmanager
def without_fused_kernels(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Switch the kernels off that have no batching rule, on a GPU only.

    Examples
    --------
    >>> attention, x = nn.MultiheadAttention(2, 1), torch.zeros(1, 1, 2)
    >>> with without_fused_kernels(attention, torch.device("cuda")):
    ...     torch.backends.cuda.flash_sdp_enabled()
    False
    >>> with without_fused_kernels(attention, torch.device("cpu")):
    ...     torch.backends.cuda.flash_sdp_enabled()
    True
    """
    with ExitStack() as switched_off:
        if device.type != "cpu":
            switched_off.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
                switched_off.enter_context(torch.backends.cudnn.flags(enabled=False))
                # The module is first tried on the CPU. The flags set TF32 too, which builds without it warn of.
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)
                    switched_off.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


def run_alone(
    task: Task,
    update: LocalUpdate,
    data: ClientData,
    seed: int,
    ids_S: Ints,
    server_round: int,
    down: Arrays,
    states_S: Arrays,
    indices: BatchIndices,
) -> LocalResult:
    """Return the stacked outcome of clients that run one after the other, as on the loop engine.

    Parameters
    ----------
    task, update, data, seed
        What the clients share.
    ids_S
        The clients.
    server_round
        1, 2, ...
    down
        The broadcast.
    states_S
        The clients' states.
    indices
        The clients' samples.
    """
    outcomes = []
    for row, client_id in enumerate(ids_S.tolist()):
        client = Client(task, update, data.only(client_id), client_id, seed)
        own = {name: value[row] for name, value in states_S.items()}
        outcomes.append(client.run_round(server_round, down, own, indices.client(row)))
    return LocalResult(*(_stacked(parts) for parts in zip(*outcomes, strict=True)))


def _stacked(parts: tuple[Arrays, ...]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
