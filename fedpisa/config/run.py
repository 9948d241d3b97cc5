"""One run as flat, typed keys: the same in a TOML file, on the command line and in Flower's run config.

The options of another library's class are in a table, ``optimizer-options = {betas = [0.5, 0.999]}``, or one by one:
``optimizer-options.betas=[0.5,0.999]``.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Self, cast, final

from fedpisa import components, families
from fedpisa.components import Component, Key
from fedpisa.typing import Bytes, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Probability

_CHOICES: Final = (
    "algorithm",
    "dataset",
    "partitioner",
    "model",
    "schedule",
    "server-strategy",
    "differential-privacy",
    "pace",
    "availability",
)
"""Run keys that name a component; they are also the families' names."""


@final
@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run: its own keys, and those of the components that it names.

    The configuration is checked and completed when it is made, so that two that mean the same are equal and
    `to_toml` is enough to repeat the run. ``None`` stands for the default.

    Parameters
    ----------
    algorithm
        What is run: ``sisa``, ``pisa``, ``fedavg``, ... Everywhere, ``module:attribute`` names your own.
    dataset
        What is learned from.
    data_dir
        Folder of the data files; by default the environment's ``FEDPISA_DATA``, or else ``data``.
    model
        What is trained; by default the one that suits the dataset.
    num_clients
        Number of clients.
    partitioner
        How the training samples are split among the clients.
    seed
        Seed of everything that is random.
    num_server_rounds
        Number of rounds.
    fraction_train
        Fraction of the clients that take part in each round.
    schedule
        How step sizes change with the round: ``constant``, ``step``, ``milestones``, ``linear``, ``cosine``.
    warmup_rounds
        Rounds in which they rise, linearly, to their values; the schedule begins after them.
    schedule_keys
        What the schedule acts on, separated by commas: by default ``learning-rate``; where there is none, all
        there is of ``sigma``, ``rho`` and ``proximity``, which it divides. An algorithm of your own says it by
        the types of its keys, ``StepSize`` and ``InverseStepSize``.
    server_strategy
        Which of Flower's strategies takes the place of the server's step, where that is a mean of models:
        ``fed-adam``, ``krum``, ...; ``none`` leaves the algorithm's own.
    differential_privacy
        ``server-fixed-clipping`` or ``server-adaptive-clipping``: Flower's wrappers, which clip what the clients
        changed and add noise to the model.
    pace
        How long simulated clients take: ``none``, ``constant``, ``lognormal``; gives ``simulated_seconds`` per round.
    availability
        When simulated clients can be reached: ``always``, ``on-off``.
    dropout, crash, late, nan, corrupt
        Probabilities, per client and round, that a request is lost, that the client crashes at work, that its
        reply comes too late, consists of NaN, or is damaged otherwise.
    min_replies
        Without so many valid replies the model stays as it is.
    round_timeout
        Seconds that the server waits for replies.
    max_upload_norm
        Largest norm of an array that is accepted from a client, as a multiple of ``1 + ||w||``.
    engine
        ``loop``: one client at a time; ``vmap``: all at once; ``auto``: ``vmap`` where the model allows; ``ray``: in
        the processes of Flower's simulation runtime, on this machine or on a Ray cluster.
    num_cpus, num_gpus
        What each client gets with ``engine = "ray"``, also less than 1: as many run at the same time as fit.
    ray_address
        A Ray cluster that runs already, ``host:port`` or ``auto``; by default one is started on this machine.
    device
        Where to compute: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    dtype
        Floating-point type of the parameters and the data.
    autocast
        ``bfloat16``: in training, layers compute with 16 bits where `torch.autocast` finds that safe; parameters,
        gradients and evaluation stay as they are.
    state_memory
        Bytes that the clients' states may take, and as many again what the server keeps of each client: a number, or
        ``"2GB"``. More than that is kept in temporary files, in the folder of the environment's ``TMPDIR``.
    cohort_block
        With ``vmap``, how many clients are computed at once: fewer take less memory; 0 for all, and half as many
        whenever a device's memory proves too small.
    eval_every
        Rounds between two evaluations on the test set; the last round is always evaluated.
    checkpoint_every
        Rounds between two checkpoints in the run's directory; 0 writes them only at the end and when the run is
        interrupted.
    target_accuracy
        Test accuracy to report the first round of.
    exact_diagnostics
        Whether diagnostics use all of the clients' data instead of the round's mini-batches.
    per_client
        Whether the model is also evaluated on each client's own samples, into ``clients.parquet``.
    options
        Values of the components' keys; those of a table such as ``optimizer-options`` as a mapping.

    Raises
    ------
    ValueError
        For an unknown key or component, or a value that does not fit, in one line.

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
    num_clients: PositiveInt = 10
    partitioner: str = "label-dirichlet"
    seed: NonNegativeInt = 0
    num_server_rounds: PositiveInt = 50
    fraction_train: Fraction = 1.0
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
    max_upload_norm: Positive = 1e6
    engine: Literal["auto", "loop", "vmap", "ray"] = "auto"
    num_cpus: Positive = 1.0
    num_gpus: NonNegative = 0.0
    ray_address: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    autocast: Literal["none", "bfloat16"] = "none"
    state_memory: Bytes = 4_000_000_000
    cohort_block: NonNegativeInt = 0
    eval_every: PositiveInt = 1
    checkpoint_every: NonNegativeInt = 10
    target_accuracy: Probability | None = None
    exact_diagnostics: bool = False
    per_client: bool = False
    # A mapping cannot be hashed, and leaving it out keeps equal configurations' hashes equal.
    options: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, key in run_keys().items():
            value = getattr(self, _snake(name))
            checked = key.default if value is None else components.check(key, value)
            object.__setattr__(self, _snake(name), checked)
        options = nest(self._resolved(flatten(self.options)))
        frozen = {k: MappingProxyType(v) if isinstance(v, dict) else v for k, v in options.items()}
        object.__setattr__(self, "options", MappingProxyType(frozen))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by the keys: a read-only mapping cannot be pickled."""
        return type(self).from_mapping, (self.to_mapping(),)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Make a configuration from flat keys, written ``num-clients`` or ``num_clients``.

        Examples
        --------
        >>> RunConfig.from_mapping({"num-clients": 4, "sigma": 0.5}).options["sigma"]
        0.5
        """
        values = flatten(values)
        run: dict[str, Any] = {_snake(name): value for name, value in values.items() if name in run_keys()}
        return cls(**run, options={name: value for name, value in values.items() if name not in run_keys()})

    def to_mapping(self) -> dict[str, object]:
        """Return all keys, flat and in kebab-case; those that are None are left out.

        Examples
        --------
        >>> RunConfig(algorithm="fedsgd").to_mapping()["optimizer-options.dampening"]
        0.0
        """
        return {**self._run_values(), **flatten(self.options)}

    def to_toml(self) -> str:
        """Return the configuration as TOML; reading that gives an equal one."""
        import tomli_w

        return tomli_w.dumps(nest(self.to_mapping()))

    def replace(self, changes: Mapping[str, object]) -> Self:
        """Return the configuration with some keys changed.

        Where a component is replaced, the values of the old one's keys go with it.

        Examples
        --------
        >>> config = RunConfig(options={"sigma": 0.5})
        >>> config.replace({"rho": 2}).options["sigma"]
        0.5
        >>> "sigma" in config.replace({"algorithm": "fedavg"}).options
        False
        """
        changes = flatten(changes)
        values = self.to_mapping() | changes
        unchanged = [part for part in _chosen(values) if part.name == getattr(self, _snake(part.family))]
        kept = {*run_keys(), *(key for part in unchanged for key in families.keys_of(part, values))}
        old = {name: value for name, value in self.to_mapping().items() if name in kept}
        return self.from_mapping(old | changes)

    def accepts(self, key: str) -> bool:
        """Return whether a key is one of the run's own, or of the components that it names.

        Examples
        --------
        >>> RunConfig(algorithm="fedavg").accepts("learning-rate"), RunConfig(algorithm="fedavg").accepts("sigma")
        (True, False)
        """
        values = self.to_mapping()
        names = [name for part in _chosen(values) for name in families.keys_of(part, values)]
        return key in {*run_keys(), *names, *_once_flat(names)}

    # -------------------------------------------------------------------------------------------- details

    def _run_values(self) -> dict[str, object]:
        values = {name: getattr(self, _snake(name)) for name in run_keys()}
        return {name: value for name, value in values.items() if value is not None}

    def values_of(self, component: Component) -> dict[str, object]:
        """Return the values of a component's keys; a key that is also a run key has the run's value."""
        values = self.to_mapping()
        return {name: values[name] for name in families.keys_of(component, values) if name in values}

    def _resolved(self, options: Mapping[str, object]) -> dict[str, object]:
        """Return the values of all keys of the chosen components."""
        given = {name: value for name, value in options.items() if value is not None}
        values = self._run_values() | given
        chosen = _chosen(values)
        keys = [families.keys_of(component, values) for component in chosen]
        valid = {*run_keys(), *(name for own in keys for name in own)}
        given = _renamed(given, valid)
        values |= given
        for name in given:
            if name not in valid or name in run_keys():
                parts = [part for component in chosen for part in families.parts_of(component, values)]
                raise ValueError(self._unknown(name, given[name], sorted(valid), parts))
        resolved: dict[str, object] = {}
        for component, own in zip(chosen, keys, strict=True):
            its = families.resolve(component, {name: values[name] for name in own if name in values})
            for name, value in its.items():
                if resolved.setdefault(name, value) != value:
                    raise ValueError(
                        f"key {name!r} has two defaults, {components.show(resolved[name])} and, for "
                        f"{component}, {components.show(value)}: set it"
                    )
        return {name: value for name, value in resolved.items() if name not in run_keys()}

    @staticmethod
    def _unknown(name: str, value: object, valid: list[str], chosen: list[Component]) -> str:
        listed = f"valid keys: {', '.join(valid)}"
        if isinstance(value, Mapping):
            return f"[{name}] is a table, and keys are flat: write its keys without it"
        if name in valid:
            return f"key {name!r} is the run's own: set it once, and not among the options"
        table, dot, option = name.partition(".")
        tables = _once_flat(valid).values()
        if options := [key.partition(".")[2] for key in tables if key.startswith(f"{table}.")]:
            if not dot:
                return f"key {name!r} = {components.show(value)}: must be a table of {', '.join(options)}"
            fix = (
                "; it is a key: write it without" if option in valid else components.nearest(option, options)
            )
            return f"unknown option {option!r} of {table}{fix} (options: {', '.join(options)})"
        name = table
        users = families.owners(name)
        if not users:
            return f"unknown key {name!r}{components.nearest(name, valid)} ({listed})"
        if list(users) == ["model"] and all(part.family != "model" for part in chosen):
            return f"key {name!r} is used by the models {', '.join(users['model'])}: set the key 'model' too"
        return f"{families.used_elsewhere(name, chosen)}; {listed}"


def run_keys() -> Mapping[str, Key]:
    """Return the run's own keys, those of no component.

    Examples
    --------
    >>> run_keys()["num-clients"].default
    10
    """
    return _run_keys()


@functools.cache
def _run_keys() -> Mapping[str, Key]:
    keys = families.keys_of(components.inspect_component("run", "run", RunConfig, injected={"options"}))
    return MappingProxyType(keys)


def _chosen(values: Mapping[str, object]) -> list[Component]:
    """Return the components that run keys name."""
    names = {family: values.get(family, run_keys()[family].default) for family in _CHOICES}
    return [families.find(family, str(name)) for family, name in names.items() if name is not None]


def _snake(name: str) -> str:
    return name.replace("-", "_")


def flatten(values: Mapping[str, object], table: str = "") -> dict[str, object]:
    """Return keys in kebab-case, what is in a table of options after the table's name and a dot.

    Raises
    ------
    ValueError
        If a key is given twice.

    Examples
    --------
    >>> flatten({"num_clients": 3, "optimizer-options": {"betas": [0.5, 0.999]}})
    {'num-clients': 3, 'optimizer-options.betas': [0.5, 0.999]}
    """
    result: dict[str, object] = {}
    for name, value in values.items():
        key = table + name.rstrip("_").replace("_", "-")
        inside = isinstance(value, Mapping) and key.endswith("-options")
        for each, item in (flatten(cast(Any, value), f"{key}.") if inside else {key: value}).items():
            if each in result:
                raise ValueError(f"key {each!r} is given twice: give it once")
            result[each] = item
    return result


def nest(values: Mapping[str, object]) -> dict[str, Any]:
    """Return flat keys with their options in tables, as a file has them.

    Examples
    --------
    >>> nest({"num-clients": 3, "optimizer-options.eps": 1e-8, "optimizer-options.betas": [0.5, 0.999]})
    {'num-clients': 3, 'optimizer-options': {'eps': 1e-08, 'betas': [0.5, 0.999]}}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        table, dot, option = name.partition(".")
        if dot:
            result.setdefault(table, {})[option] = value
        else:
            result[name] = value
    return result


def _once_flat(keys: Iterable[str]) -> dict[str, str]:
    """Return the keys that are options, by the flat names that they had."""
    return {key.partition(".")[2]: key for key in keys if "." in key}


def _renamed(given: Mapping[str, object], valid: Collection[str]) -> dict[str, object]:
    """Return the values by the names that keys have now, with a warning that says them; of two the later one."""
    once = _once_flat(valid)
    names = {name: once[name] for name in given if name in once and name not in valid}
    if names:
        tables = nest({new: given[old] for old, new in names.items()})
        now = [
            f"{table} = {{{', '.join(f'{k} = {components.show(v)}' for k, v in values.items())}}}"
            for table, values in tables.items()
        ]
        _warn_once(
            f"{', '.join(names)} {'is an option' if len(names) == 1 else 'are options'} and no longer flat: "
            f"write {' and '.join(now)}"
        )
    return {names.get(name, name): value for name, value in given.items()}


@functools.cache
def _warn_once(text: str) -> None:
    """Warn once in a process, which reads a run's keys several times."""
    warnings.warn(text, FutureWarning, stacklevel=1)


def load_config(
    source: RunConfig | Mapping[str, object] | str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | str | None = None,
) -> RunConfig:
    """Return the configuration of a run.

    Parameters
    ----------
    source
        Path of a TOML file, a mapping of keys, a configuration, or None for the defaults.
    overrides
        Keys that take precedence, as a mapping or as text; see `parse_overrides`.

    Raises
    ------
    ValueError
        If the file cannot be read, or for an unknown key or a bad value.

    Examples
    --------
    >>> load_config({"algorithm": "fedavg"}, "num-clients=4 batch-size=full").options["batch-size"]
    'full'
    """
    changes = flatten(parse_overrides(overrides) if isinstance(overrides, str) else overrides or {})
    if isinstance(source, RunConfig):
        return source.replace(changes)
    values = source if isinstance(source, Mapping) else {} if source is None else read_toml(source)
    return RunConfig.from_mapping(flatten(values) | changes)


def read_toml(path: str | os.PathLike[str]) -> dict[str, object]:
    """Return the keys of a TOML file.

    Raises
    ------
    ValueError
        If there is no such file or it is not TOML.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        reason = error.strerror or components.one_line(error)
        raise ValueError(f"cannot read the configuration {os.fspath(path)!r}: {reason}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not TOML: {components.one_line(error)}") from error


_OVERRIDE: Final = re.compile(
    r"""\s*(?P<key>[\w.-]+)\s*=\s*(?P<value>"(?:\\.|[^"\\])*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^\s"'\[{]\S*)(?=\s|$)"""
)


def parse_overrides(text: str) -> dict[str, object]:
    """Return the keys of ``key=value key=value``, as in Flower's ``--run-config``.

    Values are TOML; a bare word is a string.

    Raises
    ------
    ValueError
        If the text is not of that form.

    Examples
    --------
    >>> parse_overrides("sigma=0.5 batch-size=full widths=[64, 32] data-dir='my data' bias=false")
    {'sigma': 0.5, 'batch-size': 'full', 'widths': [64, 32], 'data-dir': 'my data', 'bias': False}
    """
    values: dict[str, object] = {}
    position, text = 0, text.rstrip()
    while position < len(text):
        found = _OVERRIDE.match(text, position)
        if not found:
            raise ValueError(
                f"cannot read {text[position:].strip()!r}: write key=value key=value, "
                "and quote a value with spaces"
            )
        key, value = found["key"], found["value"]
        if key in values:
            raise ValueError(f"key {key!r} is given twice: give it once")
        try:
            values[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            if value[0] in "\"'[{":
                raise ValueError(f"the value of {key!r} is not TOML: {components.one_line(error)}") from error
            values[key] = value
        position = found.end()
    return values
