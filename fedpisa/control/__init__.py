"""The mathematics of reinforcement learning, and environments: pure functions of arrays and tensors."""
