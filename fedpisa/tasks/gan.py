"""Generative adversarial networks: a critic and a generator, trained in turns.

Shapes: ``P`` parameters, ``G`` those of one network, ``Q`` buffer entries, ``B`` samples of a mini-batch, ``Z`` numbers
of a latent vector, ``n`` samples in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from fedpisa.rng import mix, normal, seeded, stream_key, uniform
from fedpisa.tasks.base import Observed, Pass, Samples, Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.module_values import own_attributes
from fedpisa.tasks.players import Player, players_of
from fedpisa.tasks.sample_quality import SampleQuality, measures_of
from fedpisa.typing import Decay, NonNegativeFloat, NonNegativeInt, Positive, PositiveInt

CRITIC: Final = "critic"
GENERATOR: Final = "generator"
_LATENT, _MIXTURE = 1, 2
"""What a mini-batch's key is mixed with: for latent vectors, and for the points of the gradient penalty."""


def gan(
    *,
    objective: Literal["wgan", "wgan-gp", "non-saturating"] = "wgan-gp",
    critic_steps: PositiveInt = 1,
    penalty: Positive = 10.0,
    weight_clip: NonNegativeFloat = 0.0,
    turns_within: bool = False,
    same_noise: bool = False,
    generator_average: Decay = 0.0,
    fid_samples: NonNegativeInt = 0,
    fid_features: str = "",
) -> Adversarial:
    r"""Train a critic ``D`` and a generator ``G`` against each other, in turns.

    Unless ``turns-within`` is true, a round is the turn of one of them: ``critic-steps`` rounds of the critic, then one
    of the generator. Each has its own duals, moments and counters, and the schedule counts its own rounds. ``z`` is
    standard normal.

    - ``wgan``: the critic minimises ``D(G(z)) - D(x)`` with all its weights in ``[-c, c]``, the generator
      ``-D(G(z))``;
    - ``wgan-gp``: the critic adds ``penalty (||grad D(u)|| - 1)^2`` at a random point ``u`` between ``x`` and ``G(z)``;
    - ``non-saturating``: ``softplus(-D(x)) + softplus(D(G(z)))`` and ``softplus(-D(G(z)))``.

    A model of your own is a module with the submodules ``critic``, from samples to numbers, and ``generator``, from
    latent vectors to samples, and the attribute ``latent``, their length. All parameters belong to these submodules.

    The column ``loss`` is the critic's loss on the test samples, without the penalty. It says little about the
    generator; ``fid-samples`` adds the Frechet and the kernel distance of generated and real samples.

    Parameters
    ----------
    objective
        The losses.
    critic_steps
        Rounds of the critic before each round of the generator.
    penalty
        Factor of the gradient penalty of ``wgan-gp``.
    weight_clip
        Bound ``c`` on the critic's weights, after each step of the server and each local step of SGD; 0 for none.
        ``wgan`` needs one, such as 0.01.
    turns_within
        Whether both networks move in each round, as in FedGAN: each local step then takes ``critic-steps`` steps of the
        critic and one of the generator on the same samples, and both are sent. The column ``train_loss`` is the
        generator's. For algorithms whose clients take SGD steps, ``pisa``, ``sisa`` and ``fedsgd``.
    same_noise
        Whether the generator draws the latent vectors of the critic's turn before it.
    generator_average
        Decay ``d`` of the running mean ``m <- d m + (1 - d) w`` of the generator's weights, which is evaluated in
        place of the generator; 0 for none. The run's model has the generator's own weights.
    fid_samples
        Number of generated samples that each evaluation compares with the test samples; 0 for none.
    fid_features
        File of Inception's weights under the names of ``pytorch-fid``, ``.safetensors``, for the columns ``fid`` and
        ``kid``. Without it, a small network that is trained on the classes of the training samples gives the features,
        and the columns are ``fid_own`` and ``kid_own``.

    References
    ----------
    Arjovsky, Chintala, Bottou, Wasserstein Generative Adversarial Networks, ICML 2017.
    Gulrajani et al., Improved Training of Wasserstein GANs, NeurIPS 2017.
    Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014.
    Rasouli, Sun, Rajagopal, FedGAN: Federated Generative Adversarial Networks for Distributed Data, arXiv 2006.07228.
    """
    if objective == "wgan" and not weight_clip:
        raise ValueError(
            'objective = "wgan" without weight-clip has no bounded critic: set weight-clip = 0.01, or take "wgan-gp"'
        )
    if fid_features and not fid_samples:
        raise ValueError(
            f"fid-features = {fid_features!r} without fid-samples: set fid-samples, such as 5000"
        )
    return Adversarial(
        objective,
        critic_steps,
        penalty,
        weight_clip,
        turns_within,
        same_noise,
        generator_average,
        fid_samples,
        fid_features,
    )


@final
@dataclass(frozen=True)
class Adversarial:
    """The losses of a critic and a generator, and the order of their turns; see `gan`.

    Examples
    --------
    >>> rules, real, fake = Adversarial("wgan"), torch.tensor([3.0]), torch.tensor([1.0])
    >>> rules.critic_losses(fake, real), rules.generator_losses(fake)
    (tensor([-2.]), tensor([-1.]))
    >>> Adversarial(critic_steps=2).turns
    ('critic', 'critic', 'generator')
    """

    objective: Literal["wgan", "wgan-gp", "non-saturating"] = "wgan-gp"
    critic_steps: int = 1
    penalty: float = 10.0
    weight_clip: float = 0.0
    turns_within: bool = False
    same_noise: bool = False
    generator_average: float = 0.0
    fid_samples: int = 0
    fid_features: str = ""

    @property
    def turns(self) -> tuple[str, ...]:
        """Whose turns the rounds are."""
        return (*[CRITIC] * self.critic_steps, GENERATOR)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The distances of generated samples if they are measured, and the critic's and the generator's loss."""
        named = ("loss", "critic's loss"), ("generator_loss", "generator's loss")
        losses = tuple(Measure(column, name, higher_is_better=False) for column, name in named)
        return (*(measures_of(not self.fid_features) if self.fid_samples else ()), *losses)

    def critic_losses(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        """Return the critic's losses ``(B,)`` without the penalty, from its outputs for generated and real samples."""
        if self.objective == "non-saturating":
            return F.softplus(fake_B) + F.softplus(-real_B)
        return fake_B - real_B

    def generator_losses(self, fake_B: Tensor) -> Tensor:
        """Return the generator's losses ``(B,)`` from the critic's outputs for generated samples."""
        return F.softplus(-fake_B) if self.objective == "non-saturating" else -fake_B


class _Networks(NamedTuple):
    """Both networks with the values of one pass; ``buffers`` change with every tracked call."""

    task: Gan
    params: Mapping[str, Tensor] | None
    buffers: dict[str, Tensor]

    def __call__(self, name: str, a: Tensor, *, tracked: bool = False) -> Tensor:
        """Return a network's outputs."""
        prefix, task = f"{name}.", self.task
        own = {key: value for key, value in (self.params or {}).items() if key.startswith(prefix)}
        # A pass may write into its input and its buffers, so it gets copies.
        buffers = {key: value.clone() for key, value in self.buffers.items() if key.startswith(prefix)}
        given = {**own, **buffers}
        tensors = {place: value for key, value in given.items() for place in task.places(name, key)}
        # The places resolve ties, see `Task`.
        outputs, after = functional_call(task.networks[name], tensors, (a.clone(),), tie_weights=False)
        if tracked:
            self.buffers.update({prefix + key: value for key, value in after.items()})
        found: Tensor = outputs.to(task.dtype)
        return found.reshape(len(a)) if name == CRITIC else found


@final
@dataclass(frozen=True)
class Gan(Task):
    """The game of a critic and a generator, which are the submodules ``critic`` and ``generator`` of the module.

    The module also says the length ``latent`` of the generator's inputs. A mini-batch's noise is a function of its key.

    Parameters
    ----------
    rules
        The losses and the order of the turns.
    quality
        What measures generated samples; ``None`` for nothing.
    module, autocast, max_grad_norm, micro_batch_size, augment
        See `Task`.

    Examples
    --------
    >>> from fedpisa.models.gan import mlp_gan
    >>> task = Gan(mlp_gan((1, 2, 2), latent=3, widths=(5,)), Adversarial())
    >>> [(player.name, player.layout.size) for player in task.players]
    [('critic', 31), ('generator', 44)]
    >>> key = torch.tensor(1)
    >>> task.generated(task.initial_params(), torch.zeros(0), 7, key).shape
    torch.Size([7, 1, 2, 2])
    """

    rules: Adversarial
    quality: SampleQuality | None = field(default=None, kw_only=True, compare=False)
    networks: Mapping[str, nn.Module] = field(init=False, repr=False)
    _players: tuple[Player, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self.module, "latent", None), int):
            raise ValueError(
                f"task = 'gan' needs a model with the networks critic and generator and the length latent, and this is "
                f"a {type(self.module).__name__}: take dcgan or mlp-gan"
            )
        object.__setattr__(self, "_players", players_of(self.module, (CRITIC, GENERATOR)))
        networks = {name: Observed(self.module.get_submodule(name)) for name in (CRITIC, GENERATOR)}
        object.__setattr__(self, "networks", networks)

    @property
    def latent(self) -> int:
        """Length ``Z`` of the generator's inputs."""
        return int(self.module.latent)  # type: ignore[arg-type]  # checked at the start

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures of the rules."""
        return self.rules.measures

    @property
    def players(self) -> tuple[Player, ...]:
        """Critic and generator."""
        return self._players

    def places(self, player: str, name: str) -> list[str]:
        """Return the names in the player's entry of ``networks`` of all places that hold one of its tensors."""
        prefix = f"module.{player}."
        return [f"module.{place.removeprefix(prefix)}" for place in self._places[f"module.{name}"]]

    @property
    def turns(self) -> tuple[str, ...]:
        """The turns of the rules."""
        return self.rules.turns

    @property
    def turns_within(self) -> bool:
        """Whether both networks move in each round."""
        return self.rules.turns_within

    @property
    def same_noise(self) -> bool:
        """Whether the generator draws the latent vectors of the critic's round before it."""
        return self.rules.same_noise

    @property
    def averages(self) -> Mapping[str, float]:
        """The decay of the generator's running mean."""
        decay = self.rules.generator_average
        return {GENERATOR: decay} if decay else {}

    @property
    def draws_noise(self) -> bool:
        """True: latent vectors."""
        return True

    def project(self, player: str, params_G: Tensor) -> Tensor:
        """Return the critic's weights within the bound of the rules."""
        clip = self.rules.weight_clip
        return params_G.clamp(-clip, clip) if clip and player == CRITIC else params_G

    def with_module(self, module: nn.Module, *, autocast: bool = False) -> Gan:
        """Return the same task with another module."""
        return replace(self, module=module, autocast=autocast)

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return ``None``."""
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
        """Return a network's losses, and the buffers, of which only its own change; see `Task.losses`."""
        if extra is not None:
            raise ValueError("the algorithm compares features, and a generator has none: take another one")
        x, _, real_B, key = samples
        networks = _Networks(self, params, self.buffer_layout.unflatten(buffers_Q))
        key = torch.zeros((), dtype=torch.int64, device=x.device) if key is None else key
        losses: list[Tensor] = []
        with self._training(x, real_B, key):
            z_BZ = normal(mix(key, _LATENT), len(x), self.latent, dtype=self.dtype)
            if player != GENERATOR:
                losses.append(self._critic_losses(networks, x, z_BZ, real_B, key))
            if player != CRITIC:
                fake = networks(GENERATOR, z_BZ, tracked=True)
                losses.append(self.rules.generator_losses(networks(CRITIC, fake)))
        losses_B = torch.stack(losses).sum(0)
        if self.buffer_layout.names:
            buffers_Q = self.buffer_layout.flatten(networks.buffers, buffers_Q.dtype)
        return Pass(losses_B, buffers_Q, memory)

    def _critic_losses(
        self, networks: _Networks, x: Tensor, z_BZ: Tensor, real_B: Tensor | None, key: Tensor
    ) -> Tensor:
        fake = networks(GENERATOR, z_BZ).detach()
        if fake.shape != x.shape:
            raise ValueError(
                f"the generator makes samples of shape {tuple(fake.shape[1:])}, and the data have shape "
                f"{tuple(x.shape[1:])}: take a generator for this shape"
            )
        fake_B = networks(CRITIC, fake, tracked=True)
        losses_B = self.rules.critic_losses(fake_B, networks(CRITIC, x, tracked=True))
        if self.rules.objective != "wgan-gp":
            return losses_B
        t = uniform(mix(key, _MIXTURE), len(x), *(1,) * (x.dim() - 1), dtype=self.dtype)
        # With BatchNorm all outputs depend on a sample, and those of padding do not count.
        weight_B = torch.ones_like(losses_B) if real_B is None else real_B
        slope = grad(lambda between: (networks(CRITIC, between) * weight_B).sum())(t * x + (1 - t) * fake)
        return losses_B + self.rules.penalty * (_norms(slope.flatten(1)) - 1) ** 2

    def sample_scores(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return both networks' losses ``(B,)`` without a penalty, in evaluation mode; see `Task.sample_scores`."""
        return self._scores(x, _evaluation_key(x.device))

    def _scores(self, x: Tensor, key: Tensor) -> dict[str, Tensor]:
        self.module.eval()
        networks = _Networks(self, None, dict(self.module.named_buffers()))
        fake = networks(GENERATOR, normal(key, len(x), self.latent, dtype=self.dtype))
        fake_B, real_B = networks(CRITIC, fake), networks(CRITIC, x)
        return {
            "loss": self.rules.critic_losses(fake_B, real_B),
            "generator_loss": self.rules.generator_losses(fake_B),
        }

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means."""
        return dict(means)

    @torch.no_grad()
    def evaluate(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor, batch_size: int = 512
    ) -> dict[str, float]:
        """Return the measures on ``n`` samples by column, ``loss`` first; the noise is the same in each evaluation."""
        key, totals = _evaluation_key(x.device), dict[str, float]()
        with seeded(0, "evaluation"), own_attributes(self.module), self.holding(params_P, buffers_Q):
            for number, part in enumerate(torch.split(x, batch_size)):
                for name, score_B in self._scores(part, mix(key, number)).items():
                    totals[name] = totals.get(name, 0.0) + float(score_B.sum(dtype=torch.float64))
        means = {name: total / len(x) for name, total in totals.items()}
        if self.quality is None:
            return means
        if len(x) < 2 or not all(map(math.isfinite, means.values())):
            return {**means, **{measure.column: math.nan for measure in self.quality.measures}}
        return {**means, **self.quality(x, self.generated(params_P, buffers_Q, self.quality.count, key))}

    @torch.no_grad()
    def generated(
        self, params_P: Tensor, buffers_Q: Tensor, count: int, key: Tensor, batch_size: int = 512
    ) -> Tensor:
        """Return samples ``(count, ...)`` of the generator in evaluation mode; the first do not depend on ``count``.

        A generator with BatchNorm without running statistics normalises each ``batch_size`` samples by themselves.
        """
        made = []
        with seeded(0, "evaluation"), own_attributes(self.module), self.holding(params_P, buffers_Q):
            self.module.eval()
            networks = _Networks(self, None, dict(self.module.named_buffers()))
            for number in range(-(-count // batch_size)):
                z_BZ = normal(mix(key, number), batch_size, self.latent, dtype=self.dtype)
                made.append(networks(GENERATOR, z_BZ))
        return torch.cat(made)[:count]


def _norms(rows_BD: Tensor) -> Tensor:
    """Return the Euclidean norms ``(B,)``; a row of zeros, as of padding, has finite derivatives of any order."""
    squared_B = rows_BD.square().sum(1)
    return torch.where(squared_B > 0, torch.where(squared_B > 0, squared_B, 1).sqrt(), 0)


def _evaluation_key(device: torch.device) -> Tensor:
    """Return the key of the noise in evaluations."""
    return torch.tensor(stream_key(0, "evaluation") >> 65, device=device)
