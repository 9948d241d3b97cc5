"""A run's keys and their values."""
