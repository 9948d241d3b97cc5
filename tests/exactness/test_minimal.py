"""The pages of `experiments/minimal` give the package's global model after every round, to rounding."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from fedpisa.config.run import RunConfig
from fedpisa.server.base import sampled
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.stacked.grid import VmapGrid

PAGES = Path(__file__).parents[2] / "experiments" / "minimal"
ROUNDS, N = 6, 5
BASE = {
    "num_clients": N,
    "partitioner": "label-dirichlet",
    "dirichlet_alpha": 0.3,
    "model": "mlp",
    "widths": [6],
    "dtype": "float64",
    "seed": 3,
}


def page(name: str) -> Any:
    """Return the function of a page."""
    spec = importlib.util.spec_from_file_location(f"minimal_{name}", PAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


class Package:
    """A run of the package, with what a page needs to repeat the run."""

    def __init__(self, algorithm: str, **keys: Any) -> None:
        self.config = RunConfig.from_mapping({**BASE, **keys, "algorithm": algorithm})
        self.federation = Federation(self.config)
        data = self.federation.data
        assert len(set(data.sizes_N.tolist())) > 2
        self.clients = [data.client(i) for i in range(N)]
        self.weights = (data.sizes_N / data.num_samples).tolist()

    def models(self) -> NDArray[np.float64]:
        """Return the package's models ``(T, P)``."""
        update = self.federation.algorithm.local_update
        grid = VmapGrid(self.federation.task, update, self.federation.data, self.config.seed)
        done = rounds(self.federation.strategy(), grid, self.federation.initial_model(), ROUNDS)
        return np.array([finished.arrays["params"].numpy() for finished in done])

    def batches(self, client: int, server_round: int) -> list[NDArray[np.int64]]:
        """Return the mini-batches of a client's local steps in the package."""
        schedule = self.federation.algorithm.local_update.batch_sampler()
        size = self.federation.data.sizes_N[client : client + 1]
        plan = schedule.draw(size, np.array([client]), server_round, self.config.seed)
        steps = zip(plan.index_SKCB[0], plan.weight_SKCB[0], strict=True)
        return [index[0][weight[0] > 0] for index, weight in list(steps)[: plan.steps_S[0]]]

    def cohort(self, server_round: int) -> list[int]:
        """Return the clients that the package samples in a round."""
        return sampled(range(N), self.config.fraction_train, self.config.seed, server_round)

    def page(self, name: str, **arguments: Any) -> NDArray[np.float64]:
        """Return a page's models ``(T, P)``."""
        module = Federation(self.config).task.module
        history = page(name)(module, cross_entropy, self.clients, ROUNDS, **arguments)
        return np.array([w.numpy() for w in history])

    def agrees(self, name: str, **arguments: Any) -> None:
        """Assert that a page gives the package's models, and that the models change."""
        ours = self.models()
        assert np.abs(np.diff(ours, axis=0)).max(1).min() > 1e-4
        np.testing.assert_allclose(self.page(name, **arguments), ours, rtol=0, atol=1e-12)


FULL = {"batch_size": "full", "local_steps": 3}
SOME = {"batch_size": 32, "fraction_train": 0.6}


def test_fedavg() -> None:
    Package("fedavg", **FULL, learning_rate=0.3).agrees("fedavg", lr=0.3, steps=3)


def test_fedavg_with_mini_batches_and_absent_clients() -> None:
    run = Package("fedavg", **SOME, local_epochs=2, learning_rate=0.3)
    run.agrees("fedavg", lr=0.3, batches=run.batches, cohort=run.cohort)


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(
    ("name", "beta", "rho"), [("pisa", None, 3.0), ("sisa", 0.9, 100.0), ("sisa", 0.999, 100.0)]
)
class TestPisa:
    def test_full_batches(self, name: str, beta: float | None, rho: float, local_steps: int) -> None:
        own = {} if beta is None else {"beta": beta}
        run = Package(
            name, **own, batch_size="full", local_steps=local_steps, sigma=0.4, rho=rho, lambda_=0.01
        )
        run.agrees("pisa", sigma=0.4, rho=rho, lambda_=0.01, beta=beta, steps=local_steps)

    def test_mini_batches_and_absent_clients(
        self, name: str, beta: float | None, rho: float, local_steps: int
    ) -> None:
        own = {} if beta is None else {"beta": beta}
        run = Package(name, **own, **SOME, local_steps=local_steps, sigma=0.4, rho=rho)
        run.agrees("pisa", sigma=0.4, rho=rho, beta=beta, batches=run.batches, cohort=run.cohort)


def test_scaffold() -> None:
    run = Package("scaffold", **FULL, learning_rate=0.3, server_learning_rate=0.8)
    run.agrees("scaffold", lr=0.3, server_lr=0.8, steps=3, weights=run.weights)


def test_scaffold_with_mini_batches_and_absent_clients() -> None:
    run = Package("scaffold", **SOME, local_epochs=2, learning_rate=0.3, weighting="uniform")
    run.agrees("scaffold", lr=0.3, batches=run.batches, cohort=run.cohort)


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.py")), ids=lambda path: path.stem)
def test_a_page_is_one_page_of_plain_pytorch(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    code = [line for line in text.splitlines()[tree.body[0].end_lineno or 0 :] if line.strip()]
    assert len(code) <= 40
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {str(module).partition(".")[0] for module in modules} <= {"torch", "numpy"}
