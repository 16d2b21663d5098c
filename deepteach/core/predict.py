"""Predictions of a student in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepteach.core.logits import logits_of
from deepteach.data.rows import Samples, chunks

CHUNK = 512
"""Samples per evaluation pass, at most."""

NUMBERS_AT_ONCE = 2**22
"""Numbers that the inputs of an evaluation pass hold, at most."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule's own mode is put back."""
    with whole_mode(module, training=False), torch.no_grad():
        yield


@contextmanager
def whole_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """All of a module in one mode; every submodule's own is put back."""
    flags = [(layer, layer.training) for layer in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for layer, flag in flags:
            layer.training = flag


def device_of(module: nn.Module) -> torch.device:
    """The device of its first parameter."""
    return next(iter(module.parameters())).device


def logits(module: nn.Module, inputs: Samples) -> Tensor:
    """`(n, classes)` logits on the CPU, in eval mode."""
    device = device_of(module)
    with evaluating(module):
        parts = [
            logits_of(module(part)).float().cpu()
            for part in chunks(inputs, at_once(inputs), device)
        ]
    return torch.cat(parts)


def at_once(inputs: Samples) -> int:
    """How many samples are evaluated together: `CHUNK`, or fewer large ones.

    So that looking at large images takes no more memory than training on a batch of them.
    """
    return max(1, min(CHUNK, NUMBERS_AT_ONCE // max(math.prod(inputs.shape[1:]), 1)))


def accuracy(module: nn.Module, inputs: Samples, labels: Tensor) -> float:
    """The share of `(n,)` labels that are predicted right, in eval mode."""
    return float((logits(module, inputs).argmax(1) == labels.cpu()).float().mean())
