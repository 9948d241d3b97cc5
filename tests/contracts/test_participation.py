"""Every algorithm trains with its default keys on few, heterogeneous clients per round."""

from __future__ import annotations

import numpy as np
import pytest

import fedpisa
from fedpisa import families
from fedpisa.server.base import sampled
from tests.algorithms import FEDERATED
from tests.players import Toy, on_toys

NAMES = FEDERATED  # a model that one client trains alone may lose on the others' classes
RULES = list(families.available("preconditioner"))
# One penalty for all rules, because the default scale ``rho`` suits the identity.
RUNS = [(name, {}) for name in NAMES]
RUNS += [("pisa", {"preconditioner": rule, "sigma": 1.0}) for rule in RULES]
RUNS += [(name, {"absent": "fresh"}) for name in ("pisa", "sisa", "nsisa")]


RUNS += [("spectral-pisa", {"rules": {"bias$": {"name": "adam", "beta": 0.9}, "weight": "spectral"}})]


@pytest.mark.parametrize(("toy", "name", "keys"), on_toys([*RUNS, ("centralised", {})]), ids=str)
def test_three_of_ten_clients_with_few_labels_each(toy: Toy, name: str, keys: dict[str, object]) -> None:
    """No round diverges and the loss falls with ``label-dirichlet`` 0.3 and each algorithm's defaults.

    Players have no common loss that falls.
    """
    result = fedpisa.run(
        {
            **keys, **toy.keys, "algorithm": name, "num-clients": 10, "fraction-train": 0.3,
            "partitioner": "label-dirichlet", "dirichlet-alpha": 0.3, "eval-every": 15,
            "num-server-rounds": 6 if toy.turns else 15,
        }
    )  # fmt: skip
    assert result.status == "finished"
    assert np.isfinite(result.history["train_loss"].iloc[1:]).all()
    before, after = result.history["test_loss"].iloc[[0, -1]]
    if not toy.turns:
        assert before == pytest.approx(np.log(10), rel=1e-6)  # the model starts at zero
        assert after < 0.95 * before
    assert all(np.isfinite(value).all() for value in result.parameters.values())


def test_at_least_one_client_takes_part() -> None:
    """Any positive fraction samples a client. Without connected nodes an error says so."""
    assert len(sampled(range(3), 1e-9, seed=0, server_round=1)) == 1
    with pytest.raises(ValueError, match="no node is connected in round 1: connect"):
        sampled([], 1.0, seed=0, server_round=1)
