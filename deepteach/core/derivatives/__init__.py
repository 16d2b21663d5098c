"""Derivatives of a step: the two of its gradient, and what torch lacks of them or has wrong."""
