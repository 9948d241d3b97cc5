"""The loop that somebody writes in PyTorch who wants no framework: ``python bare.py JOB``.

One model, one client after the other; data held once, a client is a slice of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedpisa.bench import workloads
from fedpisa.bench.protocol import job, report
from fedpisa.bench.workloads import LEARNING_RATE, TEXT_MODELS, Job

Batches = Callable[[int], Sequence[Tensor]]
"""The positions of each mini-batch of a client, given its number."""

# SISA's hyper-parameters, fedpisa's defaults.
SIGMA, RHO, BETA, EPS = 0.3, 100.0, 0.999, 1e-8


def model_of(name: str) -> nn.Module:
    """Return a workload's model; the larger networks are fedpisa's modules, without its engine."""
    if name in TEXT_MODELS:
        from fedpisa.bench.networks import lora
        from fedpisa.models.language import gpt, lstm

        return {"lstm": lstm, "gpt": gpt, "lora": lora}[name]((workloads.WINDOW,), workloads.TOKENS)
    if name == "vit":
        from fedpisa.bench.networks import vit

        return vit(workloads.SHAPE, workloads.CLASSES)
    if name == "logistic":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if name == "mlp":
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 200), nn.ReLU()),
            *(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)),
        )
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch, with one label or, for text, several a sample."""
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [param for param in model.parameters() if param.requires_grad]


class Data:
    """All clients' samples, client after client."""

    def __init__(self, work: Job) -> None:
        draw = workloads.windows if work.workload.is_text else workloads.samples
        x, y = draw(work.workload.clients * work.workload.samples)
        self.x, self.y, self.each = torch.from_numpy(x), torch.from_numpy(y), work.workload.samples

    def client(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a client's samples."""
        rows = slice(number * self.each, (number + 1) * self.each)
        return self.x[rows], self.y[rows]


def fedavg_round(model: nn.Module, data: Data, cohort: Sequence[int], batches: Batches) -> None:
    """Have each client of a cohort take SGD steps from the model, and put the mean into its place."""
    params = trained(model)
    before = [param.detach().clone() for param in params]
    mean = [torch.zeros_like(param) for param in before]
    for client in cohort:
        x, y = data.client(client)
        for rows in batches(client):
            gradients = torch.autograd.grad(loss_of(model, x[rows], y[rows]), params)
            with torch.no_grad():
                for param, gradient in zip(params, gradients, strict=True):
                    param.sub_(gradient, alpha=LEARNING_RATE)
        with torch.no_grad():
            for total, param, start in zip(mean, params, before, strict=True):
                total.add_(param, alpha=1 / len(cohort))
                param.copy_(start)
    with torch.no_grad():
        for param, total in zip(params, mean, strict=True):
            param.copy_(total)


class Sisa:
    """SISA with the gradient of all of a client's samples, all clients' last ``z_i`` kept in a running sum.

    All vectors are flat ``(P,)``; a client's own are made when it takes part for the first time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.params = trained(model)
        self.model = model
        self.states: dict[int, tuple[Tensor, Tensor, Tensor, int]] = {}
        self.sum_P = torch.zeros_like(nn.utils.parameters_to_vector(self.params).detach())

    def round(self, data: Data, cohort: Sequence[int]) -> None:
        """Take one preconditioned step in each client of a cohort, and the consensus."""
        w_P = nn.utils.parameters_to_vector(self.params).detach()
        for client in cohort:
            x, y = data.client(client)
            gradients = torch.autograd.grad(loss_of(self.model, x, y), self.params)
            zero_P = torch.zeros_like(w_P)
            dual_P, moment_P, z_P, count = self.states.get(client) or (zero_P, zero_P.clone(), zero_P, 0)
            q_P = torch.cat([gradient.flatten() for gradient in gradients]).add_(dual_P)
            moment_P.mul_(BETA).addcmul_(q_P, q_P, value=1 - BETA)
            share = -math.expm1((count + 1) * math.log(BETA))
            scale_P = moment_P.div(share).sqrt_().add_(EPS).mul_(RHO).add_(SIGMA)
            drift_P = q_P.div_(scale_P).neg_()
            dual_P = dual_P.add(drift_P, alpha=SIGMA)
            new_P = w_P + drift_P + dual_P / SIGMA
            self.sum_P.add_(new_P).sub_(z_P)
            self.states[client] = (dual_P, moment_P, new_P, count + 1)
        nn.utils.vector_to_parameters(self.sum_P / len(self.states), self.params)


def shuffled(work: Job) -> Batches:
    """Return what shuffles a client's samples anew and cuts them into mini-batches."""
    return lambda client: torch.randperm(work.workload.samples).split(work.workload.batch)


def rounds(work: Job) -> Iterator[None]:
    """Do the job."""
    torch.manual_seed(workloads.SEED)
    data, model = Data(work), model_of(work.workload.model)
    sisa = Sisa(model)
    while True:
        cohort = torch.randperm(work.workload.clients)[: work.workload.per_round].tolist()
        if work.algorithm == "sisa":
            sisa.round(data, cohort)
        else:
            fedavg_round(model, data, cohort, shuffled(work))
        yield


if __name__ == "__main__":
    report(job(), rounds(job()))
