"""A federation: what a configuration builds before anything is trained."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedpisa.clients.client import BUFFERS, Client
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset
from fedpisa.datasets.client_data import ClientData
from fedpisa.flower.compat import to_record
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.server.flower_strategy import FlowerStrategy
from fedpisa.server.reply_filter import Admission
from fedpisa.strategies.base import Algorithm
from fedpisa.tasks.task import Task


@final
class Federation:
    """The algorithm, the model and the clients' data of a configuration, checked against each other.

    Parameters
    ----------
    config
        The run's configuration.
    clients_have_data
        Whether the clients bring their own samples. Then those of the configuration's data set only say what
        samples look like, and its test set is the server's; nothing is split.
    dataset
        The data; by default those that the configuration names.

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
        self, config: RunConfig, *, clients_have_data: bool = False, dataset: Dataset | None = None
    ) -> None:
        self.device = resolve_device(config.device)
        self.algorithm: Algorithm = config.build_algorithm()
        dtype: torch.dtype = getattr(torch, config.dtype)
        dataset = config.load_dataset() if dataset is None else dataset
        self.config = config.with_model_of(dataset)
        self.partition: list[NDArray[np.int64]] = []
        parts = [np.arange(len(dataset.y_train))]
        if not clients_have_data and dataset.generated is None:
            dataset, self.partition = self.config.split(dataset)
            parts = self.partition
        self.num_outputs, self.shape, self.classes = dataset.num_outputs, dataset.shape, dataset.class_names
        module = self.config.build_model(dataset).to(device=self.device, dtype=dtype)
        self.task = Task(module, dataset.num_classes, autocast=config.autocast == "bfloat16")
        if clients_have_data or dataset.generated is None:
            self.data = ClientData.of(dataset.x_train, dataset.y_train, parts, dtype, self.device)
        else:
            self.data = ClientData.made_by(self.config.generated(dataset), dtype, self.device)
        self.algorithm.local_update.check(self.task, self.data.x[:1])
        everything = [np.arange(len(dataset.y_test))]
        self.test = ClientData.of(dataset.x_test, dataset.y_test, everything, dtype, self.device)

    def client(self, client_id: int) -> Client:
        """Return one client."""
        return Client(
            self.task, self.algorithm.local_update, *self.data.client(client_id), client_id, self.config.seed
        )

    def strategy(self, *, trusting: bool = False) -> AlgorithmStrategy | FlowerStrategy:
        """Return the algorithm's Flower strategy, or the one of Flower's that takes the server's part.

        Parameters
        ----------
        trusting
            Whether replies are used as they come.

        Raises
        ------
        ValueError
            If that does not go with the algorithm or the model.
        """
        common: dict[str, Any] = {
            "fraction_train": self.config.fraction_train,
            "seed": self.config.seed,
            "device": self.device,
            "admission": None
            if trusting
            else Admission(self.config.max_upload_norm, self.config.min_replies),
            "memory_limit": self.config.state_memory,
        }
        make = self.config.build_server_strategy(self.algorithm)
        if make is None:
            return AlgorithmStrategy(self.algorithm, self.task.layout, **common)
        if self.config.differential_privacy != "none" and self.task.buffer_layout.names:
            raise ValueError(
                f"differential-privacy: the model's {self.task.buffer_layout.names[0]!r}, a running statistic of the "
                "clients' samples, would go out without noise; use a model without BatchNorm"
            )
        return FlowerStrategy(self.algorithm, self.task.layout, make, **common)

    def initial_model(self) -> ArrayRecord:
        """Return the module's own weights, and its buffers if it has any."""
        model = {"params": self.task.initial_params()}
        if self.task.buffer_layout.names:
            model[BUFFERS] = self.task.initial_buffers()
        return to_record(model)


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, or else the CPU.

    Raises
    ------
    ValueError
        If there is no such device here.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = (" ".join(str(error).split()) or type(error).__name__).split(". ")[0][:150]
        raise ValueError(
            f'device {name!r} is not available ({cause}): use device = "cpu" or "auto"'
        ) from error
    return device
