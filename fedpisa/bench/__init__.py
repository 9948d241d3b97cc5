"""Benchmarks: workloads and measurements of speed, memory and start-up for ``fedpisa bench`` and ``benchmarks/``.

Only `networks` imports torch before a job runs, so that competitors in other environments can read the workloads.
"""
