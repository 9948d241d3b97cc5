"""Files, client rows and checkpoints."""
