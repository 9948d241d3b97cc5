"""One run as flat, typed keys: the same in a TOML file, on the command line and in Flower's run config.

The options of another library's class form a table, ``optimizer-options = {betas = [0.5, 0.999]}``. They can also be
given one by one: ``optimizer-options.betas=[0.5,0.999]``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Self, cast, final

from fedpisa import components, families
from fedpisa.components import Component, Key
from fedpisa.config.flat_keys import flatten, key_error, nest, read_toml
from fedpisa.config.flat_options import flat_names, in_tables, option_of
from fedpisa.config.overrides import parse_overrides
from fedpisa.families import Permission, permitted
from fedpisa.typing import (
    Bytes,
    Decay,
    Finite,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Probability,
)

__all__ = [
    "RunConfig",
    "flatten",
    "load_config",
    "nest",
    "other_names",
    "override",
    "read_toml",
    "run_keys",
]

_CHOICES: Final = (
    "algorithm",
    "dataset",
    "partitioner",
    "model",
    "task",
    "schedule",
    "server-strategy",
    "differential-privacy",
    "pace",
    "availability",
)
"""The run keys that name a component. Each is also the name of a family."""
_TENSORS: Final = ("algorithm", "server-strategy")
"""The families whose keys become numbers of the run's ``dtype``; others compute in float64."""


@final
@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run: its own keys, and the keys of the components that it names.

    The constructor checks the values and fills in the defaults. Configurations with the same meaning are therefore
    equal, and `to_toml` is enough to repeat a run. ``None`` stands for the default.

    Parameters
    ----------
    algorithm
        The algorithm: ``sisa``, ``pisa``, ``fedavg``, ... Here and in all other keys that name a component,
        ``module:attribute`` names your own.
    dataset
        The data set.
    data_dir
        Folder of the data files; by default the environment variable ``FEDPISA_DATA``, or else ``data``.
    model
        The model; by default the one that suits the data set.
    task
        What the model learns: ``classification``, ``regression``, ``multi-label``, ``language``, ``ppo``, ``a2c``, or
        ``module:Class`` with a loss and metrics of your own; by default the one that suits the data set.
    num_clients
        Number of clients.
    partitioner
        How the training samples are split among the clients.
    seed
        Seed of all random numbers.
    num_server_rounds
        Number of rounds.
    fraction_train
        Fraction of the clients that take part in each round.
    validation_fraction
        Share of the training samples, in [0, 1), that no client trains on. The model is evaluated on them whenever it
        is evaluated on the test set. The seed draws them before the rest is split among the clients: by label, or at
        random for a regression.
    early_stopping
        Number of evaluations without a lower validation loss after which the run ends; 0 never ends it early.
        Needs ``validation-fraction``.
    schedule
        How step sizes change with the round: ``constant``, ``step``, ``milestones``, ``linear``, ``cosine``.
    warmup_rounds
        Number of rounds in which the step sizes rise linearly to their values. The schedule begins after them.
    schedule_keys
        The keys that the schedule changes, separated by commas: by default ``learning-rate``, or those of ``sigma``,
        ``rho`` and ``proximity`` that exist if the algorithm has no learning rate; the schedule divides these. The
        annotations ``StepSize`` and ``InverseStepSize`` make the keys of your own algorithm schedulable. The options
        in ``optimizer-options`` do not change with the round.
    server_strategy
        One of Flower's strategies to use instead of an averaging server step: ``fed-adam``, ``krum``, ...;
        ``none`` keeps the algorithm's own step.
    differential_privacy
        ``central`` clips each client's increment and adds noise to their mean. Flower's wrappers
        ``server-fixed-clipping`` and ``server-adaptive-clipping`` are for simulations.
    pace
        How long simulated clients take: ``none``, ``constant``, ``lognormal``. Adds ``simulated_seconds`` to each
        round's metrics.
    availability
        When simulated clients can be reached: ``always``, ``on-off``.
    dropout, crash, late, nan, corrupt
        Probabilities per client and round: that a request is lost, that the client crashes while it works, that its
        reply comes too late, that its reply consists of NaN, that its reply is damaged in another way.
    min_replies
        Number of valid replies that a round needs. With fewer, the model stays as it is.
    round_timeout
        Seconds that the server waits for replies.
    max_upload_norm
        Largest norm of a client's update that the server accepts, as a multiple of the median of the round's updates.
        By default 100 if clients are real nodes or ``corrupt`` is above 0, and no bound otherwise.
    engine
        ``loop``: one client at a time; ``vmap``: all at once; ``auto``: ``vmap`` where the model allows it; ``ray``:
        in the processes of Flower's simulation runtime, on this machine or on a Ray cluster.
    num_cpus, num_gpus
        CPUs and GPUs per client with ``engine = "ray"``; fractions are allowed. They limit how many clients run at
        the same time.
    ray_address
        Address of a running Ray cluster, ``host:port`` or ``auto``; by default a new one starts on this machine.
    device
        Where to compute: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    dtype
        Floating-point type of the parameters and the data.
    autocast
        ``bfloat16``: in training, layers compute with 16 bits where `torch.autocast` considers it safe; parameters,
        gradients and evaluation keep ``dtype``.
    max_grad_norm
        Largest norm of a client's stochastic gradient in a local step; 0 sets no bound. A longer gradient, after the
        mean over its mini-batches and before ``mu`` or ``weight-decay`` is added, is scaled to this norm. Products with
        the Hessian are those of the loss and not clipped.
    augment
        How training images are changed in each step: ``crop-flip`` crops the image at a random place of one with a
        border of zeros, and flips half of them. ``resized-crop-flip`` scales a box of 8 to 100 per cent of the image,
        with a ratio of 3/4 to 4/3, to the image's size, as for ImageNet, and flips half of them.
    crop_padding
        Width of the border of ``augment = "crop-flip"``.
    micro_batch_size
        Number of samples of a mini-batch whose gradient is computed at once, to save memory; 0 takes all. The sum over
        the pieces is the same gradient, but dropout draws other numbers. Not for models that mix the samples of a
        mini-batch; BatchNorm is refused. Clients run one after the other.
    state_memory
        Bytes of memory for the clients' states, and as many again for the values that the server keeps of each
        client: a number, or ``"2GB"``. Larger ones are kept in temporary files in ``TMPDIR``.
    cohort_block
        Number of clients that ``vmap`` computes at once; fewer need less memory. 0 takes all, and halves the number
        each time the device runs out of memory.
    eval_every
        Rounds between two evaluations on the test set, and on the validation set if there is one; the last round is
        always evaluated.
    eval_samples
        Number of samples of the test set, and of the validation set if there is one, that evaluations use; 0 takes all.
        The seed draws them once. Not with ``carry-state``, which evaluates texts in their order.
    checkpoint_every
        Rounds between two checkpoints in the run's directory; 0 writes one only at the end and on an interruption. In a
        simulation, one of more than 64 MiB and at most ``state-memory`` is written from a copy while the rounds go on.
    target_accuracy
        Test accuracy; the run reports the first round that reaches it.
    target
        Value of ``target-measure``; the run reports the first round that is at least as good.
    target_measure
        Column that ``target`` is about, such as ``test_loss``; by default the task's first measure on the test set.
    exact_diagnostics
        Whether diagnostics use all data of the clients instead of the round's mini-batches.
    per_client
        Whether to evaluate the model on each client's own samples too, into ``clients.parquet``.
    options
        Values of the components' keys. A table such as ``optimizer-options`` is a mapping.
    stored
        Whether the configuration was read from a result: a user's components remain names and are not imported,
        and their keys are not checked. `load_config` turns it into one that can run.

    Raises
    ------
    ValueError
        If a key or component is unknown, or a value does not fit.

    Examples
    --------
    >>> config = RunConfig(algorithm="fedavg", options={"learning-rate": 0.5})
    >>> config.options["learning-rate"], config.options["batch-size"]
    (0.5, 32)
    """

    algorithm: str = "sisa"
    dataset: str = "digits"
    data_dir: str | None = None
    model: str | None = None
    task: str | None = None
    num_clients: PositiveInt = 10
    partitioner: str = "label-dirichlet"
    seed: NonNegativeInt = 0
    num_server_rounds: PositiveInt = 50
    fraction_train: Fraction = 1.0
    validation_fraction: Decay = 0.0
    early_stopping: NonNegativeInt = 0
    schedule: str = "constant"
    warmup_rounds: NonNegativeInt = 0
    schedule_keys: str | None = None
    server_strategy: str = "none"
    differential_privacy: str = "none"
    pace: str = "none"
    availability: str = "always"
    dropout: Probability = 0.0
    crash: Probability = 0.0
    late: Probability = 0.0
    nan: Probability = 0.0
    corrupt: Probability = 0.0
    min_replies: PositiveInt = 1
    round_timeout: Positive = 3600.0
    max_upload_norm: Positive | None = None
    engine: Literal["auto", "loop", "vmap", "ray"] = "auto"
    num_cpus: Positive = 1.0
    num_gpus: NonNegative = 0.0
    ray_address: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    autocast: Literal["none", "bfloat16"] = "none"
    max_grad_norm: NonNegative = 0.0
    augment: Literal["none", "crop-flip", "resized-crop-flip"] = "none"
    crop_padding: NonNegativeInt = 4
    micro_batch_size: NonNegativeInt = 0
    state_memory: Bytes = 4_000_000_000
    cohort_block: NonNegativeInt = 0
    eval_every: PositiveInt = 1
    eval_samples: NonNegativeInt = 0
    checkpoint_every: NonNegativeInt = 10
    target_accuracy: Probability | None = None
    target: Finite | None = None
    target_measure: str | None = None
    exact_diagnostics: bool = False
    per_client: bool = False
    # A mapping cannot be hashed, and leaving it out keeps equal configurations' hashes equal.
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    stored: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        try:
            for name, key in run_keys().items():
                value = getattr(self, _snake(name))
                checked = key.default if value is None else components.check(key, value)
                object.__setattr__(self, _snake(name), checked)
            if self.early_stopping and not self.validation_fraction:
                raise ValueError(
                    f"early-stopping = {self.early_stopping} needs validation samples: set validation-fraction, such "
                    "as 0.2, or early-stopping = 0"
                )
            if self.target is not None and self.target_accuracy is not None:
                raise ValueError(
                    f"target = {self.target:g} and target-accuracy = {self.target_accuracy:g} exclude each other: set "
                    "one of them"
                )
            if self.target_measure is not None and self.target is None:
                raise ValueError(
                    f"target-measure = {self.target_measure!r} needs a value to reach: set target too"
                )
            with self._reading():
                options = nest(self._resolved(flatten(self.options)))
        except RecursionError:
            raise ValueError("a value of the configuration is nested too deeply: write flat keys") from None
        frozen = {k: MappingProxyType(v) if isinstance(v, dict) else v for k, v in options.items()}
        object.__setattr__(self, "options", MappingProxyType(frozen))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by the keys: a read-only mapping cannot be pickled."""
        return type(self).from_mapping, (self.to_mapping(), self.stored)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], stored: bool = False) -> Self:
        """Return the configuration of flat keys, written ``num-clients`` or ``num_clients``.

        With ``stored``, a user's components are not imported.

        Examples
        --------
        >>> RunConfig.from_mapping({"num-clients": 4, "sigma": 0.5}).options["sigma"]
        0.5
        """
        values = flatten(values)
        run: dict[str, Any] = {_snake(name): value for name, value in values.items() if name in run_keys()}
        options = {name: value for name, value in values.items() if name not in run_keys()}
        return cls(**run, options=options, stored=stored)

    def to_mapping(self) -> dict[str, object]:
        """Return all keys that are not None, flat and in kebab-case.

        Examples
        --------
        >>> RunConfig(algorithm="fedsgd").to_mapping()["optimizer-options.dampening"]
        0.0
        """
        return {**self._run_values(), **flatten(cast(Any, components.plain(self.options)))}

    def to_toml(self) -> str:
        """Return the configuration as a TOML file."""
        import tomli_w

        return tomli_w.dumps(nest(self.to_mapping()))

    def replace(self, changes: Mapping[str, object]) -> Self:
        """Return the configuration with some keys changed.

        A replaced component takes the values of its keys with it.

        Examples
        --------
        >>> config = RunConfig(options={"sigma": 0.5})
        >>> config.replace({"rho": 2}).options["sigma"]
        0.5
        >>> "sigma" in config.replace({"algorithm": "fedavg"}).options
        False
        """
        changes = flatten(changes)
        with self._reading():
            values = self.to_mapping() | changes
            unchanged = [part for part in _chosen(values) if part.name == getattr(self, _snake(part.family))]
            kept = {*run_keys(), *(key for part in unchanged for key in families.keys_of(part, values))}
            if any(families.is_unread(part) for one in unchanged for part in families.parts_of(one, values)):
                kept |= self.options_of_unread()
            old = {name: value for name, value in self.to_mapping().items() if name in kept}
            return self.from_mapping(override(old, changes), self.stored)

    def accepts(self, key: str) -> bool:
        """Return whether a key is one of the run's own keys, or of the keys of its components.

        Examples
        --------
        >>> RunConfig(algorithm="fedavg").accepts("learning-rate"), RunConfig(algorithm="fedavg").accepts("sigma")
        (True, False)
        """
        with self._reading():
            valid = _valid_keys(self.to_mapping())
        return key in valid or key in flat_names(valid)

    def component(self, family: str) -> Component:
        """Return the component that the run key of a family names."""
        with self._reading():
            return families.find(family, getattr(self, _snake(family)))

    def values_of(self, component: Component) -> dict[str, object]:
        """Return the values of a component's keys; a key that is also a run key has the run's value."""
        with self._reading():
            return _values_of(component, self.to_mapping())

    def target_of(self, headline: str) -> tuple[str, float] | None:
        """Return the column and the value to reach, if there is one; ``headline`` is the column by default.

        Examples
        --------
        >>> RunConfig(target_accuracy=0.9).target_of("test_loss"), RunConfig(target=0.1).target_of("test_loss")
        (('test_accuracy', 0.9), ('test_loss', 0.1))
        """
        if self.target_accuracy is not None:
            return "test_accuracy", self.target_accuracy
        if self.target is None:
            return None
        return (self.target_measure or headline).replace("-", "_"), self.target

    def options_of_unread(self) -> set[str]:
        """Return the keys that belong to no component whose keys are known."""
        with self._reading():
            return self.to_mapping().keys() - _valid_keys(self.to_mapping())

    def _reading(self) -> AbstractContextManager[None]:
        return families.permitted(families.READ_ONLY if self.stored else None)

    def _run_values(self) -> dict[str, object]:
        values = {name: getattr(self, _snake(name)) for name in run_keys()}
        return {name: value for name, value in values.items() if value is not None}

    def _resolved(self, options: Mapping[str, object]) -> dict[str, object]:
        """Return the values of all keys of the chosen components."""
        given = {name: value for name, value in options.items() if value is not None}
        values = self._run_values() | given
        valid = _valid_keys(values)
        given = in_tables(given, valid)
        values |= given
        chosen = _chosen(values)
        parts = [part for component in chosen for part in families.parts_of(component, values)]
        resolved: dict[str, object] = {}
        for name, value in given.items():
            if name not in valid and any(map(families.is_unread, parts)):
                resolved[name] = components.plain(value)
            elif name not in valid or name in run_keys():
                raise ValueError(key_error(name, value, sorted(valid), parts))
        for component in chosen:
            for name, value in families.resolve(component, _values_of(component, values)).items():
                if resolved.setdefault(name, value) != value:
                    raise ValueError(
                        f"key {name!r} has two defaults, {components.show(resolved[name])} and, for "
                        f"{component}, {components.show(value)}: set it"
                    )
        if self.dtype == "float32":
            _require_float32([part for part in chosen if part.family in _TENSORS], resolved)
        return {name: value for name, value in resolved.items() if name not in run_keys()}


@functools.cache
def run_keys() -> Mapping[str, Key]:
    """Return the run's own keys, which belong to no component.

    Examples
    --------
    >>> run_keys()["num-clients"].default
    10
    """
    run = components.inspect_component("run", "run", RunConfig, injected={"options", "stored"})
    return MappingProxyType(families.keys_of(run))


def _chosen(values: Mapping[str, object]) -> list[Component]:
    """Return the components that run keys name."""
    names = {family: values.get(family, run_keys()[family].default) for family in _CHOICES}
    return [families.find(family, str(name)) for family, name in names.items() if name is not None]


def _valid_keys(values: Mapping[str, object]) -> set[str]:
    """Return the run's own keys and the keys of the components that ``values`` choose."""
    return {*run_keys(), *(key for part in _chosen(values) for key in families.keys_of(part, values))}


def _values_of(component: Component, values: Mapping[str, object]) -> dict[str, object]:
    return {name: values[name] for name in families.keys_of(component, values) if name in values}


def _require_float32(chosen: Iterable[Component], resolved: Mapping[str, object]) -> None:
    """Refuse the hyper-parameters of components that float32 makes 0 or infinite."""
    for name in (key for part in chosen for key in families.keys_of(part, resolved)):
        if not components.fits_float32(resolved.get(name)):
            raise ValueError(
                f"key {name!r} = {components.show(resolved[name])}: it would be 0 or infinite in float32: take "
                'another value, or dtype = "float64"'
            )


def _snake(name: str) -> str:
    return name.replace("-", "_")


def override(values: Mapping[str, object], *changes: Mapping[str, object]) -> dict[str, object]:
    """Return flat keys with changes, of which later ones take precedence.

    A change of an option also replaces the option's value under its other name, new or old; see
    `fedpisa.config.flat_options`.

    Examples
    --------
    >>> fedsgd = {"algorithm": "fedsgd", "optimizer": "adam"}
    >>> override({**fedsgd, "eps": 1e-8}, {"optimizer-options.eps": 1e-4})
    {'algorithm': 'fedsgd', 'optimizer': 'adam', 'optimizer-options.eps': 0.0001}
    """
    result = dict(values)
    for change in changes:
        both = {**result, **change}
        pairs = [(option_of(key), key) for key in both if option_of(key) in both]
        valid = _valid_keys(both) if pairs else set()
        for flat, key in pairs:
            if flat not in valid and (flat in change) != (key in change):
                del both[key if flat in change else flat]
        result = both
    return result


def other_names(values: Mapping[str, object], changed: Iterable[str]) -> dict[str, str]:
    """Return the keys of ``values`` that are ``changed`` under their other name, new or old, and that name.

    Examples
    --------
    >>> other_names({"algorithm": "fedsgd", "optimizer": "adam", "eps": 1e-8}, ["optimizer-options.eps"])
    {'eps': 'optimizer-options.eps'}
    """
    keys = {*values, *changed}
    pairs = [(option_of(key), key) for key in keys if option_of(key) in keys]
    valid = _valid_keys(values) if pairs else set()
    both = [pair for flat, key in pairs if flat not in valid for pair in ((flat, key), (key, flat))]
    return {one: other for one, other in both if one in values and other in changed}


def load_config(
    source: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | str | None = None,
    *,
    allow: Iterable[str] = (),
) -> RunConfig:
    """Return the configuration of a run.

    A file may name components of modules in its own folder or in the current one, and of installed packages that
    declare components. What a mapping, your own configuration or ``overrides`` name is imported wherever it lies.

    Parameters
    ----------
    source
        Path of a TOML file, a mapping of keys, a configuration, or None for the defaults.
    overrides
        Keys that take precedence over the source, as a mapping or as text; see `parse_overrides`.
    allow
        Further modules that a file may name.

    Raises
    ------
    ValueError
        If the file cannot be read, a key is unknown or given twice, a value does not fit, or a module is not allowed.

    Examples
    --------
    >>> load_config({"algorithm": "fedavg"}, "num-clients=4 batch-size=full").options["batch-size"]
    'full'
    """
    changes = flatten(parse_overrides(overrides) if isinstance(overrides, str) else overrides or {})
    if isinstance(source, RunConfig):
        permission = Permission.of_file("config.toml", allow, changes) if source.stored else None
        with permitted(permission):
            return RunConfig.from_mapping(source.to_mapping()).replace(changes)
    if source is None or isinstance(source, Mapping):
        return RunConfig.from_mapping(override(flatten(source or {}), changes))
    with permitted(Permission.of_file(source, allow, changes)):
        return RunConfig.from_mapping(override(flatten(read_toml(source)), changes))
