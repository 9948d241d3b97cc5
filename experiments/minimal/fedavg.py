"""FedAvg (McMahan et al., 2017) on one page: `fedpisa/strategies/fedavg.py` in plain PyTorch.

``clients[i]`` holds the samples ``(x, y)`` of client i. ``batches(i, t)`` gives the positions of the samples of each
local step of client i in round t = 1, 2, ...; ``cohort(t)`` gives the clients of round t. By default, each step uses
all samples and each round uses all clients.
"""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def gradient(model, loss, w, x, y):
    vector_to_parameters(w, model.parameters())
    return parameters_to_vector(torch.autograd.grad(loss(model(x), y), list(model.parameters())))


def fedavg(model, loss, clients, rounds, lr=0.1, steps=5, batches=None, cohort=None):
    """Return the global model after each round, as flat vectors."""
    w = parameters_to_vector(model.parameters()).detach()
    history = []
    for t in range(1, rounds + 1):
        mean, n = torch.zeros_like(w), 0
        for i in cohort(t) if cohort else range(len(clients)):
            x, y = clients[i]
            v = w
            for b in batches(i, t) if batches else [slice(None)] * steps:
                v = v - lr * gradient(model, loss, v, x[b], y[b])
            mean, n = mean + len(y) * v, n + len(y)
        w = mean / n
        history.append(w)
    return history
