"""Differential privacy of runs: against NumPy, its noise level, what is refused, and what a run says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.report import write_report
from fedpisa.rng import generator
from fedpisa.runs.console import RunConsole
from fedpisa.runs.results import RunDirectory
from fedpisa.runs.resume import require_no_second_release
from fedpisa.runs.runner import Simulation
from fedpisa.server.base import sampled
from fedpisa.server.privacy_accounting import gaussian_epsilon, sampled_epsilon
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.parts import load_dataset, split_dataset
from fedpisa.simulation.privacy import Privacy, build_privacy, sentence

QUADRATIC: dict[str, object] = {
    "dataset": "quadratic", "partitioner": "natural", "num-clients": 7, "dimension": 4, "dtype": "float64",
    "batch-size": "full", "num-server-rounds": 4, "seed": 3,
    "differential-privacy": "central", "clipping-norm": 0.5, "noise-multiplier": 0.8,
}  # fmt: skip
DIGITS: dict[str, object] = {
    "algorithm": "localsgd", "model": "logistic", "num-server-rounds": 3, "learning-rate": 0.3,
    "differential-privacy": "central", "clipping-norm": 0.5, "noise-multiplier": 2.0,
}  # fmt: skip
ADMM = {"weighting": "uniform", "sigma": 0.7, "rho": 1.3}


def flat(parameters: Any) -> np.ndarray:
    return np.concatenate([array.ravel() for array in parameters.values()])


def models(values: dict[str, object]) -> np.ndarray:
    """Return the model after each round, that of the start first ``(T + 1, P)``."""
    simulation = Simulation(RunConfig.from_mapping(values))
    return np.array([next(iter(simulation.parameters().values())).ravel() for _ in simulation.rows()])


def gradients(values: dict[str, object], w: np.ndarray) -> np.ndarray:
    """Return every client's full gradient ``(N, P)``."""
    run = RunConfig.from_mapping(values)
    data, parts = split_dataset(run, load_dataset(run))
    return np.array([data.x_train[p].T @ (data.x_train[p] @ w - data.y_train[p]) / len(p) for p in parts])


def reference(values: dict[str, object], start: np.ndarray) -> Iterator[np.ndarray]:
    """PISA or SISA by hand: the server clips ``z_i - w = (w_i - w) + pi_i / sigma``, and adds the noise given."""
    sigma, rho, beta, eps = 0.7, 1.3, 0.999, 1e-8
    w, duals, moments = start, np.zeros((7, 4)), np.zeros((7, 4))
    for server_round in range(1, 5):
        q = gradients(values, w) + duals
        moments = beta * moments + (1 - beta) * q**2
        scale = np.sqrt(moments / (1 - beta**server_round)) + eps if values["algorithm"] == "sisa" else 1.0
        drift = -q / (sigma + rho * scale)
        duals = duals + sigma * drift
        increments = drift + duals / sigma
        lengths = np.linalg.norm(increments, axis=1, keepdims=True)
        assert (lengths > 0.5).any()
        clipped = increments * np.minimum(1, 0.5 / lengths)
        noise = generator(3, "privacy-noise", server_round).standard_normal(4)
        w = w + (clipped.sum(0) + 0.8 * 0.5 * noise) / 7
        yield w


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", ["pisa", "sisa"])
def test_the_increments_of_the_dual_methods_are_clipped_and_noised(algorithm: str, engine: str) -> None:
    values = {**QUADRATIC, **ADMM, "algorithm": algorithm, "engine": engine}
    got = models(values)
    for mine, wanted in zip(got[1:], reference(values, got[0]), strict=True):
        assert np.abs(mine - wanted).max() < 1e-12


@pytest.mark.parametrize("algorithm", ["pisa", "sisa", "localsgd"])
def test_without_noise_and_clipping_nothing_changes(algorithm: str) -> None:
    keys = ADMM if algorithm != "localsgd" else {"learning-rate": 0.1}
    plain = {key: value for key, value in QUADRATIC.items() if key not in ("differential-privacy",)}
    plain = {k: v for k, v in plain.items() if k not in ("clipping-norm", "noise-multiplier")}
    wanted = models({**plain, **keys, "algorithm": algorithm})
    got = models({**QUADRATIC, **keys, "algorithm": algorithm, "clipping-norm": 1e3, "noise-multiplier": 0.0})
    assert np.abs(got - wanted).max() < 1e-8  # the grid is 2^-40 of 1000


@pytest.mark.parametrize("algorithm", ["pisa", "sisa"])
def test_the_model_has_the_noise_that_is_accounted_for(algorithm: str) -> None:
    """Clients that cannot move, ``rho`` being 1e9: each round changes the model by noise alone."""
    values = {**QUADRATIC, **ADMM, "rho": 1e9, "algorithm": algorithm, "num-server-rounds": 400}
    values |= {"clipping-norm": 1e-3, "eval-every": 400}
    steps = np.diff(models(values), axis=0) * 7 / (0.8 * 1e-3)
    assert steps.std() == pytest.approx(1.0, abs=0.06)  # 1600 draws
    assert abs(steps.mean()) < 4 / np.sqrt(steps.size)
    privacy = Simulation(RunConfig.from_mapping(values)).privacy
    assert privacy is not None
    assert privacy.epsilon(400) == gaussian_epsilon(math.sqrt(400) / 0.8, 1e-5)


@pytest.mark.parametrize("strategy", ["none", "fed-avg", "fed-adam", "fed-yogi", "fed-adagrad", "fed-avg-m"])
def test_engines_agree_and_runs_repeat_and_resume(tmp_path: Path, strategy: str) -> None:
    values = {
        **DIGITS,
        "dtype": "float64",
        "server-strategy": strategy,
        "fraction-train": 0.5,
        "dropout": 0.2,
    }
    runs = [fedpisa.run({**values, "engine": engine}) for engine in ("vmap", "loop", "loop")]
    weights = [flat(run.parameters) for run in runs]
    assert np.array_equal(weights[1], weights[2])
    assert np.abs(weights[0] - weights[1]).max() < 1e-9
    fedpisa.run({**values, "engine": "loop", "num-server-rounds": 2}, tmp_path / "run")
    resumed = fedpisa.run({"num-server-rounds": 3}, resume=tmp_path / "run")
    assert np.array_equal(flat(resumed.parameters), weights[1])


def test_lost_replies_leave_the_divisor() -> None:
    """All requests are lost but some: the increments' sum is still divided by the clients that were asked."""
    values = {**QUADRATIC, "algorithm": "localsgd", "learning-rate": 0.1, "clipping-norm": 1e-6}
    values |= {"noise-multiplier": 1.0, "num-server-rounds": 80, "dropout": 0.5, "eval-every": 80}
    steps = np.diff(models(values), axis=0) * 7 / 1e-6
    noise = np.array([generator(3, "privacy-noise", t).standard_normal(4) for t in range(1, 81)])
    moved = np.linalg.norm(steps - noise, axis=1)  # the norm of a sum of 0 to 7 increments of norm 1
    went = np.abs(steps).sum(1) > 0
    assert went.sum() > 70
    assert moved[went].max() <= 7.01
    assert moved[went].mean() < 4.5


# ------------------------------------------------------------------------------------------- the noise


def noise_of(model: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Return the standard normal noise in a model of one round, from the same model without noise."""
    noise: np.ndarray = (model - plain).ravel() * 10 / (2.0 * 0.5)
    return noise


def redraws(seed: int, size: int) -> Iterator[np.ndarray]:
    """Yield what an attacker who knows the seed can draw."""
    names = ["privacy-noise", "server-strategy", "server-strategy-sampling", "sampling", "partition", "steps"]
    names += ["initial-weights", "batches", "noise", "dropout", "faults"]
    for name in names:
        for server_round in (0, 1, 2):
            yield generator(seed, name, server_round).standard_normal(size)
            with fedpisa.rng.seeded(seed, name, server_round):
                yield np.random.standard_normal(size)  # noqa: NPY002
                yield torch.randn(size, dtype=torch.float64).numpy()
    yield np.random.default_rng(seed).standard_normal(size)
    yield np.random.RandomState(seed).standard_normal(size)
    yield torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()


def test_the_seed_recovers_the_noise_of_a_simulation_and_none_of_the_operating_systems() -> None:
    values = {**DIGITS, "num-server-rounds": 1, "dtype": "float64"}
    plain = fedpisa.run({**values, "noise-multiplier": 0.0}).parameters
    seeded, again = (fedpisa.run(values).parameters for _ in range(2))
    secure, other = (fedpisa.run({**values, "secure-noise": True}).parameters for _ in range(2))
    assert all(np.array_equal(seeded[name], again[name]) for name in seeded)
    assert not any(np.array_equal(secure[name], other[name]) for name in secure)

    hidden = noise_of(flat(secure), flat(plain))
    open_ = noise_of(flat(seeded), flat(plain))
    assert hidden.std() == pytest.approx(1, abs=0.15)
    bound = 5 / np.sqrt(hidden.size)
    found = [np.corrcoef(open_, draw)[0, 1] for draw in redraws(0, hidden.size)]
    assert max(found) > 1 - 1e-9
    assert max(abs(np.corrcoef(hidden, draw)[0, 1]) for draw in redraws(0, hidden.size)) < bound
    assert abs(np.corrcoef(hidden, noise_of(flat(other), flat(plain)))[0, 1]) < bound


# ---------------------------------------------------------------------------------------- the accounting


def privacy_of(**keys: object) -> Privacy:
    config = RunConfig.from_mapping({**DIGITS, **{k.replace("_", "-"): v for k, v in keys.items()}})
    found = Federation(config).privacy()
    assert found is not None
    return found


def test_epsilon_counts_the_rounds_of_a_client() -> None:
    everyone = privacy_of(num_server_rounds=9)
    assert everyone.epsilon(9) == gaussian_epsilon(1.5, 1e-5)
    part = privacy_of(num_server_rounds=9, fraction_train=0.3)
    cohorts = [sampled(range(10), 0.3, 0, t) for t in range(1, 10)]
    most = max(sum(client in cohort for cohort in cohorts) for client in range(10))
    assert part.participations(9) == most < 9
    assert part.epsilon(9) == gaussian_epsilon(math.sqrt(most) / 2, 1e-5)
    assert part.epsilon(0) == 0.0
    # Who is reachable is not the seed's alone: the worst case counts.
    away = privacy_of(num_server_rounds=9, fraction_train=0.3, availability="on-off")
    assert away.epsilon(9) == everyone.epsilon(9)


def test_secret_cohorts_are_accounted_for_by_dp_accounting() -> None:
    pytest.importorskip("dp_accounting")
    secret = privacy_of(num_clients=40, fraction_train=0.1, amplification=True)
    assert secret.epsilon(3) == sampled_epsilon(2.0, 40, 4, 3, 1e-5)
    assert privacy_of(amplification=True).epsilon(3) == privacy_of().epsilon(
        3
    )  # all clients: nothing is secret


@pytest.mark.parametrize(
    "keys", [{}, {"fraction_train": 0.4}, {"fraction_train": 0.1, "amplification": True}]
)
def test_a_target_is_reached_and_not_passed(keys: dict[str, Any]) -> None:
    if "amplification" in keys:
        pytest.importorskip("dp_accounting")
    run = {"num_clients": 40, "num_server_rounds": 6, "noise_multiplier": None, "epsilon": 3.0, **keys}
    privacy = privacy_of(**run)
    assert 3.0 * (1 - 1e-4) < privacy.epsilon(6) <= 3.0
    assert privacy.epsilon(2) < privacy.epsilon(6) < privacy.epsilon(20)


def test_adaptive_clipping_pays_for_its_count() -> None:
    """The sum's noise and the count's together, both sensitivities being 1 (Andrew et al. centre the count)."""
    keys = {
        "differential-privacy": "server-adaptive-clipping",
        "noise-multiplier": 0.5,
        "clipping-norm": None,
    }
    privacy = privacy_of(**keys, clipped_count_stddev=2.0)
    on_the_sum = (0.5**-2 - (2 * 2.0) ** -2) ** -0.5
    assert privacy.noise_multiplier == pytest.approx((on_the_sum**-2 + 2.0**-2) ** -0.5, rel=1e-12)
    assert privacy.noise_multiplier < 0.5


def test_run_console_and_report_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunConsole() as console:
        fedpisa.run({**DIGITS, "num-server-rounds": 3}, tmp_path / "run", on_event=console)
    wanted = gaussian_epsilon(math.sqrt(3) / 2, 1e-5)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["privacy"]
    assert record["epsilon"] == wanted
    assert (record["delta"], record["rounds"], record["noise"]) == (1e-5, 3, "seed")
    said = capsys.readouterr().err
    shown = f"epsilon {math.ceil(wanted * 1000) / 1000:.4g} at delta 1e-05"
    assert f"differential privacy central: {shown} after 3 rounds" in said
    assert "noise from the seed: repeatable, and no protection of real clients" in said
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert shown in (tmp_path / "report.html").read_text()


def test_a_cut_run_says_what_it_spent(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if getattr(event, "row", {}).get("round") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedpisa.run({**DIGITS, "num-server-rounds": 5}, tmp_path / "run", on_event=stop)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["privacy"]
    assert (record["rounds"], record["epsilon"]) == (2, gaussian_epsilon(math.sqrt(2) / 2, 1e-5))


def test_more_rounds_than_the_noise_was_solved_for_are_refused(tmp_path: Path) -> None:
    run = {k: v for k, v in DIGITS.items() if k != "noise-multiplier"}
    fedpisa.run({**run, "epsilon": 8.0}, tmp_path / "run")
    with pytest.raises(ValueError, match="the noise was solved for epsilon after 3 rounds"):
        fedpisa.run({"num-server-rounds": 5}, resume=tmp_path / "run")


def test_rounds_that_nodes_have_seen_are_not_released_again(tmp_path: Path) -> None:
    fedpisa.run({**DIGITS, "num-server-rounds": 3}, tmp_path / "run")
    simulation = Simulation(RunConfig.from_mapping({**DIGITS, "secure-noise": True}))
    files = RunDirectory(tmp_path / "run")
    require_no_second_release(simulation, files, 0)  # no node has seen the models of a simulation
    real = SimpleNamespace(privacy=simulation.privacy, grid=SimpleNamespace(client_states=None))
    for done in (3, 2):
        require_no_second_release(real, files, done)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rounds up to 3 and a checkpoint of round 1: .* released twice"):
        require_no_second_release(real, files, 1)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- refusals

FIXED = {"differential-privacy": "server-fixed-clipping"}
ADAPTIVE = {
    "differential-privacy": "server-adaptive-clipping",
    "noise-multiplier": 0.4,
    "clipping-norm": None,
}
ROBUST = ["fed-median", "fed-trimmed-avg", "krum", "multi-krum", "bulyan", "qfed-avg"]
OPTIMIZERS = ["fed-adam", "fed-yogi", "fed-adagrad", "fed-avg-m"]
PISA = {"algorithm": "pisa", "learning-rate": None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({**kind, "server-strategy": name}, f"adds the noise after server-strategy '{name}'.*{fix}")
            for kind in (FIXED, ADAPTIVE)
            for names, fix in ((ROBUST, 'set server-strategy = "none"'), (OPTIMIZERS, "which adds it before"))
            for name in names
        ),
        *(
            ({"server-strategy": name}, f"'{name}' reads each client's reply: use one of none")
            for name in ROBUST
        ),
        *(
            ({**kind, "algorithm": name}, 'by their samples.*set algorithm = "localsgd"')
            for kind in ({}, FIXED, ADAPTIVE)
            for name in ("fedavg", "fedprox")
        ),
        (PISA, 'by their samples.*set weighting = "uniform"'),
        ({**PISA, "algorithm": "sisa"}, 'by their samples.*set weighting = "uniform"'),
        (
            {**PISA, "weighting": "uniform", "fraction-train": 0.5},
            'with fraction-train < 1 needs: set absent = "drop"',
        ),
        *(
            (
                {**PISA, "weighting": "uniform", "absent": "fresh", "fraction-train": fraction},
                'noise of all rounds up in its dual: set absent = "drop"',
            )
            for fraction in (0.5, 1.0)
        ),
        (
            {**PISA, "weighting": "uniform", "exact-diagnostics": True},
            'with exact-diagnostics = true needs: set absent = "drop"',
        ),
        *(
            (
                {"algorithm": name, **more},
                f"the server of {name} needs more than that: use algorithm = localsgd",
            )
            for name, more in {
                "scaffold": {},
                "feddyn": {},
                "fedsgd": {},
                "fednova": {},
                "fedadmm": {"learning-rate": 0.1},
            }.items()
        ),
        *(
            ({**kind, "max-upload-norm": 3.0}, "max-upload-norm = 3 compares")
            for kind in ({}, FIXED, ADAPTIVE)
        ),
        ({"epsilon": 3.0}, "has both of noise-multiplier and epsilon: set one of them"),
        ({"noise-multiplier": None}, "has neither of noise-multiplier and epsilon"),
        (
            {"amplification": True, "availability": "on-off", "fraction-train": 0.5},
            "set amplification = false",
        ),
        ({"delta": 0.0}, "'delta'"),
    ],
)
def test_what_the_noise_would_not_hide_is_refused(values: dict[str, object], message: str) -> None:
    keys = {key: value for key, value in {**DIGITS, **values}.items() if value is not None}
    if values.get("server-strategy") in ("krum", "multi-krum", "bulyan"):
        keys["server-num-malicious-nodes"] = 1
    if values.get("server-strategy") == "fed-trimmed-avg":
        keys["server-beta"] = 0.2
    with pytest.raises(ValueError, match=message):
        fedpisa.run(keys)


@pytest.mark.parametrize("kind", [FIXED, ADAPTIVE])
def test_flowers_wrappers_are_refused_outside_simulation(kind: dict[str, object]) -> None:
    keys = {key: value for key, value in {**DIGITS, **kind}.items() if value is not None}
    config = RunConfig.from_mapping(keys)
    with pytest.raises(ValueError, match=r'from the seed, which every node reads: set .* "central"'):
        build_privacy(config, Federation(config).algorithm, deployed=True)


def test_flowers_wrappers_make_no_model_of_a_part_of_the_replies(caplog: pytest.LogCaptureFixture) -> None:
    result = fedpisa.run({**DIGITS, **FIXED, "dropout": 0.9, "num-server-rounds": 2})
    assert (
        "and the noise of DifferentialPrivacyServerSideFixedClipping is right for all of them" in caplog.text
    )
    losses = result.history["test_loss"]
    assert losses.nunique() == 1


def test_the_noise_of_real_nodes_is_the_operating_systems() -> None:
    config = RunConfig.from_mapping(DIGITS)
    algorithm = Federation(config).algorithm
    found = build_privacy(config, algorithm, deployed=True)
    assert found is not None
    assert found.secure
    assert found.mean is not None
    assert found.mean.seed is None
    assert found.record(3)["noise"] == "operating system"
    tested = build_privacy(config.replace({"secure-noise": False}), algorithm, deployed=True)
    assert tested is not None
    assert not tested.secure


@pytest.mark.parametrize(
    "changes",
    [
        {"clipping-norm": 5e-324},
        {"clipping-norm": 1e-300},
        {"clipping-norm": 1e308},
        {"clipping-norm": 1e140, "noise-multiplier": 1e140},
        {"noise-multiplier": 1e300},
        {"clipping-norm": math.inf},
        {"noise-multiplier": math.inf},
        {"noise-multiplier": None, "epsilon": math.inf},
    ],
)
def test_noise_beyond_floating_point_is_refused(changes: dict[str, object]) -> None:
    keys = {key: value for key, value in {**QUADRATIC, **changes}.items() if value is not None}
    with pytest.raises(
        ValueError, match=r"out of the range of floating-point numbers|must be a finite number"
    ):
        fedpisa.run({**keys, "algorithm": "localsgd"})


@pytest.mark.parametrize("epsilon", [0.0, 5e-324, 1e-306, 1e-5, 1.0, 1e300, 1.7e308])
def test_each_epsilon_has_a_sentence(epsilon: float) -> None:
    record = Privacy("central", 1.0, 2.0, 1e-5, 10, 1.0, 0).record(9)
    assert "at delta 1e-05" in sentence({**record, "epsilon": epsilon})
