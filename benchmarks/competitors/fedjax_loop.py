"""FedAvg by fedjax, in an environment that has it: ``python fedjax_loop.py JOB``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

if not hasattr(jax, "tree_map"):  # fedjax 0.0.17 still calls it by the name that it had
    jax.tree_map = jax.tree_util.tree_map

import fedjax
import haiku as hk
from fedjax.algorithms.fed_avg import federated_averaging

from fedpisa.bench import workloads
from fedpisa.bench.protocol import job, report
from fedpisa.bench.workloads import LEARNING_RATE, Job


def model_of(name: str) -> fedjax.Model:
    """Return a workload's model."""

    def forward(batch: Any) -> Any:
        x = batch["x"]
        if name == "leaf-cnn":
            for filters in (32, 64):
                x = jax.nn.relu(hk.Conv2D(filters, 5, padding="SAME")(x))
                x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
            layers = [hk.Flatten(), hk.Linear(512), jax.nn.relu, hk.Linear(10)]
        elif name == "mlp":
            layers = [hk.Flatten(), hk.nets.MLP([200, 200, 10])]
        else:
            layers = [hk.Flatten(), hk.Linear(10)]
        return hk.Sequential(layers)(x)

    example = {"x": jax.numpy.zeros((1, 28, 28, 1)), "y": jax.numpy.zeros(1, "int32")}
    return fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(lambda batch, is_train=True: forward(batch)),
        sample_batch=example,
        train_loss=lambda batch, outputs: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], outputs),
        eval_metrics={},
        train_kwargs={},
        eval_kwargs={},
    )


def rounds(work: Job) -> Iterator[None]:
    """Do the job."""
    workload, each = work.workload, work.workload.samples
    x, y = workloads.samples(workload.clients * each)
    x = x.reshape(-1, 28, 28, 1)
    clients = {
        b"%08d" % number: {"x": x[first : first + each], "y": y[first : first + each].astype("int32")}
        for number, first in enumerate(range(0, len(x), each))
    }
    sampler = fedjax.client_samplers.UniformGetClientSampler(
        fedjax.InMemoryFederatedData(clients), workload.per_round, seed=workloads.SEED
    )
    model = model_of(workload.model)
    algorithm = federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(LEARNING_RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=workload.batch, num_epochs=1),
    )
    state = algorithm.init(model.init(jax.random.PRNGKey(workloads.SEED)))
    number = 0
    while True:
        sampler.set_round_num(number)
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        number += 1
        yield


if __name__ == "__main__":
    report(job(), rounds(job()))
