"""Where a run's figures go, epoch by epoch, besides its own folder: a kind a file."""
