"""PISA's preconditioners: rules for ``Q`` in (2.11), one family to a file."""

from __future__ import annotations

from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner
from fedpisa.clients.preconditioners.fisher import Fisher
from fedpisa.clients.preconditioners.hutchinson import Hutchinson
from fedpisa.clients.preconditioners.identity import Identity
from fedpisa.clients.preconditioners.moments import Adagrad, Adam, RMSprop
from fedpisa.clients.preconditioners.newton_schulz import NewtonSchulz
from fedpisa.clients.preconditioners.spectral import Spectral

__all__ = [
    "Adagrad",
    "Adam",
    "Derivatives",
    "Fisher",
    "Hutchinson",
    "Identity",
    "NewtonSchulz",
    "Preconditioner",
    "RMSprop",
    "Spectral",
]
