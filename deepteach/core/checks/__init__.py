"""Whether a step and its replay are what they should be; what is not is refused."""
