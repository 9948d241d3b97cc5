"""Networks that are trained in turns, each with a loss of its own: the players of a game.

Shapes: ``P`` parameters of the whole module, ``G`` those of one player.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fedpisa.tasks.layout import ParamLayout


@final
@dataclass(frozen=True)
class Player:
    """A contiguous part of the flat vector that has a loss of its own.

    Parameters
    ----------
    name
        Its name, which is that of a submodule.
    begin
        Position of its first parameter in the whole vector.
    layout
        Its parameters, under their names in the whole module.

    Examples
    --------
    >>> one = Player("critic", 1, ParamLayout.of([("critic.weight", torch.zeros(2))]))
    >>> one.of(torch.arange(4.0)), one.put(torch.zeros(4), torch.ones(2))
    (tensor([1., 2.]), tensor([0., 1., 1., 0.]))
    """

    name: str
    begin: int
    layout: ParamLayout

    @property
    def end(self) -> int:
        """Position after its last parameter."""
        return self.begin + self.layout.size

    def of(self, vector_P: Tensor) -> Tensor:
        """Return the player's part ``(G,)`` of a vector."""
        return vector_P[self.begin : self.end]

    def put(self, vector_P: Tensor, own_G: Tensor) -> Tensor:
        """Return the vector ``(P,)`` with another part for the player."""
        return torch.cat([vector_P[: self.begin], own_G, vector_P[self.end :]])


def players_of(module: nn.Module, names: Sequence[str]) -> tuple[Player, ...]:
    """Return the submodules of these names as players.

    Raises
    ------
    ValueError
        If a submodule is missing or has nothing to train, two of them are not one after the other, or a parameter
        belongs to none of them.

    Examples
    --------
    >>> module = nn.ModuleDict({"critic": nn.Linear(3, 1), "generator": nn.Linear(2, 3)})
    >>> [(one.name, one.begin, one.end) for one in players_of(module, ["critic", "generator"])]
    [('critic', 0, 4), ('generator', 4, 13)]
    """
    layout = ParamLayout.of_parameters(module)
    owner = [next((name for name in names if entry.startswith(f"{name}.")), "") for entry in layout.names]
    if "" in owner:
        entry = layout.names[owner.index("")]
        raise ValueError(
            f"parameter {entry!r} belongs to none of the networks {', '.join(names)}: put each parameter into one of "
            "these submodules, and share none"
        )
    found: list[Player] = []
    for name in names:
        rows = [row for row, one in enumerate(owner) if one == name]
        if not rows:
            raise ValueError(
                f"the model has no parameters to train in a submodule {name!r}: it needs the submodules "
                f"{' and '.join(names)}"
            )
        if rows != list(range(rows[0], rows[-1] + 1)):
            raise ValueError(
                f"the parameters of {name!r} are not one after the other: define it in one place"
            )
        own = slice(rows[0], rows[-1] + 1)
        part = ParamLayout(layout.names[own], layout.shapes[own], layout.dtypes[own])
        found.append(Player(name, sum(layout.sizes[: rows[0]]), part))
    return tuple(found)
