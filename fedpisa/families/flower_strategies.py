"""Flower's strategies and its wrappers for differential privacy by name, with their numbers as keys."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedpisa.components import REQUIRED, Component, Key, Parameter, inspect_component, kebab, parameter_docs
from fedpisa.server.flower_strategy import WEIGHT, require_trimming
from fedpisa.server.privacy import CentralPrivacy, Delta
from fedpisa.strategies.averaging import ModelAveraging
from fedpisa.strategies.base import Algorithm

STRATEGIES: Final = (
    "Bulyan", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedTrimmedAvg", "FedYogi", "Krum",
    "MultiKrum", "QFedAvg",
)  # fmt: skip
WRAPPERS: Final = {
    "server-fixed-clipping": "DifferentialPrivacyServerSideFixedClipping",
    "server-adaptive-clipping": "DifferentialPrivacyServerSideAdaptiveClipping",
}

# The arguments that fedpisa sets. The strategy sees the cohort as all nodes, and never evaluates.
_GIVEN: Final[Mapping[str, object]] = {
    "fraction_train": 1.0, "fraction_evaluate": 1.0, "min_train_nodes": 1, "min_evaluate_nodes": 1,
    "min_available_nodes": 1, "weighted_by_key": WEIGHT, "train_loss_key": "train-loss",
}  # fmt: skip
# ``eta_l`` is the clients' learning rate, which Flower's strategies only log.
_NOT_KEYS: Final = {*_GIVEN, "client_learning_rate", "eta_l", "strategy", "num_sampled_clients", "accountant"}
_TYPES: Final = (bool, int, float, float | None)


def server_strategies() -> Iterator[Component]:
    """Yield the strategies that can replace the server's step, and `none`, which keeps the algorithm's step."""
    yield Component("server-strategy", "none", lambda: None, "The algorithm's step.")
    for name in STRATEGIES:
        yield describe(getattr(flower, name), "server-strategy", kebab(name), "server-")


def wrappers() -> Iterator[Component]:
    """Yield fedpisa's mechanism, Flower's wrappers that make the model differentially private, and `none`."""
    yield Component("differential-privacy", "none", lambda: None, "No noise.")
    yield inspect_component("differential-privacy", "central", CentralPrivacy)
    for name, cls in WRAPPERS.items():
        # Flower explains the keys of adaptive clipping with the client-side class alone.
        sibling = getattr(flower, cls.replace("ServerSide", "ClientSide"))
        yield _with_delta(describe(getattr(flower, cls), "differential-privacy", name, "", sibling))


def _with_delta(component: Component) -> Component:
    """Return a wrapper's component with the key ``delta``, for which its epsilon is computed."""
    delta = Key("delta", Delta, CentralPrivacy.delta, "Probability with which the bound on epsilon may fail.")
    return dataclasses.replace(
        component,
        factory=lambda *, delta, **options: component.factory(**options),
        parameters=(*component.parameters, Parameter("delta", delta)),
    )


def describe(
    cls: Callable[..., object], family: str, name: str, prefix: str, sibling: object = None
) -> Component:
    """Return a component whose keys are the numbers in a class's signature, with a prefix.

    The component builds a factory, which makes the object from the arguments that fedpisa sets.

    Examples
    --------
    >>> [p.key.name for p in describe(flower.FedYogi, "server-strategy", "fed-yogi", "server-").parameters if p.key]
    ['server-eta', 'server-beta-1', 'server-beta-2', 'server-tau']
    """
    texts = [inspect.getdoc(part) or "" for part in reversed(getattr(cls, "__mro__", (cls,))[:2])]
    explained = [inspect.getdoc(sibling) or "", *texts] if sibling else texts
    docs = {key: " ".join(text.split()) for part in explained for key, text in parameter_docs(part).items()}
    parameters = []
    for parameter in inspect.signature(cls, eval_str=True).parameters.values():
        annotation = parameter.annotation
        if parameter.name not in _NOT_KEYS and annotation in _TYPES:
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            key = kebab(parameter.name)
            key = key if key.startswith(prefix) else f"{prefix}{key}"
            parameters.append(
                Parameter(parameter.name, Key(key, annotation, default, docs.get(parameter.name, "")))
            )
    summary = texts[-1].partition("\n")[0]

    def make(**options: object) -> Callable[..., Any]:
        def of(**given: object) -> object:
            taken = inspect.signature(cls).parameters
            return cls(**{k: v for k, v in {**_GIVEN, **given}.items() if k in taken}, **options)

        return of

    return Component(family, name, make, summary, tuple(parameters))


def own_strategy(component: Component) -> Component:
    """Return the component of a user's strategy, described like Flower's."""
    described = describe(component.factory, component.family, component.name, "server-")
    return dataclasses.replace(described, summary=component.summary)


def combine(
    algorithm: Algorithm,
    strategy: Callable[..., Any] | None,
    wrapper: Callable[..., Any] | None,
    num_sampled_clients: int,
) -> Callable[[], Strategy]:
    """Return a factory of the server's Flower strategy, with its wrapper for privacy if there is one.

    ``algorithm`` is that of round 1.

    Raises
    ------
    ValueError
        If the algorithm's uploads are not models, or Flower refuses a value.
    """
    if not isinstance(algorithm, ModelAveraging):
        from fedpisa.families import available

        names = [
            name for name, part in available("algorithm").items()
            if isinstance(part.factory, type) and issubclass(part.factory, ModelAveraging)
            and not part.factory.reference
        ]  # fmt: skip
        raise ValueError(
            f"server-strategy and differential-privacy replace a mean of models, and "
            f"{type(algorithm).__name__} computes more than that: use algorithm = {' or '.join(names)}"
        )
    rate = algorithm.local_update.learning_rate

    def make() -> Strategy:
        inner = strategy(client_learning_rate=rate) if strategy else flower.FedAvg(**_GIVEN_TO_FEDAVG)
        if not isinstance(inner, Strategy):
            raise ValueError(f"the server-strategy is a {type(inner).__name__}: it must be a Flower Strategy")
        if wrapper is None:
            return inner
        wrapped: Strategy = wrapper(strategy=inner, num_sampled_clients=num_sampled_clients)
        return wrapped

    require_trimming(make(), num_sampled_clients)
    return make


_GIVEN_TO_FEDAVG: Final[dict[str, Any]] = {k: v for k, v in _GIVEN.items() if k != "train_loss_key"}
