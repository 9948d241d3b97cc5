"""The engine that computes a whole cohort as stacked tensors."""
