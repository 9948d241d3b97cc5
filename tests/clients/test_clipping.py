"""Clipped gradients, mini-batches in pieces, and evaluations on a part of the test set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedpisa
from fedpisa import families
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.clipping import ClippedGradient, clip_factor, clipped
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.config.run import RunConfig
from fedpisa.rng import generator
from fedpisa.simulation.evaluated import eval_rows
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.stacked.fused_sgd import is_fusible
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.simulation.stacked.grid import VmapGrid, choose_path
from fedpisa.strategies.fedavg import LocalSGDUpdate
from fedpisa.tasks.supervised import supervised

GRADIENTS = {"autograd": AutogradGradient, "stacked": StackedGradient}
NEAR = {"rtol": 1e-12, "atol": 1e-14}


def line() -> nn.Module:
    """Return ``x -> w x`` with ``w = 2``; its squared error at target 0 is ``(w x)^2 / 2``."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 2.0)
    return module


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(sizes: tuple[int, ...] = (4, 2, 1, 0), seed: int = 1) -> MiniBatches:
    rng = torch.Generator().manual_seed(seed)
    count, most = len(sizes), max(sizes)
    x = torch.randn(count, most, 4, generator=rng, dtype=torch.float64)
    y = torch.randint(3, (count, most), generator=rng)
    weight = torch.zeros(count, most, dtype=torch.float64)
    for c, size in enumerate(sizes):
        weight[c, :size] = 1 / (max(size, 1) * sum(size > 0 for size in sizes))
    return MiniBatches(x, y, weight)


# ------------------------------------------------------------------------------------------------ clipping


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_quadratics_gradient_is_cut_to_the_norm(kind: str) -> None:
    """At ``w = 2`` the gradient of ``(w x)^2`` over ``x = 3`` is a known multiple of 18; only its length changes."""
    task = supervised(line(), None)
    x, y = torch.full((1, 1, 1), 3.0).double(), torch.zeros(1, 1, 1).double()
    batch, w_P = MiniBatches(x, y, torch.ones(1, 1).double()), torch.tensor([2.0]).double()
    loss, g_P = GRADIENTS[kind](task, torch.zeros(0))(w_P, batch)
    assert float(g_P) == pytest.approx(2 * float(loss) / 2.0)  # d(a w^2)/dw = 2 (a w^2) / w
    for c, wanted in ((0.5, 0.5), (float(g_P), float(g_P)), (100.0, float(g_P))):
        same, cut_P = ClippedGradient(GRADIENTS[kind](task, torch.zeros(0)), c)(w_P, batch)
        assert float(cut_P) == pytest.approx(wanted, rel=1e-14)
        assert same == loss


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_the_direction_stays_and_the_norm_is_the_smaller_one(values: list[float], c: float) -> None:
    g_P = torch.tensor(values, dtype=torch.float64)
    cut_P = g_P * clip_factor(g_P, c)
    assert float(cut_P.norm()) == pytest.approx(min(c, float(g_P.norm())), rel=1e-12)
    torch.testing.assert_close(cut_P * g_P.norm(), g_P * cut_P.norm(), **NEAR)
    if float(g_P.norm()) < c:
        assert cut_P.equal(g_P)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_all_derivatives_have_the_same_clipped_gradient(kind: str) -> None:
    task, batch = supervised(mlp(), 3), batches()
    w_P = task.initial_params()
    vectors_RP = torch.randn(2, len(w_P), generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def fresh() -> Any:
        return GRADIENTS[kind](task, torch.zeros(0))

    loss, g_P = fresh()(w_P, batch)
    c = float(g_P.norm()) / 3
    wanted_P = g_P / 3
    for found, cut_P in (
        ClippedGradient(fresh(), c)(w_P, batch),
        ClippedGradient(fresh(), c).with_hessian(w_P, batch, vectors_RP)[:2],
    ):
        torch.testing.assert_close(cut_P, wanted_P, **NEAR)
        torch.testing.assert_close(found, loss, **NEAR)
    _, rows_CP = ClippedGradient(fresh(), c).each(w_P, batch)
    torch.testing.assert_close(rows_CP.sum(0) / batch.num_batches, wanted_P, **NEAR)
    products = [one.with_hessian(w_P, batch, vectors_RP)[2] for one in (fresh(), ClippedGradient(fresh(), c))]
    assert products[0].equal(products[1])


def test_zero_is_off_and_clipped_sgd_is_not_fused() -> None:
    gradient = AutogradGradient(supervised(mlp(), 3), torch.zeros(0))
    assert clipped(gradient, 0.0) is gradient
    assert is_fusible(LocalSGDUpdate())
    assert not is_fusible(LocalSGDUpdate(), 1.0)


def bounded(lab: Any, algorithm: Any, engine: str, keys: Any = None, **settings: Any) -> Any:
    made = lab.make(algorithm, engine, fraction=0.5, **(keys or {}))
    made.task = replace(made.task, **settings)
    if engine == "vmap":
        made.grid = VmapGrid(made.task, algorithm.local_update, made.data, made.seed)
    return made.run(4)


def everything(made: Any) -> Tensor:
    """Return the model and the clients' states as one vector."""
    states = [value.flatten() for state in made.states() for _, value in sorted(state.items())]
    return torch.cat([made.params, *states])


RULES = [{"algorithm": "pisa", "preconditioner": rule} for rule in families.available("preconditioner")]
ALL = [{"algorithm": name} for name in families.available("algorithm")]


@pytest.mark.parametrize("keys", [*ALL, *RULES], ids=lambda keys: "-".join(keys.values()))
def test_engines_agree(lab: Any, keys: dict[str, str]) -> None:
    """Both engines clip alike, as the plain and the stacked path, and pieces change only rounding."""
    name, values = keys["algorithm"], {key: value for key, value in keys.items() if key != "algorithm"}
    algorithm = lab.Case(name, values).build(batches_per_round=2)
    loop, vmap = (bounded(lab, algorithm, engine, max_grad_norm=0.05) for engine in ("loop", "vmap"))
    pieces = bounded(lab, algorithm, "vmap", max_grad_norm=0.05, micro_batch_size=2)
    amplify = {"newton-schulz": 3e4, "hutchinson": 10, "spectral": 10}
    tolerance = 1e-12 * amplify.get(values.get("preconditioner", ""), 3e4 if name == "nsisa" else 10)
    assert pieces.grid.path == "autograd"
    for other in (vmap, pieces):
        assert lab.relative(everything(other), everything(loop)) <= tolerance
    assert lab.relative(everything(bounded(lab, algorithm, "vmap")), everything(loop)) > 1e-6


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def softplus() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Softplus(), nn.Linear(4, 3))


@pytest.mark.parametrize(("module", "path"), [(convolutional, "one-by-one"), (softplus, "stacked")])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_path_and_threads_clip(
    lab: Any, monkeypatch: pytest.MonkeyPatch, module: Any, path: str, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("fedpisa.simulation.stacked.cohort.WORTH_A_THREAD", 0)
    algorithm = lab.Case("fedavg", {}).build()
    keys = {"module": module, **lab.blobs(shape=(1, 6, 6))}
    loop, vmap = (bounded(lab, algorithm, engine, keys, max_grad_norm=0.05) for engine in ("loop", "vmap"))
    assert (vmap.grid.path, len(vmap.grid.copies)) == (path, threads - 1)
    assert lab.relative(vmap.params, loop.params) <= 1e-12
    assert lab.relative(bounded(lab, algorithm, "vmap", keys).params, loop.params) > 1e-6


def test_a_bound_out_of_reach_changes_nothing() -> None:
    config = {
        "algorithm": "fedavg",
        "num-clients": 3,
        "num-server-rounds": 2,
        "dtype": "float64",
        "engine": "loop",
    }
    free, bound, tight = (fedpisa.run({**config, "max-grad-norm": c}).rows[-1] for c in (0.0, 1e9, 1e-3))
    assert free["test_loss"] == bound["test_loss"]
    assert tight["test_loss"] > free["test_loss"]


# ------------------------------------------------------------------------------------------------- pieces


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any), st.integers(1, 8))
def test_pieces_add_up_to_the_mini_batch(sizes: list[int], micro: int) -> None:
    task, batch = supervised(mlp(), 3), batches(tuple(sizes))
    w_P = task.initial_params()
    vector_1P = torch.ones(1, len(w_P)).double()

    def of(size: int) -> list[Tensor]:
        gradient = AutogradGradient(replace(task, micro_batch_size=size), torch.zeros(0))
        return [
            *gradient(w_P, batch),
            *gradient.each(w_P, batch),
            *gradient.with_hessian(w_P, batch, vector_1P),
        ]

    for whole, parts in zip(of(0), of(micro), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)


def test_no_pass_has_more_samples_than_a_piece() -> None:
    task, seen = replace(supervised(mlp(), 3), micro_batch_size=3), list[int]()
    task.module[0].register_forward_pre_hook(lambda layer, inputs: seen.append(len(inputs[0])))
    AutogradGradient(task, torch.zeros(0))(task.initial_params(), batches((7, 2)))
    assert seen == [3, 3, 1, 2]


def test_pieces_take_the_autograd_path_and_say_why() -> None:
    made = Federation(RunConfig(num_clients=3, options={}, micro_batch_size=4))
    assert choose_path(made.task, made.data) == ("autograd", "micro-batch-size = 4")


def normed(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Return a model with BatchNorm."""
    layers = nn.Flatten(), nn.BatchNorm1d(int(np.prod(shape))), nn.Linear(int(np.prod(shape)), num_outputs)
    return nn.Sequential(*layers)


def test_batchnorm_refuses_pieces() -> None:
    keys = {"num_clients": 3, "model": f"{__name__}:normed"}
    assert Federation(RunConfig(**keys)).task.mixes_samples
    with pytest.raises(
        ValueError, match=r"^micro-batch-size = 4: .*; set micro-batch-size = 0, or .*BatchNorm$"
    ):
        Federation(RunConfig(**keys, micro_batch_size=4))


# --------------------------------------------------------------------------------------------- evaluation


def test_evaluations_use_the_samples_of_the_stream() -> None:
    some, whole = (
        Federation(RunConfig(num_clients=3, validation_fraction=0.2, eval_samples=count)) for count in (20, 0)
    )
    for number, part in enumerate(("test", "validation")):
        size = whole.evaluated[part].num_samples
        rows = np.sort(generator(0, "eval-samples", number).choice(size, 20, replace=False))
        assert some.evaluated[part].x.equal(whole.evaluated[part].x[rows])
        assert some.evaluated[part].y.equal(whole.evaluated[part].y[rows])
    assert some.data_digest() == whole.data_digest()
    assert some.validation_rows.tolist() == whole.validation_rows.tolist()


@pytest.mark.parametrize("count", [0, 9, 10**6])
def test_more_samples_than_there_are_is_all(count: int) -> None:
    assert eval_rows(np.arange(9), count, 0, 0).tolist() == list(range(9))


def test_algorithms_of_a_seed_are_evaluated_on_the_same_samples() -> None:
    one, other, later = (
        Federation(RunConfig(algorithm=name, num_clients=3, seed=seed, eval_samples=20)).test.x
        for name, seed in (("fedavg", 0), ("sisa", 0), ("sisa", 1))
    )
    assert one.equal(other)
    assert not one.equal(later)


def test_a_run_measures_its_part_of_the_test_set() -> None:
    config = {"algorithm": "fedavg", "num-clients": 3, "num-server-rounds": 1, "eval-samples": 20}
    row = fedpisa.run(config).rows[-1]
    assert row["test_accuracy"] * 20 == pytest.approx(round(row["test_accuracy"] * 20))
