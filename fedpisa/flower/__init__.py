"""How fedpisa's tensors travel in Flower's messages."""
