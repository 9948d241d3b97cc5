"""A yardstick: one forward and backward over all samples of a round's clients as one batch: ``large_batch.py JOB``.

It trains nothing that federated learning would need; no round of a gradient per client can be much cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from bare import Data, loss_of, model_of, trained

from fedpisa.bench import workloads
from fedpisa.bench.protocol import job, report
from fedpisa.bench.workloads import Job


def rounds(work: Job) -> Iterator[None]:
    """Do the job."""
    torch.manual_seed(workloads.SEED)
    data, model = Data(work), model_of(work.workload.model)
    params = trained(model)
    each = torch.arange(work.workload.samples)
    while True:
        cohort = torch.randperm(work.workload.clients)[: work.workload.per_round]
        rows = (cohort[:, None] * work.workload.samples + each).flatten()
        gradients = torch.autograd.grad(loss_of(model, data.x[rows], data.y[rows]), params)
        with torch.no_grad():
            for param, gradient in zip(params, gradients, strict=True):
                param.sub_(gradient, alpha=workloads.LEARNING_RATE)
        yield


if __name__ == "__main__":
    report(job(), rounds(job()))
