"""The contract that every algorithm meets with every key; `tests/algorithms.py` lists the cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpisa import rng
from fedpisa.clients.base import Arrays
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.stacked.cohort import run_cohort

pytestmark = pytest.mark.filterwarnings("error")


# sigma exceeds every client's curvature and the steps are stable, so rounding errors do not grow.
STIFF = {"sigma": 50.0, "learning_rate": 0.01}


def linear(weight: Tensor) -> nn.Module:
    module = nn.Linear(len(weight), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(weight)
    return module


def shrinks(case: Any) -> bool:
    """Return whether the algorithm pulls the model to zero.

    Only zero can then be stationary for all clients.
    """
    return bool({"lambda", "mu", "weight-decay"} & case.values.keys())


# ---------------------------------------------------------------------------------------- stationarity


def test_a_point_that_suits_every_client_stays(lab: Any, exact_case: Any, engine: str) -> None:
    """At ``w*`` every sample's gradient is exactly zero, so the model and the duals do not move.

    ``y = X w*`` in small integers, so that the residual is exactly zero; ``w* = 0`` where there is a
    regularizer. Only the averages ``sum alpha_i w*`` may round.
    """
    algorithm = exact_case.build(**STIFF)
    optimum = torch.zeros(4) if shrinks(exact_case) else torch.tensor([1.0, -2.0, 3.0, 0.0])
    x = np.random.default_rng(0).integers(-3, 4, (sum(lab.SIZES), 4)).astype(float)
    federation = lab.Federation(
        algorithm, linear(optimum), x, x @ optimum.numpy(), lab.split(lab.SIZES), engine, num_classes=None
    )
    for finished in federation.rounds(5):
        moved = torch.from_numpy(finished.arrays["params"].numpy()) - optimum
        assert float(moved.abs().max()) <= 1e-13
        assert finished.train_metrics["train-loss"] <= 1e-26
    for state in federation.states():
        if "dual" in state:
            assert float(state["dual"].abs().max()) <= 1e-12


def test_the_optimum_with_its_multipliers_stays(lab: Any, exact_dual_case: Any, engine: str) -> None:
    """The optimum of heterogeneous clients is stationary together with its multipliers.

    ``w_i = w*``, ``pi_i = -grad F_i(w*)``, ``sum alpha_i pi_i = lambda w*``. The problem is least squares
    with full batches, and the optimum solves the normal equations. FedAvg has no such point: its clients move
    away from the optimum.
    """
    # One mini-batch makes the mean and the sum equal. FedPD must not skip: a lone client leaves the optimum.
    algorithm = exact_dual_case.build(batch_size="full", batches_per_round=1, skip_probability=0.0, **STIFF)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(sum(lab.SIZES), 4)), rng.normal(size=sum(lab.SIZES))
    parts = lab.split(lab.SIZES)
    uniform = algorithm.weighting == "uniform"
    alpha = np.full(len(parts), 1 / len(parts)) if uniform else np.array(lab.SIZES) / sum(lab.SIZES)
    mu, lambda_ = algorithm.local_update.mu, algorithm.lambda_
    hessians = [x[p].T @ x[p] / len(p) + mu * np.eye(4) for p in parts]
    targets = [x[p].T @ y[p] / len(p) for p in parts]
    optimum = np.linalg.solve(
        sum(a * h for a, h in zip(alpha, hessians, strict=True)) + lambda_ * np.eye(4),
        sum(a * t for a, t in zip(alpha, targets, strict=True)),
    )
    duals = [t - h @ optimum for h, t in zip(hessians, targets, strict=True)]
    assert np.allclose(alpha @ np.array(duals), lambda_ * optimum)
    assert max(np.abs(dual).max() for dual in duals) > 0.1

    start = torch.from_numpy(optimum)
    federation = lab.Federation(algorithm, linear(start), x, y, parts, engine, num_classes=None)
    # A server keeps all clients' duals, or their weighted sum, or none.
    memory = dict(federation.run(2).strategy.server)
    if "dual" in memory:
        everyones = torch.from_numpy(np.array(duals))
        sum_ = torch.from_numpy(alpha @ np.array(duals))
        memory["dual"] = everyones if memory["dual"].ndim == 2 else sum_
    kept = {name: value for name, value in memory.items() if name in ("dual", "num-examples")}
    kept = kept if "dual" in kept else {}
    initial = algorithm.local_update.init(start)
    federation.set_states([{**initial, "dual": torch.from_numpy(dual)} for dual in duals])
    model = federation.strategy.start_from(federation.initial)
    federation.strategy.server = {"params": start, **kept}  # past the first broadcast, which lambda shrinks
    for finished in rounds(federation.strategy, federation.grid, model, 5):
        assert lab.relative(torch.from_numpy(finished.arrays["params"].numpy()), start) <= 1e-13
        assert finished.train_metrics["primal_residual"] <= 1e-13
    for state, dual in zip(federation.states(), duals, strict=True):
        assert lab.relative(state["dual"], torch.from_numpy(dual)) <= 1e-12


# --------------------------------------------------------------------------------------------- symmetry


def test_the_order_of_the_clients_does_not_matter(
    lab: Any, case: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renumbering the clients changes neither the model nor any client's state.

    The batches are full. A client's draws depend on its number, so all clients get the draws of client 0
    here.
    """
    keys = rng.step_keys
    monkeypatch.setattr(
        "fedpisa.clients.batches.step_keys", lambda seed, ids, *rest: keys(seed, 0 * ids, *rest)
    )
    algorithm = case.build(batch_size="full", admm_share=1.0)
    data = lab.blobs()
    order = [3, 0, 5, 1, 4, 2]
    plain = lab.make(algorithm, engine, **data).run(2)
    renumbered = lab.make(
        algorithm, engine, **{**data, "partition": [data["partition"][client] for client in order]}
    ).run(2)
    assert lab.relative(renumbered.params, plain.params) <= 1e-12
    for got, client in zip(renumbered.states(), order, strict=True):
        for name, wanted in plain.states()[client].items():
            assert lab.relative(got[name], wanted) <= 1e-11, name


def test_the_order_of_the_messages_does_not_matter(lab: Any, case: Any, engine: str) -> None:
    """Requests in another order give the same model bit for bit, and replies in the requests' order."""
    models = []
    for order in (slice(None), slice(None, None, -1)):
        federation = lab.make(case.build(), engine)
        model = federation.initial
        for server_round in (1, 2):
            broadcast = federation.strategy.configure_train(server_round, model, {}, federation.grid)
            requests = list(broadcast)[order]
            replies = list(federation.grid.send_and_receive(requests))
            assert [r.metadata.src_node_id for r in replies] == [r.metadata.dst_node_id for r in requests]
            model, _ = federation.strategy.aggregate_train(server_round, replies)
        models.append(torch.from_numpy(model["params"].numpy()))
    assert torch.equal(*models)


def after(federation: Any, num_rounds: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run some rounds; return the next broadcast and the stacked states."""
    federation.run(num_rounds)
    down = dict(federation.algorithm.broadcast(federation.strategy.server))
    everybody = torch.arange(federation.data.num_clients)
    return down, federation.grid.states.read(everybody)


def cohort(federation: Any, ids: list[int], down: Arrays, states: Arrays, data: Any = None) -> Any:
    """Run a cohort's third round and return its outcome."""
    own = {name: value[ids] for name, value in states.items()}
    algorithm, task = federation.algorithm, federation.task
    return run_cohort(
        task,
        algorithm.local_update,
        data or federation.data,
        0,
        np.array(ids),
        3,
        down,
        own,
        path="written-out",
    )


def test_padding_does_not_matter(lab: Any, case: Any) -> None:
    """A client computes the same alone, in a cohort and in the loop engine."""
    federation = lab.make(case.build(), "vmap")
    down, states = after(federation, 2)
    everybody = list(range(len(lab.SIZES)))
    together = cohort(federation, everybody, down, states)
    for client_id in everybody:
        inside = lab.row_of(together, client_id)
        own = {name: value[client_id] for name, value in states.items()}
        plain = federation.client(client_id).run_round(3, down, own)
        reference = {
            f"{part}/{name}": value
            for part in ("upload", "state", "metrics")
            for name, value in getattr(plain, part).items()
        }
        for alone in (lab.row_of(cohort(federation, [client_id], down, states), 0), reference):
            assert alone.keys() == inside.keys()
            for name, wanted in alone.items():
                torch.testing.assert_close(inside[name].to(wanted), wanted, rtol=1e-11, atol=1e-13)


def test_nothing_leaks_between_clients(lab: Any, case: Any) -> None:
    """NaN in one client's samples changes no bit of the other clients' outcomes."""
    federation = lab.make(case.build(), "vmap")
    down, states = after(federation, 2)
    everybody = list(range(len(lab.SIZES)))
    clean = cohort(federation, everybody, down, states)
    for spoilt in (0, 1, 2):
        data = {**lab.blobs()}
        data["x"] = data["x"].copy()
        data["x"][data["partition"][spoilt]] = np.nan
        dirty = cohort(federation, everybody, down, states, lab.make(case.build(), "loop", **data).data)
        assert not bool(torch.isfinite(dirty.metrics["train-loss"][spoilt]))
        for client_id in set(everybody) - {spoilt}:
            wanted = lab.row_of(clean, client_id)
            for name, got in lab.row_of(dirty, client_id).items():
                assert torch.equal(got, wanted[name]), (client_id, name)


def test_a_client_that_is_not_sampled_keeps_its_state(lab: Any, case: Any, engine: str) -> None:
    """An absent client keeps its state bit for bit. A client that was never sampled has no state."""
    federation = lab.make(case.build(), engine, fraction=0.5)
    model = federation.strategy.start_from(federation.initial)
    seen: set[int] = set()
    for server_round in range(1, 5):
        before = federation.states()
        broadcast = federation.strategy.configure_train(server_round, model, {}, federation.grid)
        sampled = {federation.grid.client_of(node) for node in broadcast.node_ids}
        assert len(sampled) == 3
        model, _ = federation.strategy.aggregate_train(
            server_round, federation.grid.send_and_receive(broadcast)
        )
        seen |= sampled
        for client_id, (old, new) in enumerate(zip(before, federation.states(), strict=True)):
            if client_id not in seen:
                assert federation.grid.state(client_id) is None
            if client_id not in sampled:
                assert old.keys() == new.keys()
                assert all(torch.equal(old[name], new[name]) for name in old)


# ----------------------------------------------------------------------------------------------- shapes


def described(arrays: Arrays) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in arrays.items()}


def test_shapes_and_dtypes_are_stable(lab: Any, case: Any, engine: str, dtype: str) -> None:
    federation = lab.make(case.build(), engine, dtype=lab.dtypes[dtype])
    initial = described(federation.algorithm.local_update.init(federation.task.initial_params()))
    server, automatic = None, bool({"auto", "balanced"} & set(map(str, case.values.values())))
    for number, finished in enumerate(federation.rounds(3)):
        params = finished.arrays["params"].numpy()
        assert params.dtype == dtype
        assert params.shape == (federation.task.layout.size,)
        assert np.isfinite(params).all()
        for state in federation.states():
            assert described(state) == initial
        previous, server = server, described(federation.strategy.server)
        assert previous in (None, server) or (automatic and number == 1)  # after a round of measurements


def test_an_initial_state_depends_on_shapes_alone(lab: Any, case: Any) -> None:
    """The initial state does not depend on the model's values.

    An engine may therefore make it before the first round or when it first samples the client.
    """
    update = case.build().local_update
    a, b = update.init(torch.zeros(3)), update.init(torch.tensor([1.0, -5.0, 0.5]))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_duals_control_variates_and_memories_start_at_zero(lab: Any, case: Any) -> None:
    """They are zero on the clients and on the server for any initial model."""
    federation = lab.make(case.build(), "loop")
    params = federation.task.initial_params()
    server = federation.algorithm.init(params, federation.task.layout)
    for state in (federation.algorithm.local_update.init(params), server):
        assert not any(bool(value.any()) for name, value in state.items() if name != "params")


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (2, 1), (7, 50), (50,), (1, 2, 7, 50)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 8, "full"])
def test_clients_may_have_any_number_of_samples(lab: Any, sizes: tuple[int, ...], batch_size: Any) -> None:
    for name in ("sisa", "fedavg", "fedsgd"):
        algorithm = lab.Case(name, {}).build(batch_size=batch_size)
        a, b = (lab.make(algorithm, engine, **lab.blobs(sizes)).run(3).params for engine in ("loop", "vmap"))
        assert bool(torch.isfinite(a).all())
        assert lab.relative(b, a) <= 1e-12


def test_keep_and_drop_are_the_same_bits_if_nobody_is_absent(lab: Any, dual_case: Any) -> None:
    keep, drop = (
        lab.make(dual_case.build(absent=absent), "vmap").run(3).params for absent in ("keep", "drop")
    )
    assert torch.equal(keep, drop)
