"""Benchmarks: workloads and measurements of speed, memory and start-up for ``fedpisa bench`` and ``benchmarks/``.

The package does not import torch, so that competitors in other environments can read the workloads.
"""
