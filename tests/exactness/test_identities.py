"""PISA equals Algorithm 1 line by line, and contains other methods as special cases."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.config.run import RunConfig
from fedpisa.runs.runner import Simulation
from fedpisa.strategies.admm import solve_consensus
from fedpisa.strategies.base import Cohort
from fedpisa.strategies.pisa import Pisa
from fedpisa.tasks.layout import ParamLayout

ROUNDS = 20


def problem(lab: Any, name: str) -> dict[str, object]:
    return {"quadratic": lab.QUADRATIC, "softmax": lab.SOFTMAX}[name]


def weights_of(lab: Any, clients: list[Any], weighting: str) -> np.ndarray:
    return lab.by_samples(clients) if weighting == "num-examples" else np.full(len(clients), 1 / len(clients))


def start_of(clients: list[Any], name: str) -> np.ndarray:
    size = clients[0].x.shape[1] * (10 if name == "softmax" else 1)
    return np.random.default_rng(0).normal(size=size)


# ------------------------------------------------------------------------------------- Algorithm 1

PLAIN = {"scheme": "identity", "sigma": 2.0, "rho": 3.0}
VARIANTS = {
    "plain": PLAIN,
    "lambda-mu": {**PLAIN, "lambda_": 0.3, "mu": 0.2},
    "gamma": {**PLAIN, "gamma": 0.8, "gamma_every": 3, "lambda_": 0.3},
    "identity-eta": {**PLAIN, "eta": 0.4},
    "local-steps": {**PLAIN, "local_steps": 3, "mu": 0.2},
    **{scheme: {**PLAIN, "scheme": scheme, "beta": 0.9} for scheme in ("adagrad", "rmsprop", "adam")},
    "constant": {**PLAIN, "scheme": "adam", "beta": 0.9, "bias_correction": "constant"},
    **{
        f"{scheme}-all": {
            **PLAIN, "scheme": scheme, "beta": 0.9, "eps": 1e-3, "eta": 0.3, "local_steps": 2,
            "lambda_": 0.3, "mu": 0.2, "gamma": 0.9,
        }
        for scheme in ("adagrad", "rmsprop", "adam")
    },
    **{
        f"{scheme}-amsgrad": {**PLAIN, "scheme": scheme, "beta": 0.5, "local_steps": 2, "amsgrad": True}
        for scheme in ("rmsprop", "adam")
    },
}  # fmt: skip


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["quadratic", "softmax"])
def test_algorithm_1_line_by_line(lab: Any, name: str, variant: str, engine: str) -> None:
    """Models and multipliers of every round equal (2.9)-(2.14) in NumPy.

    The clients are non-IID and differ in size.
    """
    options = VARIANTS[variant]
    keys = {key.rstrip("_").replace("_", "-"): value for key, value in options.items()}
    keys["preconditioner"] = keys.pop("scheme")
    if keys["preconditioner"] == "adagrad":
        del keys["beta"]
    values = {**problem(lab, name), **keys, "algorithm": "pisa", "num-server-rounds": 8, "engine": engine}
    clients = lab.clients_of(values)
    start = start_of(clients, name)
    got = lab.trace(values, start)
    gradients = [client.gradient for client in clients]
    reference = lab.pisa(gradients, lab.by_samples(clients), start, **options)
    for t, wanted in enumerate(islice(reference, 8)):
        assert lab.relative(got.params[t], wanted.w) <= 1e-13
        assert lab.relative(got.params[t + 1], wanted.after) <= 1e-13
        assert lab.relative(got.duals[t + 1], wanted.dual) <= 1e-12


@pytest.mark.parametrize("absent", ["keep", "drop"])
def test_the_first_broadcast_is_pulled_to_zero_by_lambda(lab: Any, absent: str) -> None:
    """The first broadcast is (2.9) at ``w_i = w^0``, ``pi_i = 0``."""
    values = {
        "algorithm": "pisa", "model": "mlp", "widths": [5], "dtype": "float64",
        "sigma": 0.5, "lambda": 0.25, "gamma": 0.5, "absent": absent,
    }  # fmt: skip
    simulation = Simulation(RunConfig.from_mapping(values))
    initial = simulation.federation.initial_model()["params"].numpy()
    (request, *_) = list(simulation.strategy.configure_train(1, simulation.model, {}, simulation.grid))
    sent = request.content["arrays"]["params"].numpy()
    assert np.abs(initial).max() > 0
    assert np.array_equal(sent, initial * (0.5 / 0.75))


# ---------------------------------------------------------------------------------- special cases


@pytest.mark.parametrize("name", ["quadratic", "softmax"])
@pytest.mark.parametrize("weighting", ["num-examples", "uniform"])
def test_with_rho_equal_sigma_pisa_is_fedsgd(lab: Any, name: str, weighting: str) -> None:
    """The multipliers cancel, which leaves FedSGD with learning rate ``1/sigma``.

    ``pi' = (pi - g)/2`` and ``sigma w_i + pi' = sigma w - g``.
    """
    sigma = 4.0
    values = {
        **problem(lab, name), "algorithm": "pisa", "num-server-rounds": ROUNDS,
        "sigma": sigma, "rho": sigma, "weighting": weighting,
    }  # fmt: skip
    clients = lab.clients_of(values)
    alpha = weights_of(lab, clients, weighting)
    w = start_of(clients, name)
    got = lab.trace(values, w)
    for t in range(ROUNDS + 1):
        assert lab.relative(got.params[t], w) <= 4e-15
        w = w - sum(a * client.gradient(w) for a, client in zip(alpha, clients, strict=True)) / sigma


@pytest.mark.parametrize("name", ["quadratic", "softmax"])
def test_with_rho_equal_sigma_pisa_is_our_own_fedsgd(lab: Any, name: str) -> None:
    shared = {**problem(lab, name), "num-server-rounds": ROUNDS}
    pisa = lab.trace({**shared, "algorithm": "pisa", "sigma": 4.0, "rho": 4.0})
    fedsgd = lab.trace({**shared, "algorithm": "fedsgd", "learning-rate": 0.25})
    for t in range(1, ROUNDS + 1):
        assert lab.relative(pisa.params[t], fedsgd.params[t]) <= 4e-15


@pytest.mark.parametrize("name", ["quadratic", "softmax"])
@pytest.mark.parametrize("weighting", ["num-examples", "uniform"])
def test_with_rho_zero_pisa_is_the_optimistic_gradient_method(lab: Any, name: str, weighting: str) -> None:
    """PISA then takes the step ``w - (2 G - G_before)/sigma``.

    ``pi' = -g`` and ``sigma w_i + pi' = sigma w - 2 g - pi``.
    """
    sigma = 6.0
    values = {
        **problem(lab, name), "algorithm": "pisa", "num-server-rounds": ROUNDS,
        "sigma": sigma, "rho": 0.0, "weighting": weighting,
    }  # fmt: skip
    clients = lab.clients_of(values)
    alpha = weights_of(lab, clients, weighting)
    w = start_of(clients, name)
    before = np.zeros_like(w)
    got = lab.trace(values, w)
    for t in range(ROUNDS + 1):
        assert lab.relative(got.params[t], w) <= 4e-15
        now = sum(a * client.gradient(w) for a, client in zip(alpha, clients, strict=True))
        w, before = w - (2 * now - before) / sigma, now


# ------------------------------------------------------------------------------- sum and mean


def three_parabolas(folder: Path) -> dict[str, object]:
    """Return three clients with ``f_i = (w - m_i)^2 / 2``, ``m = 0, 1, 5``, of 640, 2560 and 9600 samples."""
    sizes = (640, 2560, 9600)
    y = np.repeat([0.0, 1.0, 5.0], sizes)
    x = np.ones((len(y), 1))
    path = folder / "parabolas.npz"
    np.savez(path, x=x, y=y, groups=np.repeat([0, 1, 2], sizes), x_test=x[:1], y_test=y[:1])
    return {
        "dataset": "file", "data-file": str(path), "partitioner": "natural", "num-clients": 3,
        "model": "linear", "batch-size": 64, "batches-per-round": "all", "algorithm": "pisa", "regression": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reduction", "sigma", "exponent", "rounded"), [("mean", 1.0, 1, 3.950), ("sum", 150.0, 2, 4.715)]
)
def test_where_three_parabolas_end(
    lab: Any, tmp_path: Path, reduction: str, sigma: float, exponent: int, rounded: float
) -> None:
    """The mean weighs clients by ``n_i``, the sum over mini-batches by ``n_i^2``.

    The number of a client's mini-batches is proportional to ``n_i`` too.
    """
    weights = np.array([640.0, 2560.0, 9600.0]) ** exponent
    end = weights @ [0.0, 1.0, 5.0] / weights.sum()
    assert round(end, 3) == rounded
    values = {
        **three_parabolas(tmp_path), "gradient-reduction": reduction, "sigma": sigma, "rho": sigma,
        "num-server-rounds": 80, "eval-every": 80,
    }  # fmt: skip
    assert lab.trace(values).params[-1] == pytest.approx([end], abs=1e-12)


@pytest.mark.parametrize("preconditioner", ["identity", "adagrad", "rmsprop", "adam"])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_with_equal_numbers_of_batches_sum_is_a_rescaled_mean(
    lab: Any, preconditioner: str, engine: str
) -> None:
    """The sum with ``(sigma, rho, lambda)`` equals the mean with ``(sigma/c, rho, lambda/c)``.

    The mean's multipliers are c times smaller. ``identity`` does not grow with the gradient, so it needs
    ``rho/c`` instead of ``rho``.
    """
    batches, sigma, rho, lambda_ = 7, 14.0, 3.0, 0.7
    values = {
        "dataset": "digits", "model": "logistic", "bias": False, "partitioner": "iid", "num-clients": 4,
        "algorithm": "pisa", "preconditioner": preconditioner, "engine": engine, "batch-size": 52,
        "batches-per-round": "all", "num-server-rounds": 10,
    }  # fmt: skip
    if preconditioner != "identity":
        values["eps"] = 0.0
    assert {-(-client.size // 52) for client in lab.clients_of(values)} == {batches}
    scaled = rho / batches if preconditioner == "identity" else rho
    start = start_of(lab.clients_of(values), "softmax")
    added = {**values, "gradient-reduction": "sum", "sigma": sigma, "rho": rho, "lambda": lambda_}
    averaged = {**values, "sigma": sigma / batches, "rho": scaled, "lambda": lambda_ / batches}
    total, mean = lab.trace(added, start), lab.trace(averaged, start)
    for t in range(1, 11):
        assert lab.relative(total.params[t], mean.params[t]) <= 1e-12
        assert lab.relative(total.duals[t], batches * mean.duals[t]) <= 1e-12


# --------------------------------------------------------------------------------------- the server


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("weighting", ["num-examples", "uniform"])
def test_with_everybody_there_keep_and_drop_are_the_same_bits(lab: Any, engine: str, weighting: str) -> None:
    values = {
        **lab.SOFTMAX, "algorithm": "sisa", "batch-size": 32, "sigma": 0.5, "rho": 2.0, "lambda": 0.01,
        "gamma": 0.9, "gamma-every": 2, "weighting": weighting, "engine": engine, "num-server-rounds": 6,
    }  # fmt: skip
    keep, drop = (lab.trace({**values, "absent": absent}) for absent in ("keep", "drop"))
    for t in range(7):
        assert np.array_equal(keep.params[t], drop.params[t])


def test_one_vector_up_says_what_two_would() -> None:
    """(2.9) gives the same model from ``w_i`` and ``pi_i`` as from ``z_i = w_i + pi_i / sigma_i``.

    Each client has its own sigma.
    """
    rng = np.random.default_rng(0)
    local, dual = rng.normal(size=(2, 5, 7))
    alpha, sigma, lambda_ = rng.dirichlet(np.ones(5)), rng.uniform(0.1, 3, 5), 0.3
    two = alpha @ (sigma[:, None] * local + dual) / (alpha @ sigma + lambda_)
    z = local + dual / sigma[:, None]
    one = solve_consensus(*map(torch.from_numpy, (alpha, sigma, z)), lambda_)
    np.testing.assert_allclose(one.numpy(), two, rtol=1e-13)


def test_a_reply_that_comes_twice_changes_nothing() -> None:
    """Uploads are absolute, so a server step with the same replies changes neither model nor memory."""
    rng = np.random.default_rng(0)
    algorithm = Pisa(PisaUpdate(sigma=0.5, gamma=0.9), lambda_=0.1)
    layout = ParamLayout.of([("weight", torch.zeros(4))])
    sizes = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64)
    server = algorithm.init(torch.from_numpy(rng.normal(size=4)), layout)
    for ids in ([0, 1, 2], [2], [0, 2]):
        cohort = Cohort(torch.tensor(ids), sizes[ids], server_round=1, num_clients=3, layout=layout)
        uploads = {"z": torch.from_numpy(rng.normal(size=(len(ids), 4)))}
        once = {name: value.clone() for name, value in algorithm.step(server, uploads, cohort).items()}
        twice = algorithm.step({name: value.clone() for name, value in once.items()}, uploads, cohort)
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[name], twice[name]) for name in once)
        server = once


def test_a_lost_reply_is_made_good_by_the_next_one() -> None:
    """The model depends only on each client's last reply."""
    rng = np.random.default_rng(0)
    algorithm = Pisa(PisaUpdate(sigma=0.5), lambda_=0.1)
    layout = ParamLayout.of([("weight", torch.zeros(4))])
    sizes = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64)
    start = torch.from_numpy(rng.normal(size=4))
    z = {round_: torch.from_numpy(rng.normal(size=(3, 4))) for round_ in (1, 2, 3)}

    def model(arrived: dict[int, list[int]]) -> torch.Tensor:
        server = algorithm.init(start.clone(), layout)
        for server_round, ids in arrived.items():
            cohort = Cohort(torch.tensor(ids), sizes[ids], server_round, 3, layout)
            server = algorithm.step(server, {"z": z[server_round][ids].clone()}, cohort)
        return server["params"]

    everything = model({1: [0, 1, 2], 2: [0, 1, 2], 3: [0, 1, 2]})
    with_losses = model({1: [0, 2], 2: [1], 3: [0, 1, 2]})
    assert torch.equal(everything, with_losses)
