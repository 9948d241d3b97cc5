"""How fast, how large, how soon: workloads, and what they cost; ``fedpisa bench`` and ``benchmarks/`` share it.

Nothing here imports torch, so that a competitor in an environment of its own can read the workloads too.
"""
