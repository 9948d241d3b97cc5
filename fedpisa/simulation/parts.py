"""The data set, the model and the task that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedpisa import families
from fedpisa.components.describe import Component
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset, Generated, Indices, is_integers
from fedpisa.datasets.client_data import ClientData
from fedpisa.datasets.inputs import require_one
from fedpisa.families import data, models
from fedpisa.tasks.augment import Augmentation, CropFlip, ResizedCropFlip
from fedpisa.tasks.base import Task


def load_dataset(config: RunConfig) -> Dataset:
    """Return the configuration's data set."""
    return data.load(
        config.dataset,
        seed=config.seed,
        data_dir=config.data_dir,
        num_clients=config.num_clients,
        **options_of(config, "dataset"),
    )


def split_dataset(
    config: RunConfig, dataset: Dataset, stored: Sequence[Indices] | None = None
) -> tuple[Dataset, list[Indices]]:
    """Return the clients' data set, and each client's indices into its training samples, those ``stored`` if given.

    The partitioner ``feature-noise`` changes the training features; others return the data set unchanged.
    """
    if dataset.train_targets is None:
        raise ValueError(
            f"{dataset.name} makes its samples client by client, so there is nothing to split: use another data set"
        )
    return data.partition(
        dataset,
        config.partitioner,
        num_clients=config.num_clients,
        seed=config.seed,
        stored=stored,
        **options_of(config, "partitioner"),
    )


def build_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Return the model with its initial weights; see `fedpisa.families.models.build`."""
    component = config.component("model") if config.model else families.find("model", dataset.default_model)
    values = config.values_of(component)
    any_output = ":" in (config.task or "") or config.task == "gan"
    return models.create(
        component,
        values,
        dataset.shape if dataset.inputs is None else dataset.inputs.shape,
        dataset.num_outputs,
        config.seed,
        () if config.task == "multi-label" else dataset.target_shape,
        is_integers(dataset.x_train),
        any_output=any_output,
        inputs=dataset.inputs,
        num_log_stds=0 if dataset.environments is None else dataset.environments.num_log_stds,
    )


def task_of(config: RunConfig, dataset: Dataset) -> tuple[Component, dict[str, object]]:
    """Return the task's component and the values of its keys; by default the one that suits the data set."""
    return chosen(config, "task") if config.task else (families.find("task", dataset.default_task), {})


def build_augment(config: RunConfig) -> Augmentation | None:
    """Return how training images are changed; ``None`` for not at all."""
    match config.augment:
        case "crop-flip":
            return CropFlip(config.crop_padding)
        case "resized-crop-flip":
            return ResizedCropFlip()
        case _:
            return None


def with_model_of(config: RunConfig, dataset: Dataset) -> RunConfig:
    """Return the configuration with the data set's default model if it names no model."""
    return config.replace({"model": config.model or dataset.default_model})


def client_samples(
    config: RunConfig,
    dataset: Dataset,
    parts: Sequence[Indices],
    device: torch.device,
    *,
    clients_have_data: bool = False,
) -> ClientData:
    """Return the clients' samples: the rows ``parts`` of the training set, or what clients generate themselves."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    generated = dataset.generated
    if generated is not None and dataset.train_targets is not None:
        return ClientData.made_by(generated.split(parts), dtype, device)
    if generated is None or clients_have_data:
        return ClientData.of(dataset.x_train, dataset.y_train, parts, dtype, device)
    return ClientData.made_by(generated_samples(config, dataset), dtype, device)


def generated_samples(config: RunConfig, dataset: Dataset) -> Generated:
    """Return the samples that each client makes on the fly, checked against the configuration."""
    assert dataset.generated is not None
    count = len(dataset.generated.sizes_N)
    if config.partitioner != "natural":
        raise ValueError(
            f"partitioner = {config.partitioner!r}: {dataset.name} makes its samples client by client and cannot be "
            'split; set partitioner = "natural"'
        )
    if count != config.num_clients:
        raise ValueError(f"{dataset.name} has {count} clients: set num-clients = {count}")
    return dataset.generated


def chosen(config: RunConfig, key: str) -> tuple[Component, dict[str, Any]]:
    """Return the component that a key of the configuration names, and the values of its own keys."""
    component = config.component(key)
    return component, config.values_of(component)


def options_of(config: RunConfig, family: str) -> dict[str, Any]:
    """Return the values of the chosen component's keys by their Python names."""
    return {name.replace("-", "_"): value for name, value in chosen(config, family)[1].items()}


def with_steps(config: RunConfig, task: Task, x: Tensor) -> Task:
    """Return the task with how a configuration takes steps: clipped, in pieces, or on augmented samples such as ``x``.

    Raises
    ------
    ValueError
        If the model or the samples do not allow it.
    """
    if config.micro_batch_size and task.mixes_samples:
        names = task.buffer_layout.names
        part = repr(names[0]) if names else "BatchNorm"
        fix = task.without(names[0]) if names else "use a model without BatchNorm"
        raise ValueError(
            f"micro-batch-size = {config.micro_batch_size}: the model's {part} needs whole mini-batches; set "
            f"micro-batch-size = 0, or {fix}"
        )
    augment = build_augment(config)
    if augment is not None:
        require_one(task.inputs, f"augment = {config.augment!r}", 'set augment = "none"')
        augment.check(x)
    if not (config.max_grad_norm or config.micro_batch_size or augment):
        return task
    return replace(
        task, augment=augment, max_grad_norm=config.max_grad_norm, micro_batch_size=config.micro_batch_size
    )
