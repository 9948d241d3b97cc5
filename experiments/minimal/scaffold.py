"""SCAFFOLD (Karimireddy et al., 2020; option II) on one page: `fedpisa/strategies/scaffold.py` in plain PyTorch.

``clients[i]`` holds the samples ``(x, y)`` of client i, and ``weights[i]`` its weight, by default 1/N as in the paper.
``batches(i, t)`` gives the positions of the samples of each local step of client i in round t = 1, 2, ...;
``cohort(t)`` gives the clients of round t. By default, each step uses all samples and each round uses all clients.
"""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def gradient(model, loss, w, x, y):
    vector_to_parameters(w, model.parameters())
    return parameters_to_vector(torch.autograd.grad(loss(model(x), y), list(model.parameters())))


def scaffold(
    model, loss, clients, rounds, lr=0.1, server_lr=1.0, steps=5, weights=None, batches=None, cohort=None
):
    """Return the global model after each round, as flat vectors."""
    w = parameters_to_vector(model.parameters()).detach()
    c, control = torch.zeros_like(w), [torch.zeros_like(w) for _ in clients]
    alpha = weights or [1 / len(clients)] * len(clients)
    history = []
    for t in range(1, rounds + 1):
        members = cohort(t) if cohort else range(len(clients))
        drift, change = torch.zeros_like(w), torch.zeros_like(w)
        for i in members:
            x, y = clients[i]
            v, k = w, 0
            for b in batches(i, t) if batches else [slice(None)] * steps:
                v = v - lr * (gradient(model, loss, v, x[b], y[b]) - control[i] + c)
                k += 1
            new = control[i] - c + (w - v) / (k * lr)
            drift, change = drift + alpha[i] * (v - w), change + alpha[i] * (new - control[i])
            control[i] = new
        w, c = w + server_lr * drift / sum(alpha[i] for i in members), c + change
        history.append(w)
    return history
