"""The devices that a test runs on: the CPU always, CUDA where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
DEVICES = ["cpu", CUDA]


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Products and convolutions of float32 by tensor cores, which keep 10 bits of a factor."""
    cudnn: Any = torch.backends.cudnn
    parts: tuple[Any, ...] = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "tf32" if wanted else "ieee"
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            part.fp32_precision = old
