"""How the meta-gradient crosses the recorded steps: one way a file."""
