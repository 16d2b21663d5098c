"""The engine: all that a training loop of one's own needs, nothing else."""
