"""Random streams named by (seed, purpose, index): the same draws after any interruption."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator that depends on its name alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:7], "big"))
    return generator
