"""What clients learn: a module and its loss, as functions of flat vectors.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``B`` samples of a mini-batch, ``n`` samples in all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, Self, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpisa.datasets.client_data import ClientData
from fedpisa.datasets.inputs import Inputs
from fedpisa.models.recurrent import Steps
from fedpisa.rng import mix, seeded
from fedpisa.tasks.augment import Augmentation
from fedpisa.tasks.batchnorm import MaskedBatchNorm, mask_batchnorms, real_rows
from fedpisa.tasks.buffers import BufferLayout
from fedpisa.tasks.dropout import Keyed, key_dropouts, keyed_dropouts, masks_from
from fedpisa.tasks.features import FeatureLoss, with_features
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.module_values import Held, Places, holding
from fedpisa.tasks.modules import places
from fedpisa.tasks.players import Player


class Samples(NamedTuple):
    """One mini-batch, of which a loss is computed.

    Parameters
    ----------
    x
        Features ``(B, *shape)``; several ones are packed, see `Task.inputs`.
    y
        Targets ``(B, *target shape)``.
    real_B
        1 for a sample and 0 for padding, which comes last; ``None`` without padding.
    key
        64 random bits ``()``, of which all noise in the loss is a function: see `fedpisa.rng.uniform`. Draw with the
        samples as the first axis, and a sample's noise does not depend on the padding. ``None`` for no noise.
    """

    x: Tensor
    y: Tensor
    real_B: Tensor | None = None
    key: Tensor | None = None


class Pass(NamedTuple):
    """What a pass over a mini-batch gives.

    Parameters
    ----------
    losses_B
        The samples' losses.
    buffers_Q
        The module's buffers after the pass.
    memory
        What the client carries to the next mini-batch, by name, each ``(B, ...)``; see `Task.initial_memory`.
    """

    losses_B: Tensor
    buffers_Q: Tensor
    memory: Mapping[str, Tensor] = MappingProxyType({})


class Rollouts(Protocol):
    """How clients make their samples with the broadcast model; see `fedpisa.clients.rollouts`."""

    @property
    def restarts(self) -> bool:
        """Whether a client's algorithm begins anew with new samples."""
        ...

    def period(self, server_round: int) -> int:
        """Return which samples a round uses: 1 for the first ones."""
        ...

    def no_samples(self) -> dict[str, Tensor]:
        """Return a client's memory before its first round: samples ``x`` and ``y``, and what else is kept."""
        ...

    def collected(
        self, client_id: int, period: int, params_P: Tensor, buffers_Q: Tensor, memory: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a client's memory with new samples, a function of the arguments and the run's seed."""
        ...

    def sent_buffers(self, buffers: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """Return the buffers ``(Q,)`` that a client uploads, or those of several clients ``(S, Q)``."""
        ...

    def trial_samples(self) -> tuple[Tensor, Tensor]:
        """Return a few samples of the right shapes, on which a module can be tried."""
        ...


@dataclass(frozen=True)
class Task(ABC):
    """What clients learn: a module and a loss as functions of flat parameter and buffer vectors.

    Parameters
    ----------
    module
        The network. Its plain BatchNorms become `MaskedBatchNorm` in place, and its plain dropout layers draw from the
        samples' key, see `key_dropouts`; its tensors serve only as initial values.
    autocast
        Whether the forward pass of training uses bfloat16 where `torch.autocast` finds that safe.
    max_grad_norm
        Largest norm of a local step's gradient; 0 for no bound. See `fedpisa.clients.clipping`.
    micro_batch_size
        Number of samples of a mini-batch whose gradient is computed at once; 0 for all.
    augment
        How training samples are changed in each step; ``None`` for not at all.
    inputs
        What packed features are: the module takes several, by name or in order. ``None`` if it takes one tensor.

    Raises
    ------
    ValueError
        If the module has no trainable parameters.
    """

    module: nn.Module
    autocast: bool = field(default=False, kw_only=True)
    max_grad_norm: float = field(default=0.0, kw_only=True)
    micro_batch_size: int = field(default=0, kw_only=True)
    inputs: Inputs | None = field(default=None, kw_only=True)
    augment: Augmentation | None = field(default=None, kw_only=True)
    layout: ParamLayout = field(init=False)
    buffer_layout: BufferLayout = field(init=False)
    _observed: nn.Module = field(init=False, repr=False)
    _places: Mapping[str, tuple[str, ...]] = field(init=False, repr=False)
    _tensors: Places = field(init=False, repr=False)
    _layers: tuple[nn.Module, ...] = field(init=False, repr=False)
    _dropouts: tuple[Keyed, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", key_dropouts(mask_batchnorms(self.module)))
        object.__setattr__(self, "layout", ParamLayout.of_parameters(self.module))
        if not self.layout.names:
            raise ValueError(
                "the model has no trainable parameters: give it a layer that learns, or unfreeze one"
            )
        object.__setattr__(self, "buffer_layout", BufferLayout.of(self.module))
        object.__setattr__(self, "_observed", Observed(self.module, self.inputs, self.layout.dtype))
        object.__setattr__(self, "_places", places(self._observed))
        object.__setattr__(self, "_tensors", Places(self.module))
        object.__setattr__(self, "_layers", tuple(self.module.modules()))
        object.__setattr__(self, "_dropouts", keyed_dropouts(self.module))

    @property
    @abstractmethod
    def measures(self) -> tuple[Measure, ...]:
        """The columns of `evaluate`; the first is the headline."""

    @abstractmethod
    def with_module(self, module: nn.Module, *, autocast: bool = False) -> Self:
        """Return the same task with another module."""

    @abstractmethod
    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return which loss of `fedpisa.tasks.losses` this is, for a number of outputs; ``None`` for another loss."""

    @abstractmethod
    def losses(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        samples: Samples,
        extra: FeatureLoss | None = None,
        memory: Mapping[str, Tensor] = MappingProxyType({}),
        player: str | None = None,
    ) -> Pass:
        """Return the samples' losses in training mode, and the buffers and the memory after the pass.

        ``params = None`` stands for what the module holds; see `holding`. ``extra`` changes only the derivatives of
        the losses; see `FeatureLoss`. ``memory`` has a row for each sample. ``player`` says whose losses these are if
        the task has `players`; ``None`` stands for the sum over all of them, which no algorithm minimises.
        """

    @abstractmethod
    def sample_scores(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the scores ``(B,)`` from whose means `combine` makes measures, ``loss`` first, in evaluation mode.

        The module's own parameters and buffers are used; see `holding`.
        """

    @abstractmethod
    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return measures by column from the means of the scores over samples: numbers, or arrays ``(N,)``."""

    @abstractmethod
    def evaluate(self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the measures on ``n`` samples by column, ``loss`` first; NaN if a measure has no value."""

    def evaluate_set(self, params_P: Tensor, buffers_Q: Tensor, data: ClientData) -> dict[str, float]:
        """Return the measures on all samples of a set, in whose clients a carried state passes from row to row."""
        return self.evaluate(params_P, buffers_Q, *data.all())

    @torch.no_grad()
    def scores(
        self, params_P: Tensor, buffers_Q: Tensor, data: ClientData, batch_size: int = 8192
    ) -> dict[str, Tensor]:
        """Return the scores of all samples of a set, each ``(n,)``; see `sample_scores` and `evaluate_set`."""
        parts = []
        with seeded(0, "evaluation"):
            for x_B, y_B in data.batches(data.bounded(batch_size)):
                with self.holding(params_P, buffers_Q):
                    parts.append(self.sample_scores(x_B, y_B))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @property
    def players(self) -> tuple[Player, ...]:
        """The networks that have losses of their own, in the order of the flat vector: by default none."""
        return ()

    @property
    def turns(self) -> tuple[str, ...]:
        """The names of the players whose turns rounds 1, 2, ... are, repeated."""
        return ()

    @property
    def turns_within(self) -> bool:
        """Whether all players move in each round, and the turns are those within a local step."""
        return False

    @property
    def same_noise(self) -> bool:
        """Whether the last of the turns draws the noise of the turn before it."""
        return False

    @property
    def averages(self) -> Mapping[str, float]:
        """By player, the decay of the running mean of its parameters that is evaluated in their place."""
        return MappingProxyType({})

    def project(self, player: str, params_G: Tensor) -> Tensor:
        """Return the nearest parameters ``(G,)`` that a player may have: by default these."""
        return params_G

    @property
    def carry_state(self) -> Literal["none", "round", "epoch"]:
        """How far a client carries its memory from mini-batch to mini-batch; see `fedpisa.tasks.recurrent`."""
        return "none"

    def initial_memory(self, num_rows: int) -> dict[str, Tensor]:
        """Return a client's memory before its first mini-batch of ``num_rows`` samples: by default none.

        A client alone has and sees its memory. Each tensor has a row for each sample of a mini-batch.
        """
        return {}

    @property
    def rollouts(self) -> Rollouts | None:
        """How clients make their samples; ``None`` if they have them."""
        return None

    def without_rollouts(self) -> Self:
        """Return the task of clients that have their samples."""
        return self

    def remembering(self, state_of: Callable[[int], Mapping[str, Tensor] | None]) -> Self:
        """Return the task with the clients' states, if its evaluations need them."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and losses; features may have another, such as int64."""
        return self.layout.dtype

    @property
    def mixes_samples(self) -> bool:
        """Whether the outputs or buffers depend on several samples, as with BatchNorm's statistics."""
        return bool(self.buffer_layout.names) or any(
            isinstance(layer, MaskedBatchNorm) for layer in self.module.modules()
        )

    def without(self, buffer: str) -> str:
        """Return how to do without a buffer of the module's, as the end of the text of a refusal."""
        return "use a model without buffers, such as one without BatchNorm"

    @property
    def draws_noise(self) -> bool:
        """Whether the losses depend on the samples' key. Each mini-batch then has a pass and a key of its own."""
        return any(layer.p > 0 for layer in self._dropouts)

    def noise_key(self, key: Tensor, number: int, piece: int = 0) -> Tensor | None:
        """Return the key of mini-batch ``number`` of a local step with ``key``; ``None`` if no noise is drawn.

        ``piece`` is not 0 for further pieces of a mini-batch that is taken in several.
        """
        if not self.draws_noise:
            return None
        of_batch = mix(key, number)
        return mix(of_batch, piece) if piece else of_batch

    def initial_params(self) -> Tensor:
        """Return the module's initial parameters as a flat vector ``(P,)``."""
        return self.layout.flatten({n: p.detach() for n, p in self.module.named_parameters()})

    def initial_buffers(self) -> Tensor:
        """Return the module's initial buffers as a flat vector ``(Q,)`` of the parameters' dtype."""
        return self.buffer_layout.flatten(dict(self.module.named_buffers()), self.dtype)

    def holding(self, params_P: Tensor, buffers_Q: Tensor) -> AbstractContextManager[Held]:
        """Put these values into the module inside the block. Calls with ``params = None`` use them."""
        return holding(self._tensors, self.layout, self.buffer_layout, params_P, buffers_Q)

    def outputs(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        x: Tensor,
        mask_B: Tensor | None,
        key: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the module's outputs in training mode, and its buffers after the pass."""
        with self._training(x, mask_B, key):
            outputs, buffers = self._call(params, buffers_Q, x)
        return outputs.to(self.dtype), buffers

    def steps(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, samples: Samples, state_BZ: Tensor
    ) -> tuple[Steps, dict[str, Tensor]]:
        """Return what a recurrent module gives from a state in training mode, and its buffers after the pass."""
        with self._training(samples.x, samples.real_B, samples.key):
            steps, buffers = self._called(params, buffers_Q, samples.x, state_BZ)
        return Steps(*(part.to(self.dtype) for part in steps)), buffers

    @contextmanager
    def _training(self, x: Tensor, mask_B: Tensor | None, key: Tensor | None) -> Iterator[None]:
        if not all(layer.training for layer in self._layers):
            self.module.train()
        with real_rows(mask_B), masks_from(key), self._precision(x):
            yield

    def _call(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the module's outputs and its buffers after the pass; the arguments stay unchanged."""
        outputs, after = self._called(params, buffers_Q, x)
        if not isinstance(outputs, Tensor):
            mode = "training" if self.module.training else "evaluation"
            raise ValueError(
                f"the model returns a {type(outputs).__name__} in {mode}: return one tensor (samples, outputs)"
            )
        return outputs, after

    def _called(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, *inputs: Tensor
    ) -> tuple[Any, dict[str, Tensor]]:
        # A forward pass may write into its input and its buffers, so it gets copies.
        own = tuple(part.clone() for part in inputs)
        if params is None:
            outputs, after = self._observed(*own)
        else:
            buffers = {name: b.clone() for name, b in self.buffer_layout.unflatten(buffers_Q).items()}
            tensors = {
                place: tensor
                for name, tensor in {**params, **buffers}.items()
                for place in self._places[f"module.{name}"]
            }
            # `_places` resolves ties: for a layer with two names, PyTorch would leave a substituted tensor there.
            outputs, after = functional_call(self._observed, tensors, own, tie_weights=False)
        return outputs, after

    def eval_outputs(self, x: Tensor) -> Tensor:
        """Return the module's outputs in evaluation mode, with its own parameters and buffers; see `holding`."""
        self.module.eval()
        return self._call(None, torch.zeros(0), x)[0]

    def eval_steps(self, x: Tensor, state_BZ: Tensor) -> Steps:
        """Return what a recurrent module gives from a state in evaluation mode; see `eval_outputs`."""
        self.module.eval()
        steps: Steps = self._called(None, torch.zeros(0), x, state_BZ)[0]
        return steps

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        device = x.device.type
        if not self.autocast and not torch.is_autocast_enabled(device):
            return nullcontext()
        return torch.autocast(device, torch.bfloat16, enabled=self.autocast)

    def features(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None, *, held: bool = False
    ) -> Tensor:
        """Return the samples' features ``(B, F)`` without dropout, and with BatchNorms as in training.

        BatchNorms use the mini-batch's statistics, because the running ones belong to another model, and do not update
        the running ones. The features carry no gradient. See `with_features`. The module holds ``params_P`` meanwhile
        if ``held`` is true.
        """
        if held:
            with torch.no_grad(), self.holding(params_P, buffers_Q):
                return self._features(None, buffers_Q, x, mask_B)
        return self._features(self.layout.unflatten(params_P), buffers_Q, x, mask_B)

    def _features(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None
    ) -> Tensor:
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, MaskedBatchNorm):
                layer.train()
        with real_rows(mask_B), self._precision(x):
            _, features_BF = with_features(self.module, lambda: self._call(params, buffers_Q, x))
        return features_BF.detach().to(self.dtype)


@final
class Observed(nn.Module):
    """A module of one tensor that also returns its buffers, which a forward pass may replace.

    Parameters
    ----------
    module
        The module.
    inputs
        What packed features are if the module takes several; see `Task.inputs`.
    dtype
        The dtype of features that are floats, if they are packed.
    """

    def __init__(
        self, module: nn.Module, inputs: Inputs | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.module, self.inputs, self.dtype = module, inputs, dtype
        self.places = Places(module)

    def forward(self, *inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the module's outputs and its buffers by name."""
        named: dict[str, Tensor] = {}
        if self.inputs is not None:
            inputs, named = self.inputs.arguments(inputs[0], self.dtype)
        return self.module(*inputs, **named), self.places.buffers
