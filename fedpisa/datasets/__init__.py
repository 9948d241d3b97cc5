"""Federated data: sources, ways to split them among clients, and how unlike the clients are.

`fedpisa.families.data` loads a data set and splits it by name.
"""

from fedpisa.datasets.base import Dataset, Indices
from fedpisa.datasets.heterogeneity import Heterogeneity, heterogeneity

__all__ = ["Dataset", "Heterogeneity", "Indices", "heterogeneity"]
