"""The parts of a run that a configuration describes: algorithm, model, data and faults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedpisa import families
from fedpisa.clients.client import BUFFERS, Client
from fedpisa.clients.memory import sampler_of
from fedpisa.clients.model_trial import require_batch_statistics, require_trainable
from fedpisa.clients.rollouts import require_no_samples, trial_data
from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import IGNORED, Dataset, Indices
from fedpisa.datasets.client_data import ClientData
from fedpisa.datasets.heterogeneity import count_labels
from fedpisa.datasets.validation import hold_out
from fedpisa.families import tasks
from fedpisa.families.flower_strategies import combine
from fedpisa.flower.compat import to_record
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.server.base import cohort_size
from fedpisa.server.flower_strategy import FlowerStrategy
from fedpisa.server.reply_filter import ReplyFilter
from fedpisa.simulation.devices import resolve_device
from fedpisa.simulation.evaluated import evaluated_sets, examples, pixel_range
from fedpisa.simulation.faults import Faults
from fedpisa.simulation.games import in_turns
from fedpisa.simulation.parts import (
    build_model,
    chosen,
    client_samples,
    load_dataset,
    split_dataset,
    task_of,
    with_model_of,
    with_steps,
)
from fedpisa.simulation.privacy import Privacy, build_privacy
from fedpisa.strategies.base import Algorithm
from fedpisa.strategies.schedules import factors, schedule_of
from fedpisa.tasks.base import Task
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.modules import in_dtype
from fedpisa.tasks.recurrent import require_consecutive


@final
class Federation:
    """The algorithm, the model and the clients' data of a configuration, checked against each other.

    Parameters
    ----------
    config
        The run's configuration.
    clients_have_data
        Whether the clients bring their own samples. The configuration's data set then gives only the shape of a
        sample and the server's test set; it is not split, and there are no validation samples.
    dataset
        The data set; by default the one that the configuration names.
    partition
        Each client's indices into the training samples; by default the configuration's partitioner makes them.

    Raises
    ------
    ValueError
        If the configuration or the data is unusable.

    Examples
    --------
    >>> federation = Federation(RunConfig(model="logistic", num_clients=4))
    >>> federation.data.num_clients, federation.task.layout.size
    (4, 650)
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        clients_have_data: bool = False,
        dataset: Dataset | None = None,
        partition: Sequence[Indices] | None = None,
    ) -> None:
        self.device = resolve_device(config.device)
        self.algorithm: Algorithm = build_algorithm(config)
        if clients_have_data:
            require_federated(config)
        num_clients = 1 if self.algorithm.reference == "centralised" else config.num_clients
        cohort = cohort_size(num_clients, config.fraction_train)
        if config.min_replies > cohort:
            raise ValueError(
                f"min-replies = {config.min_replies} is more than the {cohort} client{'s' * (cohort > 1)} of a round: "
                f"lower it{', or raise fraction-train' * (num_clients > 1)}"
            )
        self.schedule = build_schedule(config, self.algorithm)
        dtype: torch.dtype = getattr(torch, config.dtype)
        dataset = load_dataset(config) if dataset is None else dataset
        self.config = with_model_of(config, dataset)
        if clients_have_data and config.validation_fraction:
            raise ValueError(
                f"validation-fraction = {config.validation_fraction:g}: the nodes train on their own samples, of which "
                "the server has none: set validation-fraction = 0"
            )
        component, values = task_of(self.config, dataset)
        in_order = values.get("carry-state", "none") != "none"
        whole, held = dataset, hold_out(dataset, config.validation_fraction, config.seed, in_order=in_order)
        parts, self.partition = [held.train], list[Indices]()
        dataset, self.validation_rows = held.dataset, held.validation
        if not clients_have_data and dataset.train_targets is not None:
            # A partition's indices are positions in the whole training set, with and without validation samples.
            stored = partition and [np.searchsorted(held.train, part) for part in partition]
            dataset, parts = split_dataset(self.config, dataset, stored)
            self.partition = [held.train[part] for part in parts] if len(held.validation) else parts
        if self.algorithm.reference == "centralised":
            if dataset.train_targets is None:
                raise ValueError(
                    f"algorithm = {config.algorithm!r} needs all samples in one place, and {dataset.name} makes them "
                    "client by client: use another data set"
                )
            parts = [np.sort(np.concatenate(parts))]
        self.num_outputs, self.shape = dataset.num_outputs, dataset.shape
        self.classes = dataset.vocabulary or dataset.class_names
        self.columns, self.labels = dataset.columns or (), whole.labels
        self.vocabulary, self.tokenizer = dataset.vocabulary, dataset.tokenizer
        self.inputs, self.environments = dataset.inputs, dataset.environments
        module = in_dtype(build_model(self.config, dataset), dtype).to(self.device)
        self.num_classes = dataset.num_classes
        self.data = client_samples(
            self.config, dataset, parts, self.device, clients_have_data=clients_have_data
        )
        self.evaluated, self._digested = dict[str, ClientData](), list[ClientData]()
        labels_n = whole.test_labels
        self._test_labels = None if labels_n is None else torch.from_numpy(labels_n)
        for number, (part, kept) in enumerate(evaluated_sets(whole, self.validation_rows).items()):
            used = kept.used(config, number, values.get("carry-state", "none"))
            self.evaluated[part] = kept.data(used, dtype, self.device)
            is_all = self.evaluated[part].num_samples == len(kept.rows)
            # The digest is that of all samples.
            self._digested.append(
                self.evaluated[part] if is_all else kept.data([kept.rows], dtype, torch.device("cpu"))
            )
        self.test = self.evaluated["test"]
        labels = None if clients_have_data else dataset.train_targets
        self.task: Task = tasks.build(
            component,
            values,
            module,
            num_outputs=dataset.num_outputs,
            labels=labels,
            test=examples(self.test),
            pixel_range=lambda: pixel_range(self.test),
            x_train=None if labels is None or dataset.generated is not None else dataset.x_train,
            environments=dataset.environments,
            seed=config.seed,
            autocast=config.autocast == "bfloat16",
            inputs=dataset.inputs,
        )
        self.task = with_steps(config, self.task, self.data.x)
        if self.task.players:
            single = self.algorithm
            self.algorithm = in_turns(
                config, single, self.task, lambda own_rounds: build_schedule(config, single, own_rounds)
            )
            self.schedule = UNSCHEDULED  # each player has its own
        update, tried = self.algorithm.local_update, trial_data(self.task, self.data)
        sample = tried.x[:1]
        update.check(self.task, sample)
        sampler_of(self.task, update.at_round(1))  # refuses a state that cannot be carried
        require_trainable(self.task, sample, tried.y[:1])
        require_no_samples(self.task, update, config.exact_diagnostics)
        if not clients_have_data:
            require_batch_statistics(self.task, update, sample, self.data.sizes_N, config.seed)
            if self.task.carry_state != "none":
                require_consecutive(self.data)
        self._require_target(list(self.evaluated))

    def _require_target(self, parts: Sequence[str]) -> None:
        """Refuse a target of a column that the run will not have, or that a share cannot reach."""
        measures = {m.column: m for part in parts for m in (one.of(part) for one in self.task.measures)}
        target = self.config.target_of(next(iter(measures)))
        if target is None or self.config.target_accuracy is not None:
            return
        column, value = target
        if column not in measures:
            raise ValueError(
                f"target-measure = {self.config.target_measure!r} is not measured: take one of {', '.join(measures)}"
            )
        if measures[column].percent and not 0 <= value <= 1:
            raise ValueError(
                f"target = {value:g}: the {measures[column].name} is a fraction: give one in [0, 1]"
            )

    def client(self, client_id: int) -> Client:
        """Return one client."""
        update, samples = self.algorithm.local_update, self.data.only(client_id)
        return Client(self.task, update, samples, client_id, self.config.seed, self.schedule)

    def privacy(self, *, deployed: bool = False) -> Privacy | None:
        """Return the run's differential privacy, ``None`` without; see `build_privacy`."""
        privacy = build_privacy(self.config, self.algorithm, deployed=deployed)
        if privacy is not None and (names := self.task.buffer_layout.names):
            raise ValueError(
                f"differential-privacy: the model's {names[0]!r}, a running statistic of the clients' samples, would "
                f"be sent without noise; {self.task.without(names[0])}"
            )
        return privacy

    def strategy(
        self, reply_filter: ReplyFilter | None = None, privacy: Privacy | None = None
    ) -> AlgorithmStrategy | FlowerStrategy:
        """Return the algorithm's Flower strategy, or the stock Flower strategy that replaces the server's step.

        Parameters
        ----------
        reply_filter
            The checks of replies; by default there are none.
        privacy
            The run's `privacy`; by default that of a simulation.

        Raises
        ------
        ValueError
            If the strategy does not work with the algorithm or the model.
        """
        privacy = privacy or self.privacy()
        common: dict[str, Any] = {
            "fraction_train": self.config.fraction_train,
            "seed": self.config.seed,
            "device": self.device,
            "reply_filter": reply_filter,
            "memory_limit": self.config.state_memory,
            "schedule": self.schedule,
            "buffer_layout": self.task.buffer_layout,
            "privacy": None if privacy is None else privacy.mean,
        }
        make = build_server_strategy(self.config, self.schedule.scaled(self.algorithm, 1).at_round(1))
        if make is None:
            return AlgorithmStrategy(self.algorithm, self.task.layout, **common)
        return FlowerStrategy(self.algorithm, self.task.layout, make, **common)

    def data_digest(self) -> str:
        """Return a digest of all samples, of which client has which, and of the test and validation sets.

        Samples that are generated on demand are not looked at, but their split and their labels are.
        """
        digest = hashlib.sha256()
        for samples in (self.data, *self._digested):
            for values in (samples.x.cpu().numpy(), samples.y.cpu().numpy(), samples.sizes_N):
                digest.update(np.ascontiguousarray(values).data)
        if self.data.generated is not None and self.labels is not None:
            for rows in (self.labels, *self.partition):
                digest.update(np.ascontiguousarray(rows).data)
        if self.inputs is not None:
            digest.update(self.inputs.to_text().encode())
        if self._test_labels is not None:
            digest.update(self._test_labels.numpy().data)
        return digest.hexdigest()[:32]

    def majority_share(self) -> float | None:
        """Return the share of the most frequent class in the test set's labels; ``None`` for a regression.

        A model that always answers with this class has this accuracy.
        """
        y = self.test.y if self.test.generated is None else self._test_labels
        if self.num_classes is None or y is None or y.is_floating_point():
            return None
        counts = torch.bincount(y[y != IGNORED])
        return int(counts.max()) / int(counts.sum())

    def split_arrays(self) -> dict[str, NDArray[np.int64]]:
        """Return what describes the split besides the partition.

        ``labels`` ``(N, C)`` counts the samples of each client and class, or ``deciles`` those in each decile of the
        target. There are none without labels, of samples that clients bring or make, nor of samples in one place.
        ``validation`` holds the positions of the validation samples, if there are any.
        """
        arrays = {"validation": self.validation_rows} if len(self.validation_rows) else {}
        if not self.partition or self.algorithm.reference == "centralised":
            return arrays
        labels, classes = self.data.y.cpu().numpy(), self.num_classes
        if self.labels is not None:
            labels, classes = self.labels[np.concatenate(self.partition)], int(self.labels.max()) + 1
        if labels.ndim > 1:
            return arrays
        if classes is not None:
            return {"labels": count_labels(labels, self.data.sizes_N, classes), **arrays}
        bounds = np.quantile(labels, np.linspace(0, 1, 11)[1:-1])
        counts = count_labels(np.searchsorted(bounds, labels), self.data.sizes_N, 10)
        return {"deciles": counts, **arrays}

    def initial_model(self) -> ArrayRecord:
        """Return the module's initial parameters and buffers."""
        model = {"params": self.task.initial_params()}
        if self.task.buffer_layout.names:
            model[BUFFERS] = self.task.initial_buffers()
        return to_record(model)


def build_algorithm(config: RunConfig) -> Algorithm:
    """Return the algorithm with its unscheduled hyper-parameters."""
    component, values = chosen(config, "algorithm")
    algorithm = families.build(component, values, seed=config.seed, num_clients=config.num_clients)
    if not isinstance(algorithm, Algorithm):
        raise ValueError(
            f"{component} gave an object of type {type(algorithm).__name__}: it must give an Algorithm"
        )
    return algorithm


def require_federated(config: RunConfig) -> None:
    """Raise a ValueError if the algorithm is a reference, which runs in a simulation only."""
    reference = build_algorithm(config).reference
    if reference:
        raise ValueError(
            f"algorithm = {config.algorithm!r} is a reference without federation, {_REASONS[reference]}: use a "
            "federated algorithm such as fedavg, or run the reference with fedpisa run"
        )


_REASONS = {
    "centralised": "which needs all samples in one place",
    "local": "in which no client sends its model",
}


def build_schedule(
    config: RunConfig, algorithm: Algorithm, num_rounds: int | None = None
) -> StepSizeSchedule:
    """Return the schedule of the algorithm's step sizes for a number of rounds, by default the run's."""
    keys = None if config.schedule_keys is None else tuple(config.schedule_keys.replace(",", " ").split())
    return schedule_of(algorithm, factors_of(config, num_rounds), keys)


def factors_of(config: RunConfig, num_rounds: int | None = None) -> tuple[float, ...]:
    """Return the schedule's factor for each of a number of rounds, by default the run's.

    Examples
    --------
    >>> keys = {"schedule": "cosine", "num-server-rounds": 2, "warmup-rounds": 1}
    >>> factors_of(RunConfig.from_mapping(keys))
    (0.5, 1.0)
    """
    rule = families.bind(*chosen(config, "schedule"))
    return factors(
        lambda rounds_done, num_rounds: rule(rounds_done=rounds_done, num_rounds=num_rounds),
        config.num_server_rounds if num_rounds is None else num_rounds,
        config.warmup_rounds,
    )


def build_server_strategy(config: RunConfig, algorithm: Algorithm) -> Callable[[], Strategy] | None:
    """Return a factory of the stock Flower strategy; ``None`` if the algorithm makes the server's step."""
    if config.server_strategy == "none" and config.differential_privacy in ("none", "central"):
        return None
    if algorithm.reference:
        raise ValueError(
            "server-strategy and differential-privacy change a mean of models, and algorithm = "
            f"{config.algorithm!r} is a reference without federation, {_REASONS[algorithm.reference]}: remove the keys"
        )
    if config.server_strategy == "qfed-avg" and set(factors_of(config)) != {1.0}:
        raise ValueError(
            "server-strategy 'qfed-avg' needs the same learning rate in all rounds: set schedule = \"constant\" "
            "and warmup-rounds = 0"
        )
    strategy = families.build(*chosen(config, "server-strategy"))
    is_wrapped = config.differential_privacy not in ("none", "central")
    wrapper = families.build(*chosen(config, "differential-privacy")) if is_wrapped else None
    return combine(algorithm, strategy, wrapper, cohort_size(config.num_clients, config.fraction_train))


def build_faults(config: RunConfig) -> Faults | None:
    """Return the simulation's faults; ``None`` without faults, pace and availability."""
    rates = {name: getattr(config, name) for name in ("dropout", "crash", "late", "nan", "corrupt")}
    if not any(rates.values()) and (config.pace, config.availability) == ("none", "always"):
        return None

    def bound(family: str) -> Callable[[Any, int], Any]:
        rule = families.bind(*chosen(config, family))
        return lambda clients_S, server_round: rule(
            clients_S=clients_S, server_round=server_round, seed=config.seed
        )

    return Faults(
        seed=config.seed,
        **rates,
        pace=None if config.pace == "none" else bound("pace"),
        reachable=None if config.availability == "always" else bound("availability"),
        round_timeout=config.round_timeout,
    )


def measures_of(config: RunConfig, dataset: Dataset) -> tuple[Measure, ...]:
    """Return the measures of a run; those of your own task are known when the task is tried on the model."""
    if ":" in (config.task or ""):
        return Federation(config, dataset=dataset).task.measures
    component, values = task_of(config, dataset)
    return tasks.criterion(component, values, dataset.num_outputs, dataset.y_train).measures
