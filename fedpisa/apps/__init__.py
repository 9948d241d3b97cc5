"""The apps that `flwr run` starts: the same algorithms on real nodes."""
