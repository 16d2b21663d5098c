"""What a run leaves on a disk: checkpoints, settings, results. It knows no training."""
