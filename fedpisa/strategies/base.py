"""The server's side of an algorithm, as pure functions of named tensors.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.storage import client_rows
from fedpisa.tasks.layout import ParamLayout

Weighting = Literal["num-examples", "uniform"]
"""Clients' weights: proportional to their samples, or equal."""
Reference = Literal["", "centralised", "local"]
"""Kinds of references: one client has all samples, or each has its own model; empty for a federated algorithm."""


@final
@dataclass(frozen=True)
class Cohort:
    """The clients whose replies arrived in a round.

    Parameters
    ----------
    ids_S
        The clients' numbers in ``0 .. N-1``, ascending, as an integer tensor.
    num_examples_S
        The clients' sample counts ``n_i``, float64.
    server_round
        1, 2, ...
    num_clients
        Number of clients ``N``.
    layout
        Names and shapes of the parameters in a vector ``(P,)``.
    memory_limit
        Bytes beyond which the rows of all clients are kept in a file; see `fedpisa.storage.client_rows`.
    """

    ids_S: Tensor
    num_examples_S: Tensor
    server_round: int
    num_clients: int
    layout: ParamLayout
    memory_limit: int = client_rows.UNLIMITED

    @property
    def is_full(self) -> bool:
        """Whether all clients replied."""
        return len(self.ids_S) == self.num_clients


class ClientStates(Protocol):
    """Read access to the states of all clients."""

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]`` ``(P,)``; a client that never took part has zeros."""
        ...

    def state(self, client_id: int) -> Arrays | None:
        """Return one client's state, ``None`` if it never took part."""
        ...


class Objective(Protocol):
    """The clients' losses over all their samples."""

    def client_loss(self, client_id: int, params_P: Tensor) -> float:
        """Return ``f_i`` at ``params_P``."""
        ...

    def value_and_gradient(self, params_P: Tensor, weights_N: Tensor) -> tuple[float, Tensor]:
        """Return ``sum_i weights_i f_i`` and its gradient ``(P,)``."""
        ...


class Algorithm(ABC):
    """A federated algorithm: a frozen dataclass of hyper-parameters with the server's functions.

    The fields of the algorithm and of its `local_update` are configuration keys. The server's state always has
    ``params``, the global model, which is evaluated and returned.
    """

    constants: ClassVar[Mapping[str, str]] = {}
    """Keys that must be the same in all rounds, each with the reason."""
    reference: ClassVar[Reference] = ""
    """Which reference the algorithm is: without federation, it gives scale to the results of the others."""

    local_update: LocalUpdate

    @property
    def regularization(self) -> float:
        """Coefficient of ``||w||^2 / 2`` in the objective."""
        return 0.0

    def at_round(self, server_round: int) -> Algorithm:
        """Return the algorithm with its hyper-parameters of round 1, 2, ..., or for round 0 of the start."""
        return self

    @abstractmethod
    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Return the server's state before the first broadcast."""

    def broadcast(self, server: Arrays) -> Arrays:
        """Return the message to each client of the round: by default the global model."""
        return {"params": server["params"]}

    def weights(self, cohort: Cohort) -> Tensor:
        """Return the cohort's weights ``alpha_i`` ``(S,)``, summing to 1: by default ``n_i / sum n_j``."""
        return cohort.num_examples_S / cohort.num_examples_S.sum()

    @abstractmethod
    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Return the server's next state.

        Parameters
        ----------
        server
            The state; the step may write into its tensors.
        uploads_S
            The replies, stacked along a first axis ``S`` in the cohort's order. Must not be modified.
        cohort
            The clients that replied.
        """

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the server's state without the kept uploads of some clients: by default it keeps none."""
        return server

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return the round's cheap diagnostics: by default the clients' metrics.

        Parameters
        ----------
        before, after
            The server's states before and after the step; of ``before`` only ``params`` is still valid.
        metrics
            The clients' metrics, averaged with `weights`.
        cohort
            The clients that replied.
        """
        return dict(metrics)

    def stationarity(self, server: Arrays, states: ClientStates, weights_N: Tensor) -> dict[str, float]:
        """Return diagnostics that need the states of all clients; computed in rounds that are evaluated."""
        return {}

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return diagnostics that need all samples of all clients; computed on demand.

        They are ``objective`` ``F(w) = sum_i alpha_i f_i(w) + regularization/2 ||w||^2`` and ``gradient_norm``
        ``||grad F(w)||`` at the global model.
        """
        w_P = server["params"]
        value, gradient_P = objective.value_and_gradient(w_P, weights_N)
        return {
            "objective": value + self.regularization / 2 * norm(w_P) ** 2,
            "gradient_norm": norm(gradient_P + self.regularization * w_P),
        }


def weighted_mean(weights_S: Tensor, vectors_SP: Tensor) -> Tensor:
    """Return ``sum_i weights_i vectors_i`` ``(P,)``.

    Examples
    --------
    >>> weighted_mean(torch.tensor([0.25, 0.75]), torch.tensor([[4.0], [8.0]]))
    tensor([7.])
    """
    return weights_S.to(vectors_SP.dtype) @ vectors_SP


def norm(vector_P: Tensor) -> float:
    """Return the Euclidean norm, summed in float64."""
    return float(torch.linalg.vector_norm(vector_P, dtype=torch.float64))


def shares(num_examples_N: Tensor, weighting: Weighting) -> Tensor:
    """Return the clients' weights ``alpha`` ``(N,)``: the normalised `client_mass`.

    Examples
    --------
    >>> shares(torch.tensor([5.0, 0.0, 15.0]), "num-examples")
    tensor([0.2500, 0.0000, 0.7500])
    """
    mass_N = client_mass(num_examples_N, weighting)
    return mass_N / mass_N.sum()


def client_mass(num_examples_N: Tensor, weighting: Weighting) -> Tensor:
    """Return the clients' unnormalised weights ``(N,)``: ``n_i`` or 1, and 0 where ``n_i = 0`` (not seen yet).

    Examples
    --------
    >>> client_mass(torch.tensor([5.0, 0.0, 2.0]), "uniform")
    tensor([1., 0., 1.])
    """
    if weighting == "num-examples":
        return num_examples_N
    return (num_examples_N > 0).to(num_examples_N.dtype)


def total_mass(num_examples_N: Tensor, weighting: Weighting) -> float:
    """Return the sum of all clients' masses; one not seen yet (``n_i = 0``) counts as the mean of the others.

    Examples
    --------
    >>> total_mass(torch.tensor([5.0, 0.0, 15.0]), "num-examples")
    30.0
    """
    mass_N = client_mass(num_examples_N, weighting)
    return float(mass_N.sum()) * len(mass_N) / max(int((mass_N > 0).sum()), 1)


def remember(server: Arrays, rows_S: Mapping[str, Tensor], cohort: Cohort) -> Arrays:
    """Write the cohort's rows into the server's memory of all clients, first axis ``N``, and return the memory.

    A client not seen yet has zeros. The memory grows when clients join. A memory in a file is read with
    `fedpisa.storage.client_rows.read`; it is written in the background, so ``rows_S`` must not be modified afterwards.

    Examples
    --------
    >>> layout = ParamLayout((), (), ())
    >>> cohort = Cohort(torch.tensor([2]), torch.tensor([7.0]), 1, 3, layout)
    >>> remember({}, {"num-examples": cohort.num_examples_S}, cohort)
    {'num-examples': tensor([0., 0., 7.])}
    """
    return {
        name: client_rows.write(
            client_rows.grown(server.get(name, row_S[:0]), cohort.num_clients, cohort.memory_limit),
            cohort.ids_S,
            row_S,
        )
        for name, row_S in rows_S.items()
    }


def updated_mean(
    server: Arrays, name: str, change_P: Tensor, weighting: Weighting, cohort: Cohort
) -> dict[str, Tensor]:
    """Return the mean of a vector over all clients after the cohort's changes, and ``num-examples`` ``(N,)``.

    ``mean <- (M mean + sum_{i in S} m_i change_i) / M'`` with ``m_i`` the `client_mass` and ``M``, ``M'`` the
    `total_mass` before and after the round. Clients have zeros before their first round.

    Parameters
    ----------
    server
        The server's state with the mean before the round.
    name
        Name of the mean in the state.
    change_P
        ``sum_{i in S} m_i change_i`` ``(P,)``.
    weighting
        Clients' weights.
    cohort
        The clients that replied.

    Examples
    --------
    >>> cohort = Cohort(torch.tensor([1]), torch.tensor([3.0]), 1, 2, ParamLayout((), (), ()))
    >>> before = {"dual": torch.tensor([4.0]), "num-examples": torch.tensor([1.0, 3.0])}
    >>> updated_mean(before, "dual", torch.tensor([8.0]), "num-examples", cohort)["dual"]
    tensor([6.])
    """
    n_S = cohort.num_examples_S
    mass = total_mass(server.get("num-examples", n_S[:0]), weighting)
    memory = remember(server, {"num-examples": n_S}, cohort)
    sum_P = mass * server[name] + change_P if name in server else change_P
    return {name: sum_P / total_mass(memory["num-examples"], weighting), **memory}


def incremental_sum(
    server: Arrays, rows_SP: Tensor, weights_S: Tensor, name: str, weights_N: Tensor, cohort: Cohort
) -> Tensor:
    """Return ``sum_i weights_i row_i`` ``(P,)``, float64, over all clients, updated from the previous round's sum.

    It replaces the cohort's old terms by the new ones, so the cost depends only on the size of the cohort. In float64
    the old terms cancel. When all clients replied, it sums the new terms alone.

    Parameters
    ----------
    server
        The state before the round: ``name`` with a row for each client, missing before the first reply, and ``sum``,
        which is computed from all rows if it is missing.
    rows_SP, weights_S
        The cohort's new rows and weights.
    name
        Name of the rows in the state.
    weights_N
        All clients' weights before the round, 0 for a client not seen yet.
    cohort
        The clients that replied.

    Examples
    --------
    >>> layout = ParamLayout((), (), ())
    >>> cohort, server = Cohort(torch.tensor([1]), torch.ones(1), 2, 2, layout), {"z": torch.tensor([[3.0], [4.0]])}
    >>> incremental_sum(server, torch.tensor([[5.0]]), torch.tensor([2.0]), "z", torch.tensor([1.0, 2.0]), cohort)
    tensor([13.], dtype=torch.float64)
    """
    new_P = client_rows.sum_of_rows(weights_S, rows_SP, torch.arange(len(rows_SP), device=rows_SP.device))
    if name not in server or cohort.is_full:
        return new_P
    all_P = server["sum"] if "sum" in server else client_rows.weighted_sum(weights_N, server[name])
    old_S = weights_N[cohort.ids_S]
    known_S = old_S > 0
    old_P = client_rows.sum_of_rows(old_S[known_S], server[name], cohort.ids_S[known_S])
    return all_P - old_P + new_P


def without_clients(server: Arrays, ids_S: Tensor) -> Arrays:
    """Return the memory of `sum_over_clients` as if some clients had never replied.

    Examples
    --------
    >>> server = {"num-examples": torch.tensor([2.0, 3.0]), "sum": torch.ones(1), "params": torch.zeros(1)}
    >>> without_clients(server, torch.tensor([1]))
    {'num-examples': tensor([2., 0.]), 'params': tensor([0.])}
    """
    kept = {name: value for name, value in server.items() if name != "sum"}
    if "num-examples" in kept:
        kept["num-examples"] = kept["num-examples"].index_fill(0, ids_S, 0)
    return kept


def sum_over_clients(
    server: Arrays, z_SP: Tensor, sigma_S: Tensor, name: str, weighting: Weighting, cohort: Cohort
) -> tuple[Tensor, Arrays]:
    """Return ``sum_i n_i sigma_i z_i`` ``(P,)``, float64, over all clients seen so far, and the new memory.

    The memory has ``z`` ``(N, P)``, ``sigma_i`` ``(N,)`` as ``name`` and ``n_i`` ``(N,)`` as ``num-examples``. Unless
    all clients replied, it also has the ``sum`` for the next round; see `incremental_sum`.

    Parameters
    ----------
    server
        The state before the round.
    z_SP, sigma_S
        The cohort's ``z_i`` and their factors ``sigma_i``.
    name
        Name of ``sigma_i`` in the memory.
    weighting
        Clients' weights ``n_i``: the sample counts, or 1.
    cohort
        The clients that replied.
    """
    n_S = cohort.num_examples_S
    before = {
        key: client_rows.grown(server.get(key, n_S[:0]), cohort.num_clients) for key in (name, "num-examples")
    }
    old_N = client_mass(before["num-examples"], weighting) * before[name]
    sum_P = incremental_sum(server, z_SP, client_mass(n_S, weighting) * sigma_S, "z", old_N, cohort)
    memory = remember({**server, **before}, {"z": z_SP, name: sigma_S, "num-examples": n_S}, cohort)
    return sum_P, dict(memory) if cohort.is_full else {**memory, "sum": sum_P}
