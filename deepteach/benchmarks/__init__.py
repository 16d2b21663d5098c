"""What teaching costs, measured; only the command line imports it."""
