"""Recurrent layers that can be differentiated twice, and in eval mode, on CUDA.

cuDNN's recurrent kernels have neither a second derivative nor, in eval mode, a first one; torch's
own have both. Convolutions beside them stay with cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})


class OwnRecurrence(TorchFunctionMode):
    """While it is entered, recurrent layers run by torch's own kernels."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in RECURRENT:
            return func(*args, **(kwargs or {}))
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.backends.cudnn.enabled = before


def own_recurrence(layers: Iterable[nn.Module]) -> AbstractContextManager[object]:
    """For passes of a module of these layers; nothing without cuDNN or recurrent layers."""
    if not torch.backends.cudnn.is_available():
        return nullcontext()
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in layers)
    return OwnRecurrence() if recurrent else nullcontext()
