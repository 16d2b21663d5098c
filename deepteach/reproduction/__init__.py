"""The tables of the paper at three scales; only the command line imports it."""
