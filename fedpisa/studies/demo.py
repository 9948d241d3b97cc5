"""The demonstration: FedAvg, LocalSGD, SISA and PISA on one non-IID split of real data, with the same budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.runs.results import Result, require_free

if TYPE_CHECKING:
    from rich.table import Table

    from fedpisa.runs.events import Event

STEPS = 10
"""Gradient evaluations per client and round."""

L2 = 1e-3
"""Coefficient of the objective's ``||w||^2 / 2``: FedAvg has it on the clients, PISA on the server."""

COMMON: Mapping[str, Any] = {
    "dataset": "digits",
    "model": "logistic",
    "num-clients": 10,
    "partitioner": "labels-per-client",
    "labels-per-client": 1,
    "seed": 0,
    "num-server-rounds": 200,
    "batch-size": "full",
    "local-steps": STEPS,
    "target-accuracy": 0.95,
    "exact-diagnostics": True,
}
"""Keys of all runs: data, split, model, initial weights, rounds, local steps."""

ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"learning-rate": 0.3, "weight-decay": L2},
    "localsgd": {"learning-rate": 0.3, "weight-decay": L2},
    "sisa": {"sigma": 0.03, "rho": 100.0, "lambda": L2},
    "pisa": {"sigma": 0.03, "rho": 3.0, "lambda": L2},
}
"""Keys of each algorithm, chosen by the final objective on two seeds. The learning rate is one of 0.01, 0.03, 0.1, 0.3
and 1; (sigma, rho) is one of nine pairs for SISA and of six for PISA. SISA with (0.01, 30) ends 0.0005 lower, but its
curve is less smooth."""

BUDGET = (
    f"{COMMON['num-server-rounds']} rounds of {STEPS} full gradients per client, the same for all; one label per "
    "client, the same split and initial weights, logistic regression with the same objective"
)


def run_demo(out: str | Path, on_event: Callable[[Event], None] | None = None) -> dict[str, Result]:
    """Train each algorithm into a subdirectory of ``out``, and draw ``convergence.png`` there.

    Parameters
    ----------
    out
        A new or empty directory.
    on_event
        Called on each event, as in `fedpisa.run`.

    Returns
    -------
    dict
        Result of each algorithm, by name.

    Raises
    ------
    ValueError
        If ``out`` exists and is not empty.
    """
    from fedpisa.plots import plot_curves
    from fedpisa.runs.runner import run
    from fedpisa.simulation.stacked.threads import one_thread

    directory = require_free(out)
    with one_thread():  # 650 parameters do not profit from threads
        results = {
            name: run({"algorithm": name, **COMMON, **own}, directory / name, on_event=on_event)
            for name, own in ALGORITHMS.items()
        }
    target = COMMON["target-accuracy"]
    # The gradient of the convex objective is 0 only at the optimum: a plateau above 0 is a bias.
    panels = ("test_accuracy", "gradient_norm")
    histories = {name: result.history for name, result in results.items()}
    plot_curves(histories, y=panels, path=directory / "convergence.png", target_accuracy=target)
    return results


def table(results: Mapping[str, Result]) -> Table:
    """Return the comparison of the runs as a table for the terminal."""
    from fedpisa.runs.console import plain_table

    target = COMMON["target-accuracy"]
    to_target = f"rounds to {target:.0%}"
    view = plain_table(
        "algorithm", "final accuracy", "best", to_target, "objective", "its gradient", "MB up", "seconds"
    )
    for name, result in results.items():
        final, best = result.last("test_accuracy"), result.best("test_accuracy")
        reached = result.rounds_to(target)
        view.add_row(
            name if result.status == "finished" else f"{name} ({result.status})",
            "-" if final is None else f"{final:.1%}",
            "-" if best is None else f"{best:.1%}",
            "never" if reached is None else str(reached),
            f"{result.last('objective') or 0:.4f}",
            f"{result.last('gradient_norm') or 0:.1e}",
            f"{result.total('bytes_up') / 1e6:.1f}",
            f"{result.total('seconds'):.1f}",
        )
    return view
