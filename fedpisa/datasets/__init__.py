"""Federated data: sources, partitioners that split them among clients, and measures of heterogeneity.

`fedpisa.families.data` loads a data set and splits it by name.
"""

from fedpisa.datasets.base import Dataset, Indices
from fedpisa.datasets.heterogeneity import Heterogeneity, heterogeneity

__all__ = ["Dataset", "Heterogeneity", "Indices", "heterogeneity"]
