"""PISA and SISA (arXiv 2502.10784) on one page: `fedpisa/strategies/{pisa,sisa}.py` in plain PyTorch.

``clients[i]`` holds the samples ``(x, y)`` of client i. ``batches(i, t)`` gives the positions of the samples of each
local step of client i in round t = 1, 2, ...; ``cohort(t)`` gives the clients of round t. By default, each step uses
all samples and each round uses all clients. An absent client counts with its last upload. Equation numbers are the
paper's.
"""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def gradient(model, loss, w, x, y):
    vector_to_parameters(w, model.parameters())
    return parameters_to_vector(torch.autograd.grad(loss(model(x), y), list(model.parameters())))


def pisa(
    model, loss, clients, rounds, sigma=0.3, rho=10, lambda_=0, beta=None, steps=1, batches=None, cohort=None
):
    """Return the global model after each round, as flat vectors. With ``beta`` it is SISA (Scheme III)."""
    w = parameters_to_vector(model.parameters()).detach()
    dual, moment = ([torch.zeros_like(w) for _ in clients] for _ in range(2))
    count, z, history = [0] * len(clients), {}, []
    w = sigma * w / (sigma + lambda_)  # (2.9) at the start
    for t in range(1, rounds + 1):
        for i in cohort(t) if cohort else range(len(clients)):
            x, y = clients[i]
            v = w
            for b in batches(i, t) if batches else [slice(None)] * steps:
                q = dual[i] + gradient(model, loss, v, x[b], y[b])  # (2.10)
                scale = 1.0  # (2.11), the diagonal of Q
                if beta is not None:
                    count[i] += 1
                    moment[i] = beta * moment[i] + (1 - beta) * q * q
                    scale = (moment[i] / (1 - beta ** count[i])).sqrt() + 1e-8
                v = v - (q + sigma * (v - w)) / (sigma + rho * scale)  # (2.13)
            dual[i] = dual[i] + sigma * (v - w)  # (2.14)
            z[i] = v + dual[i] / sigma  # the client's upload
        n = sum(len(clients[i][1]) for i in z)
        mean = sum(len(clients[i][1]) / n * z[i] for i in z)
        w = sigma * mean / (sigma + lambda_)  # (2.9)
        history.append(w)
    return history
