"""Atomic files, locks, rows of clients, tensor files and checkpoints."""
