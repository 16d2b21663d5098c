"""What labels mean: a task a file, `base.py` first; `registry.py` finds it."""
