"""Flower Grids within one process, and the rounds they carry."""
