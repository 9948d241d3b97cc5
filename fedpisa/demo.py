"""The demonstration: FedAvg, LocalSGD and SISA on one non-IID split of real data, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.results import Result, require_free

if TYPE_CHECKING:
    from rich.table import Table

    from fedpisa.runner import Event

STEPS = 5
"""Gradient evaluations of each client in each round."""

COMMON: Mapping[str, Any] = {
    "dataset": "digits",
    "model": "mlp",
    "num-clients": 10,
    "partitioner": "label-dirichlet",
    "dirichlet-alpha": 0.1,
    "seed": 0,
    "num-server-rounds": 100,
    "batch-size": 32,
    "target-accuracy": 0.9,
}
"""What the three runs share: data, split, initial weights, rounds, mini-batches."""

ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"local-steps": STEPS, "learning-rate": 0.5},
    "localsgd": {"local-steps": STEPS, "learning-rate": 0.5},
    "sisa": {"local-steps": STEPS, "sigma": 0.3, "rho": 100.0},
}
"""What each run adds; all of them evaluate `STEPS` gradients per client and round."""

BUDGET = (
    f"{COMMON['num-server-rounds']} rounds, in each {STEPS} gradients per client on mini-batches of "
    f"{COMMON['batch-size']}, the same for all; one split ({COMMON['num-clients']} clients by "
    f"{COMMON['partitioner']} {COMMON['dirichlet-alpha']}), the same initial weights"
)


def run_demo(out: str | Path, on_event: Callable[[Event], None] | None = None) -> dict[str, Result]:
    """Train each algorithm into a directory of its own below ``out``, and draw ``convergence.png`` there.

    Parameters
    ----------
    out
        A directory that does not exist or is empty.
    on_event
        Told what happens, as by `fedpisa.run`.

    Returns
    -------
    dict
        The runs by the name of their algorithm.

    Raises
    ------
    ValueError
        If ``out`` exists and is not empty.
    """
    from fedpisa.plots import plot_curves
    from fedpisa.runner import run

    directory = require_free(out)
    results = {
        name: run({"algorithm": name, **COMMON, **own}, directory / name, on_event=on_event)
        for name, own in ALGORITHMS.items()
    }
    target = COMMON["target-accuracy"]
    # The test loss is the global model's; the train loss is that of mini-batches on the clients' way.
    panels = ("test_accuracy", "test_loss")
    plot_curves(results, y=panels, path=directory / "convergence.png", target_accuracy=target)
    return results


def table(results: Mapping[str, Result]) -> Table:
    """Return the comparison of the runs as a table for the terminal."""
    from rich.table import Table

    target = COMMON["target-accuracy"]
    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column("algorithm")
    for title in ("final accuracy", "best accuracy", f"rounds to {target:.0%}", "MB up", "seconds"):
        view.add_column(title, justify="right")
    for name, result in results.items():
        final, best, reached = (
            result.last("test_accuracy"),
            result.best("test_accuracy"),
            result.rounds_to(target),
        )
        view.add_row(
            name if result.status == "finished" else f"{name} ({result.status})",
            "-" if final is None else f"{final:.1%}",
            "-" if best is None else f"{best:.1%}",
            "never" if reached is None else str(reached),
            f"{result.total('bytes_up') / 1e6:.1f}",
            f"{result.total('seconds'):.1f}",
        )
    return view
