"""Both engines agree with each other, with independent implementations, and between repeated runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpisa
from fedpisa import components
from fedpisa.clients.batches import Epochs, Periodic
from fedpisa.flower.compat import to_record

pytestmark = pytest.mark.filterwarnings("error")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
# Some rules amplify rounding errors. The diagonal of a Hessian sums larger terms of both signs. Five
# Newton-Schulz steps multiply a singular value near zero by 485, and the momentum keeps the error. ProxSkip's
# momentum accumulates over random numbers of steps: one addition's rounding makes 0.84e-6 or 1.05e-6. The root of
# the spectral rule makes an error of 1e-6 in a small eigenvalue one of 1e-3 in Q.
AMPLIFY = {"hutchinson": 10.0, "newton-schulz": 3e4, "scaffnew with momentum": 3.0, "spectral": 10.0}


def amplified(tolerance: float, case: Any) -> float:
    update = case.build().local_update
    rules = [getattr(update, "preconditioner", None), *(getattr(update, "rules", None) or {}).values()]
    names = [components.name_of(rule) for rule in rules]
    if case.name == "scaffnew" and "momentum" in case.values:
        names = ["scaffnew with momentum"]
    return tolerance * max(AMPLIFY.get(name, 1.0) for name in names)


def assert_same(lab: Any, loop: Any, stacked: Any, tolerance: float) -> None:
    for name, wanted in loop.model().items():
        assert lab.relative(stacked.model()[name], wanted) <= tolerance, name
    for client_id, (got, wanted) in enumerate(zip(stacked.states(), loop.states(), strict=True)):
        assert got.keys() == wanted.keys()
        for name in wanted:  # differences like pi + g lose some digits
            assert lab.relative(got[name], wanted[name]) <= 5 * tolerance, (client_id, name)


def test_engines_agree(lab: Any, case: Any, dtype: str) -> None:
    """The engines agree over ten rounds with half of the clients, which have 1 to 50 samples each."""
    loop, stacked = (
        lab.make(case.build(), engine, dtype=lab.dtypes[dtype], fraction=0.5).run(10)
        for engine in ("loop", "vmap")
    )
    tolerance = amplified(TOLERANCE[dtype], case)
    assert_same(lab, loop, stacked, tolerance)
    for a, b in zip(loop.history, stacked.history, strict=True):
        assert (a.bytes_up, a.bytes_down) == (b.bytes_up, b.bytes_down)
        assert a.train_metrics.keys() == b.train_metrics.keys()
        for name, wanted in a.train_metrics.items():
            assert b.train_metrics[name] == pytest.approx(wanted, rel=max(1e-4, tolerance), abs=1e-5), name


def batchnorm_mlp(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, **options), nn.Tanh(), nn.Linear(6, 3))


def assert_same_with_batchnorm(lab: Any, case: Any, **options: Any) -> None:
    loop, stacked = (
        lab.make(case.build(), engine, module=lambda: lab.fill(batchnorm_mlp(**options)), fraction=0.5).run(5)
        for engine in ("loop", "vmap")
    )
    assert all(bool(torch.isfinite(value).all()) for value in loop.model().values())
    # A client of one sample has variance 0; its division by sqrt(eps) amplifies rounding 300-fold.
    assert_same(lab, loop, stacked, amplified(1e-10, case))


def test_engines_agree_with_batchnorm(lab: Any, case: Any) -> None:
    """Each mini-batch has its own statistics, even if a step averages several gradients.

    The buffers belong to the model.
    """
    assert_same_with_batchnorm(lab, case)


@pytest.mark.parametrize(
    "options",
    [{"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
@pytest.mark.parametrize(
    ("algorithm", "values"),
    [("fedavg", {}), ("fedsgd", {"batches-per-round": 3}), ("pisa", {"batches-per-round": "all"})],
    ids=str,
)
def test_engines_agree_with_every_batchnorm(
    lab: Any, algorithm: str, values: dict[str, Any], options: dict[str, Any]
) -> None:
    assert_same_with_batchnorm(lab, lab.Case(algorithm, values), **options)


class Convolutional(nn.Module):
    """A small network with convolution, pooling and GroupNorm, the layers of federated papers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("algorithm", ["sisa", "fedavg"])
def test_engines_agree_on_a_convolutional_network(lab: Any, algorithm: str, dtype: str) -> None:
    data = lab.blobs((3, 1, 9, 2), shape=(1, 8, 8))
    case = lab.Case(algorithm, {})
    loop, stacked = (
        lab.make(
            case.build(), engine, module=lambda: lab.fill(Convolutional()), dtype=lab.dtypes[dtype], **data
        ).run(10)
        for engine in ("loop", "vmap")
    )
    assert_same(lab, loop, stacked, TOLERANCE[dtype])


@pytest.mark.parametrize("num_classes", [None, 2])
def test_engines_agree_on_one_output(lab: Any, num_classes: int | None) -> None:
    """The engines agree on regression and on two classes with one logit."""
    data = {**lab.blobs(), "num_classes": num_classes}
    data["y"] = data["y"] > 0
    data["y"] = data["y"].astype(np.float64 if num_classes is None else np.int64)
    loop, stacked = (
        lab.make(lab.Case("sisa", {}).build(), engine, module=lambda: lab.mlp(outputs=1), **data).run(5)
        for engine in ("loop", "vmap")
    )
    assert_same(lab, loop, stacked, 1e-12)


# ------------------------------------------------------------------------------------- independent twins


def test_fedavg_is_a_plain_pytorch_loop(lab: Any, engine: str) -> None:
    """FedAvg equals `torch.optim.SGD` with momentum and weight decay, averaged with weights ``n_i / n``."""
    algorithm = lab.Case("fedavg", {"momentum": 0.9, "weight-decay": 0.05, "local-epochs": 2}).build()
    federation = lab.make(algorithm, engine).run(4)

    model = lab.mlp().double()
    sizes = federation.data.sizes_N
    for server_round in range(1, 5):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for client_id, size in enumerate(sizes):
            x, y = federation.data.client(client_id)
            local = lab.mlp().double()
            local.load_state_dict(model.state_dict())
            optimizer = torch.optim.SGD(local.parameters(), lr=0.05, momentum=0.9, weight_decay=0.05)
            plan = Epochs(4, 2).draw(np.array([size]), np.array([client_id]), server_round, 0)
            for step in range(int(plan.steps_S[0])):
                rows = plan.index_SKCB[0, step, 0][plan.weight_SKCB[0, step, 0] > 0]
                optimizer.zero_grad()
                nn.functional.cross_entropy(local(x[rows]), y[rows]).backward()
                optimizer.step()
            for sum_, parameter in zip(total, local.parameters(), strict=True):
                sum_ += parameter.detach() * (size / sizes.sum())
        with torch.no_grad():
            for parameter, mean in zip(model.parameters(), total, strict=True):
                parameter.copy_(mean)
    wanted = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert lab.relative(federation.params, wanted) <= 1e-12


def test_sisa_is_a_handwritten_numpy_loop(lab: Any, engine: str) -> None:
    """SISA equals (2.9)-(2.14) with Scheme III in NumPy: a growing ``sigma``, two local steps, ``mu``.

    The problem is least squares.
    """
    rng = np.random.default_rng(5)
    sizes, beta, lambda_, mu, rho, gamma = (7, 1, 20, 2), 0.9, 0.2, 0.1, 2.0, 0.9
    x, y, w0 = rng.normal(size=(30, 4)), rng.normal(size=30), rng.normal(size=4)
    linear = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(w0))
    keys = {
        "beta": beta,
        "lambda": lambda_,
        "mu": mu,
        "gamma": gamma,
        "local-steps": 2,
        "batches-per-round": 2,
    }
    federation = lab.Federation(
        lab.Case("sisa", keys).build(), linear, x, y, lab.split(sizes), engine, num_classes=None
    ).run(6)

    n = np.array(sizes)
    alpha, sigma = n / n.sum(), 1.0
    local, dual, moment = np.tile(w0, (4, 1)), np.zeros((4, 4)), np.zeros((4, 4))
    updates = np.zeros(4)

    def consensus() -> np.ndarray:
        return alpha @ (sigma * local + dual) / (sigma + lambda_)

    w = consensus()
    for server_round in range(1, 7):
        sigma /= gamma
        for i, rows in enumerate(lab.split(sizes)):
            plan = Periodic(4, 2, 2).draw(n[[i]], np.array([i]), server_round, 0)
            v = w.copy()
            for k in range(2):
                g = np.zeros(4)
                for c in range(2):
                    batch = rows[plan.index_SKCB[0, k, c][plan.weight_SKCB[0, k, c] > 0]]
                    g += x[batch].T @ (x[batch] @ v - y[batch]) / len(batch) / 2
                q = dual[i] + g + mu * v
                updates[i] += 1
                moment[i] = beta * moment[i] + (1 - beta) * q * q
                scale = np.sqrt(moment[i] / (1 - beta ** updates[i])) + 1e-8
                v = v - (q + sigma * (v - w)) / (sigma + rho * scale)
            local[i] = v
            dual[i] = dual[i] + sigma * (v - w)
        w = consensus()
    assert lab.relative(federation.params, torch.from_numpy(w)) <= 1e-12
    for i, state in enumerate(federation.states()):
        assert lab.relative(state["dual"], torch.from_numpy(dual[i])) <= 1e-11
        assert lab.relative(state["second-moment"], torch.from_numpy(moment[i])) <= 1e-11


# -------------------------------------------------------------------------------------------- repetition


@pytest.mark.parametrize("algorithm", ["sisa", "fedavg", "fedsgd"])
def test_the_same_config_gives_the_same_bytes(algorithm: str, engine: str, tmp_path: Path) -> None:
    config = {
        "algorithm": algorithm, "engine": engine, "num-server-rounds": 3, "num-clients": 5, "model": "mlp",
        "widths": [16], "fraction-train": 0.6, "seed": 3,
    }  # fmt: skip
    for out in ("a", "b"):
        fedpisa.run(config, out=tmp_path / out)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    other = fedpisa.run({**config, "seed": 4}, out=tmp_path / "c")
    assert other.status == "finished"
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_dropout_repeats_itself(lab: Any, engine: str) -> None:
    """Dropout draws from the run's seed and leaves torch's global generator unchanged."""

    def module() -> nn.Module:
        return lab.fill(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))

    federations = [
        lab.make(lab.Case("fedavg", {}).build(), engine, module=module, seed=seed) for seed in (0, 0, 1)
    ]
    before = torch.get_rng_state()
    a, b, c = (federation.run(3).params for federation in federations)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_differs_between_clients_and_rounds(lab: Any, engine: str) -> None:
    """Two clients with the same samples draw different masks, and each draws new masks every round."""
    data = {"x": np.ones((2, 4)), "y": np.zeros(2, np.int64), "partition": lab.split((1, 1))}

    def module() -> nn.Module:
        return lab.fill(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))

    federation = lab.make(lab.Case("pisa", {}).build(), engine, module=module, **data)
    uploads = []
    for server_round in (1, 2):
        requests = federation.strategy.configure_train(server_round, federation.initial, {}, federation.grid)
        replies = federation.grid.send_and_receive(requests)
        uploads += [tuple(reply.content["arrays"]["z"].numpy()) for reply in replies]
    assert len(set(uploads)) > 2


def test_frozen_parameters_stay(lab: Any, engine: str) -> None:
    """A frozen parameter stays in the module: it is neither trained nor sent."""

    def module() -> nn.Module:
        model = lab.mlp()
        model[0].weight.requires_grad_(False)
        return model

    federation = lab.make(lab.Case("sisa", {}).build(), engine, module=module).run(2)
    assert "0.weight" not in federation.task.layout.names
    assert torch.equal(federation.task.module[0].weight, module()[0].weight.double())
    assert len(federation.params) == sum(p.numel() for p in module().parameters()) - 24
    assert lab.relative(federation.params, federation.task.initial_params()) > 1e-3


def test_a_result_has_the_frozen_parameters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frozen_model.py").write_text(
        "from torch import nn\n"
        "def build(shape, num_outputs):\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_outputs))\n"
        "    model[1].requires_grad_(False)\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"model": "frozen_model:build", "num-clients": 3}
    short, long = (fedpisa.run({**config, "num-server-rounds": n}).parameters for n in (1, 3))
    assert set(short) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    np.testing.assert_array_equal(short["1.weight"], long["1.weight"])
    assert not np.array_equal(short["3.weight"], long["3.weight"])


def test_rows_are_finite_json(tmp_path: Path) -> None:
    fedpisa.run({"num-server-rounds": 2, "model": "logistic", "fraction-train": 0.3}, out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(value is not None for row in rows for value in row.values())


def test_records_hold_the_dtype(lab: Any, dtype: str) -> None:
    record = to_record({"params": torch.zeros(3, dtype=lab.dtypes[dtype])})
    assert record["params"].numpy().dtype == dtype
