"""The client's side of the algorithms."""
