"""FedAvg by Flower's own simulation, on Ray: ``python flower_ray.py JOB``.

The data are written to a file once, and every process of Ray's maps it into memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bare import model_of
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn import functional as F

from fedpisa.bench import workloads
from fedpisa.bench.measure import cores
from fedpisa.bench.protocol import finish, job, send
from fedpisa.bench.workloads import LEARNING_RATE, Job

FOLDER = "FEDPISA_BENCH_DATA"


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return the samples, mapped into memory."""
    x, y = (np.load(Path(os.environ[FOLDER]) / f"{name}.npy", mmap_mode="r") for name in "xy")
    return x, y


def client_app(work: Job) -> ClientApp:
    """Return what a client does: an epoch of SGD."""
    workload, app = work.workload, ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        first = int(context.node_config["partition-id"]) * workload.samples
        x, y = (torch.from_numpy(np.array(part[first : first + workload.samples])) for part in data())
        model = model_of(workload.model)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        params = list(model.parameters())
        for rows in torch.randperm(workload.samples).split(workload.batch):
            gradients = torch.autograd.grad(F.cross_entropy(model(x[rows]), y[rows]), params)
            with torch.no_grad():
                for param, gradient in zip(params, gradients, strict=True):
                    param.sub_(gradient, alpha=LEARNING_RATE)
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": workload.samples}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


class Timed(FedAvg):
    """Flower's FedAvg, which says when a round is over."""

    def __init__(self, work: Job) -> None:
        workload = work.workload
        super().__init__(
            fraction_train=workload.per_round / workload.clients,
            fraction_evaluate=0.0,
            min_train_nodes=workload.per_round,
            min_available_nodes=workload.clients,
        )
        self.begin, self.seconds = 0.0, [0.0]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the clock."""
        if server_round == 1:  # Waits until all nodes are there.
            self.seconds.clear()
        self.begin = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[Any, Any]:
        """Stop it."""
        replies = list(replies)
        if failed := [reply.error for reply in replies if reply.has_error()]:
            raise RuntimeError(f"{len(failed)} clients failed: {failed[0]}")
        result = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self.begin)
        send(round=server_round)
        return result


def main() -> None:
    """Do the job."""
    work = job()
    server_app, strategy = ServerApp(), Timed(work)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        torch.manual_seed(workloads.SEED)
        arrays = ArrayRecord(model_of(work.workload.model).state_dict())
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=work.warm_up + work.rounds, timeout=3600)

    with TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        for name, part in zip(
            "xy", workloads.samples(work.workload.clients * work.workload.samples), strict=True
        ):
            np.save(Path(folder) / f"{name}.npy", part)
        run_simulation(
            server_app=server_app,
            client_app=client_app(work),
            num_supernodes=work.workload.clients,
            backend_config={"init_args": {"num_cpus": cores()}, "client_resources": {"num_cpus": 1}},
        )
    finish(work, strategy.seconds)


if __name__ == "__main__":
    main()
