"""Different preconditioners for parameters of different names.

Shapes: ``P`` parameters, ``()`` scalars.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, MiniBatches
from fedpisa.clients.preconditioners import Derivatives, Identity, Preconditioner
from fedpisa.components import MOST_LISTED, name_of, one_line
from fedpisa.tasks.layout import ParamLayout


@final
@dataclass(frozen=True)
class ByName(Preconditioner):
    r"""A block-diagonal ``Q``: each parameter has the preconditioner that its name selects.

    ``(sigma I + rho Q)^{-1}`` acts on the parameters of each preconditioner alone, so the step is that of independent
    preconditioners. Each gets vectors and a layout of its own parameters. A rule that evaluates more than the gradient,
    such as `Fisher`, does so for the whole model.

    Memory: rules whose vectors have the same name share one vector ``(P,)``, in which each has the entries of its own
    parameters. Scalars have the number of their rule behind their name.

    Parameters
    ----------
    rules
        Preconditioners by regular expression. The first one that `re.search` finds in a parameter's name counts.
    otherwise
        The preconditioner of the parameters in whose names no expression is found.

    Examples
    --------
    >>> from fedpisa.clients.preconditioners import Adagrad
    >>> layout = ParamLayout.of([("weight", torch.zeros(1)), ("bias", torch.zeros(1))])
    >>> rule, q = ByName(rules={"bias": Adagrad(eps=0.0)}), torch.tensor([3.0, 3.0])
    >>> derivatives = Derivatives(torch.zeros(()), q, layout=layout)
    >>> rule(q, derivatives, rule.init(q))[0]
    tensor([1., 3.])
    """

    by_parameter: ClassVar[bool] = True

    rules: Mapping[str, Preconditioner] = field(default_factory=dict, hash=False)
    otherwise: Preconditioner = Identity()

    def __post_init__(self) -> None:
        start: dict[str, tuple[Tensor, Preconditioner]] = {}
        for pattern, rule in self.rules.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"rules: {pattern!r} is not a regular expression ({one_line(error)}): correct it; "
                    "re.escape(name) matches a name literally"
                ) from error
            if not isinstance(rule, Preconditioner):
                raise ValueError(
                    f"rules: the rule of {pattern!r} is a {type(rule).__name__}: give an instance of a subclass of "
                    "fedpisa.clients.preconditioners.Preconditioner"
                )
        for rule in self._all:
            for name, value in rule.init(torch.zeros(1)).items():
                first, other = start.setdefault(name, (value, rule))
                if value.dim() and not torch.equal(value, first):
                    raise ValueError(
                        f"rules: {name_of(other)} and {name_of(rule)} keep vectors of the name {name!r} with different "
                        "initial values: rename one"
                    )

    @property
    def exact(self) -> bool:  # type: ignore[override]  # of the rules, not of the class
        """Whether all its preconditioners are exact, also those that a model has no parameters for."""
        return all(rule.exact for rule in self._all)

    @property
    def _all(self) -> tuple[Preconditioner, ...]:
        return (*self.rules.values(), self.otherwise)

    def require_parameters(self, layout: ParamLayout) -> None:
        """Raise a ValueError if an expression selects no parameter of a model."""
        for pattern, owned in zip(self.rules, _split(tuple(self.rules), layout.names)[:-1], strict=True):
            if not owned:
                names = ", ".join(layout.names[:MOST_LISTED]) + ", ..." * (len(layout.names) > MOST_LISTED)
                found = any(re.search(pattern, name) for name in layout.names)
                why = "selects only parameters of earlier expressions" if found else "matches no parameter"
                raise ValueError(f"rules: {pattern!r} {why} ({names}): correct or remove it")

    def init(self, params_P: Tensor) -> Arrays:
        """Return the memories of all preconditioners."""
        return {
            _stored(name, value, number): value
            for number, rule in enumerate(self._all)
            for name, value in rule.init(params_P).items()
        }

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Return the derivatives, with the curvature of each rule that estimates one for its parameters."""
        found, curvature_P = None, torch.zeros_like(v_P)
        for _, rule, part in self._parts(gradient.layout):
            if type(rule).evaluate is not Preconditioner.evaluate:
                own = rule.evaluate(gradient, v_P, batch, mu)
                found = found or own
                if own.curvature_P is not None:
                    curvature_P = part.put(curvature_P, part.take(own.curvature_P))
        if found is None:
            return super().evaluate(gradient, v_P, batch, mu)
        return found._replace(curvature_P=curvature_P, layout=gradient.layout)

    def direction(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return the direction of each preconditioner for its parameters."""
        return self._each(lambda rule: rule.direction, q_P, derivatives, memory)

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return what each preconditioner returns for its parameters."""
        return self._each(lambda rule: rule.__call__, q_P, derivatives, memory)

    def solve(
        self, uphill_P: Tensor, scale_P: Tensor, derivatives: Derivatives, sigma: float, rho: float
    ) -> Tensor:
        """Return the step of each preconditioner for its parameters."""
        step_P = uphill_P
        for _, rule, part in self._parts(derivatives.layout):
            own = rule.solve(part.take(uphill_P), part.take(scale_P), part.of(derivatives), sigma, rho)
            step_P = part.put(step_P, own)
        return step_P

    def _each(
        self,
        method: Callable[[Preconditioner], _Method],
        q_P: Tensor,
        derivatives: Derivatives,
        memory: Arrays,
    ) -> tuple[Tensor, Arrays]:
        """Call a method of each preconditioner with its parts of ``q``, the derivatives and the memory."""
        result_P, memory = q_P, dict(memory)
        for number, rule, part in self._parts(derivatives.layout):
            kept = {
                name: (_stored(name, value, number), value.dim())
                for name, value in rule.init(q_P[:0]).items()
            }
            own: Arrays = {
                name: part.take(memory[place]) if dim else memory[place]
                for name, (place, dim) in kept.items()
            }
            value, own = method(rule)(part.take(q_P), part.of(derivatives), own)
            result_P = part.put(result_P, value)
            for name, (place, dim) in kept.items():
                memory[place] = part.put(memory[place], own[name]) if dim else own[name]
        return result_P, memory

    def _parts(self, layout: ParamLayout | None) -> Iterator[tuple[int, Preconditioner, _Part]]:
        """Yield the number, the preconditioner and the parameters of each rule that has some."""
        assert layout is not None
        split = _split(tuple(self.rules), layout.names)
        for number, (rule, owned) in enumerate(zip(self._all, split, strict=True)):
            if owned:
                yield number, rule, _Part(layout, owned)


_Method = Callable[[Tensor, Derivatives, Arrays], tuple[Tensor, Arrays]]


@final
@dataclass(frozen=True)
class _Part:
    """Some of a model's parameters, and the parts of vectors that belong to them.

    Parameters
    ----------
    whole
        The model's layout.
    owned
        Positions of the parameters in the layout.
    """

    whole: ParamLayout
    owned: tuple[int, ...]

    @property
    def layout(self) -> ParamLayout:
        whole, owned = self.whole, self.owned
        return ParamLayout(
            names=tuple(whole.names[i] for i in owned),
            shapes=tuple(whole.shapes[i] for i in owned),
            dtypes=tuple(whole.dtypes[i] for i in owned),
        )

    @property
    def _is_all(self) -> bool:
        return len(self.owned) == len(self.whole.names)

    def take(self, vector_P: Tensor) -> Tensor:
        """Return the entries of the parameters."""
        if self._is_all:
            return vector_P
        pieces = torch.split(vector_P, self.whole.sizes)
        return torch.cat([pieces[i] for i in self.owned])

    def put(self, vector_P: Tensor, values: Tensor) -> Tensor:
        """Return a vector with other entries for the parameters; one scalar stands for all of them."""
        if self._is_all:
            return values
        pieces = list(torch.split(vector_P, self.whole.sizes))
        sizes = self.layout.sizes
        for i, piece in zip(self.owned, torch.split(values.expand(sum(sizes)), sizes), strict=True):
            pieces[i] = piece
        return torch.cat(pieces)

    def of(self, derivatives: Derivatives) -> Derivatives:
        """Return the derivatives by the parameters."""
        curvature_P = derivatives.curvature_P
        return derivatives._replace(
            gradient_P=self.take(derivatives.gradient_P),
            curvature_P=None if curvature_P is None else self.take(curvature_P),
            layout=self.layout,
        )


@functools.cache
def _split(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the names that each pattern is the first to match, and of those that none matches.

    Examples
    --------
    >>> _split(("bias", "0"), ("0.weight", "0.bias", "1.weight"))
    ((1,), (0,), (2,))
    """
    first = [next((k for k, p in enumerate(patterns) if re.search(p, name)), len(patterns)) for name in names]
    return tuple(tuple(i for i, k in enumerate(first) if k == rule) for rule in range(len(patterns) + 1))


def _stored(name: str, value: Tensor, number: int) -> str:
    """Return the name of a rule's memory among those of all rules."""
    return name if value.dim() else f"{name}-{number}"
