"""Reinforcement learning: a policy and a value of states, learned from steps that the policy itself has taken.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``B`` samples of a mini-batch, ``n`` samples in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpisa.control.environments import Environments
from fedpisa.control.moments import Moments
from fedpisa.control.policies import Categorical, Gaussian, Policy
from fedpisa.rng import generator, seeded
from fedpisa.tasks.base import Pass, Samples, Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.module_values import own_attributes
from fedpisa.tasks.objectives import RETURN, WORST, Objective
from fedpisa.tasks.playing import Play, episode_return, roll_out

MEAN: Final = "observation_mean"
"""Name of the buffer with the mean of all clients' observations, if their moments are shared."""
CENTRE: Final = "observation_centre"
"""Name of the buffer with the mean before the last round."""
SQUARE: Final = "observation_square"
"""Name of the buffer with the mean of the squares of their distances from `CENTRE`.

From 0, squares of large observations would leave no digits for the variance.
"""
_NO_FEATURES: Final = (
    "the algorithm compares features, which a policy's network does not have: take another algorithm"
)
StateOf = Callable[[int], Mapping[str, Tensor] | None]
"""Function that returns a client's state, given its number; ``None`` before the client's first round."""


@final
@dataclass(frozen=True)
class Control(Task):
    """The loss of an `Objective`, and how clients play in their environments.

    A client's memory, see `fedpisa.clients.rollouts`, has the current steps, ``x`` and ``y``, the moments of its
    observations and returns, and the mean ``reward``. A test sample is the number of a client.

    Parameters
    ----------
    module
        The network. Of each observation it gives the policy's parameters and then the value.
    objective
        What is learned.
    environments
        The clients' environments.
    seed
        The run's seed.
    plays
        Whether clients make their samples, or have them.
    state_of
        The clients' states, which evaluations with personal moments need.
    """

    objective: Objective
    environments: Environments
    seed: int
    plays: bool = True
    state_of: StateOf | None = None

    def __post_init__(self) -> None:
        if self.play.action_noise == "grid" and (
            self.environments.discrete or self.environments.num_actions > 1
        ):
            raise ValueError('action-noise = "grid" needs one continuous action: set it to "random"')
        if self.play.observation_norm == "shared" and not hasattr(self.module, MEAN):
            zeros = next(self.module.parameters()).detach().new_zeros(self.environments.observation_shape)
            self.module.register_buffer(MEAN, zeros)
            self.module.register_buffer(CENTRE, zeros.clone())
            self.module.register_buffer(SQUARE, zeros + 1)
        super().__post_init__()

    @property
    def play(self) -> Play:
        """How clients play."""
        return self.objective.play

    @property
    def policy(self) -> Policy:
        """The distribution of actions."""
        size = self.environments.num_actions
        return Categorical(size) if self.environments.discrete else Gaussian(size)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The objective's measures."""
        return self.objective.measures

    @property
    def rollouts(self) -> Control | None:
        """The task itself, unless clients have their samples."""
        return self if self.plays else None

    def without_rollouts(self) -> Control:
        """Return the task of clients that have their samples."""
        return replace(self, plays=False)

    def remembering(self, state_of: StateOf) -> Control:
        """Return the task with the clients' states."""
        return replace(self, state_of=state_of)

    def with_module(self, module: nn.Module, *, autocast: bool = False) -> Control:
        """Return the same task with another module."""
        return replace(self, module=module, autocast=autocast)

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return none: the loss is not one of those whose derivatives are written out."""
        return None

    def losses(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        samples: Samples,
        extra: FeatureLoss | None = None,
        memory: Mapping[str, Tensor] = MappingProxyType({}),
        player: str | None = None,
    ) -> Pass:
        """Return the losses of steps that were taken; see `Task.losses`."""
        if extra is not None:
            raise ValueError(_NO_FEATURES)
        x, y, mask_B, key = samples
        outputs, buffers = self.outputs(params, buffers_Q, x, mask_B, key)
        if self.buffer_layout.names:
            buffers_Q = self.buffer_layout.flatten(buffers, buffers_Q.dtype)
        return Pass(self.objective.loss(self.policy, outputs, y), buffers_Q, memory)

    def without(self, buffer: str) -> str:
        """Return how to do without a buffer; shared moments are the task's own."""
        is_moment = buffer in (MEAN, CENTRE, SQUARE)
        return 'set observation-norm = "personal" or "none"' if is_moment else super().without(buffer)

    def features(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None, *, held: bool = False
    ) -> Tensor:
        """Refuse: a policy's network has no features that an algorithm could compare."""
        raise ValueError(_NO_FEATURES)

    def sample_scores(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return minus the mean return in the environment of each sample's client, as ``loss`` ``(B,)``."""
        clients, place_B = np.unique(y.cpu().numpy().astype(np.int64), return_inverse=True)
        returns = np.array([np.mean(self._returns(client)) for client in clients.tolist()])
        return {"loss": torch.from_numpy(-returns[place_B]).to(y.device)}

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loss and, as measures, what it is minus of."""
        return {"loss": means["loss"], RETURN.column: -means["loss"], WORST.column: -means["loss"]}

    @torch.no_grad()
    def evaluate(self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return minus the mean return as ``loss``, the mean return and the worst client's; see `Task.evaluate`."""
        with seeded(0, "evaluation"), self._held(params_P, buffers_Q):
            returns_n = -self.sample_scores(x, y)["loss"]
        mean, worst = float(returns_n.mean()), float(returns_n.min())
        return {"loss": -mean, RETURN.column: mean, WORST.column: worst}

    def _returns(self, client_id: int) -> list[float]:
        """Return the returns of a client's episodes, with what the module holds."""
        environment, known = self.environments.of(client_id)[0], (self._own(client_id), self._shared())
        played = (self.play, self.policy, self._network, environment)
        rngs = [generator(self.seed, "evaluation", client_id, k) for k in range(self.play.eval_episodes)]
        return [episode_return(*played, int(rng.integers(2**31)), known) for rng in rngs]

    def _own(self, client_id: int) -> Moments:
        """Return the moments of a client's observations, if these normalise them."""
        none = Moments.none(self.environments.observation_shape)
        if self.play.observation_norm != "personal":
            return none
        if self.state_of is None:
            raise ValueError(
                'observation-norm = "personal": the clients alone have the moments of their observations, so others '
                'cannot evaluate the policy: set observation-norm = "shared" or "none"'
            )
        state = self.state_of(client_id)
        return none if state is None else _moments(state["task/observations"])

    def _shared(self) -> Moments | None:
        """Return the moments that the module holds, if there are any."""
        if self.play.observation_norm != "shared":
            return None
        mean, centre, square = (
            cast(Tensor, getattr(self.module, name)).cpu().double().numpy() for name in (MEAN, CENTRE, SQUARE)
        )
        return Moments(1.0, mean, np.maximum(square - (mean - centre) ** 2, 0.0))

    def _network(self, x: NDArray[np.float64]) -> Tensor:
        device = next(self.module.parameters()).device
        return self.eval_outputs(torch.from_numpy(x).to(device, self.dtype))

    def _acting(self, x: NDArray[np.float64]) -> Tensor:
        """Return the outputs in the precision of training: a ratio to the probabilities of acting then begins at 1."""
        with self._precision(next(self.module.parameters())):
            return self._network(x).to(self.dtype)

    @contextmanager
    def _held(self, params_P: Tensor, buffers_Q: Tensor) -> Iterator[None]:
        with own_attributes(self.module), self.holding(params_P, buffers_Q):
            yield

    @property
    def restarts(self) -> bool:
        """Whether a client's algorithm begins anew with new samples."""
        return self.play.restart_duals

    def period(self, server_round: int) -> int:
        """Return which samples a round uses: 1 for the first ones."""
        return (server_round - 1) // self.play.rollout_every + 1

    def no_samples(self) -> dict[str, Tensor]:
        """Return a client's memory before its first round."""
        size, shape = self.environments.num_samples, self.environments.observation_shape
        zeros = next(self.module.parameters()).detach().new_zeros
        return {
            "x": zeros(size, *shape),
            "y": zeros(size, self.policy.action_size + 3),
            "observations": _tensor(Moments.none(shape), zeros(())),
            "returns": _tensor(Moments.none((1,)), zeros(())),
            "reward": zeros(()),
        }

    @torch.no_grad()
    def collected(
        self, client_id: int, period: int, params_P: Tensor, buffers_Q: Tensor, memory: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a client's memory with new samples, which a model makes in its environments."""
        known = _moments(memory["observations"]), _moments(memory["returns"])
        environments, stream = self.environments, (self.seed, "rollout", client_id, period)
        # A user's environment may draw from the global generators.
        with seeded(*stream), self._held(params_P, buffers_Q):
            made = roll_out(
                self.play,
                self.policy,
                self._acting,
                environments.of(client_id),
                environments.rollout_steps,
                generator(*stream),
                known,
                self._shared(),
            )
        return {
            "x": made.x,
            "y": made.y,
            "observations": _tensor(made.observations, params_P),
            "returns": _tensor(made.returns, params_P),
            "reward": params_P.new_tensor(made.mean_reward),
        }

    def sent_buffers(self, buffers: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """Return the buffers that clients upload, ``(Q,)`` or ``(S, Q)``: shared moments are those of their own."""
        if self.play.observation_norm != "shared":
            return buffers
        parts = dict(
            zip(self.buffer_layout.names, torch.split(buffers, self.buffer_layout.sizes, -1), strict=True)
        )
        _, mean, variance = memory["observations"].unbind(-1)
        centre = parts[MEAN].reshape(mean.shape)  # of the broadcast, so that it is the same for all clients
        own = {MEAN: mean, CENTRE: centre, SQUARE: variance + (mean - centre).square()}
        return torch.cat(
            [own[name].reshape(part.shape) if name in own else part for name, part in parts.items()], -1
        )

    def trial_samples(self) -> tuple[Tensor, Tensor]:
        """Return a few samples of the right shapes, on which a module can be tried."""
        rng, zeros = generator(0, "trial"), self.no_samples()
        x, y = (torch.from_numpy(rng.standard_normal((8, *zeros[name].shape[1:]))) for name in ("x", "y"))
        if self.environments.discrete:
            y[:, 0] = torch.arange(8) % self.environments.num_actions
        return x.to(zeros["x"]), y.to(zeros["y"])


def _tensor(moments: Moments, like: Tensor) -> Tensor:
    """Return moments as one tensor ``(*shape, 3)``: count, mean and variance."""
    count = np.full_like(moments.mean, moments.count)
    return torch.from_numpy(np.stack([count, moments.mean, moments.variance], -1)).to(like)


def _moments(values: Tensor) -> Moments:
    count, mean, variance = values.cpu().double().numpy().transpose(-1, *range(values.dim() - 1))
    return Moments(float(count.flat[0]), mean, variance)
