"""Our training loop: from settings and data to a trained student and its run's folder."""
