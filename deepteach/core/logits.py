"""The one tensor of logits in what a module returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from deepteach.errors import ConfigError


def logits_of(raw: Any) -> Tensor:
    """The logits that a module returns.

    They are the result itself, its `logits` (attribute or key), or the first item of a tuple
    or list.

    Raises:
        ConfigError: none of these is a tensor with a row for each sample.
    """
    logits = raw
    if isinstance(raw, Mapping):
        logits = raw.get("logits")
    elif hasattr(raw, "logits"):
        logits = raw.logits
    elif isinstance(raw, tuple | list) and raw:
        logits = raw[0]
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        came = type(raw).__name__
        if isinstance(logits, Tensor):
            came = "a single number" if logits is raw else f"{came} that begins with one number"
        raise ConfigError(
            "the module must return logits, an object or mapping with logits, or a tuple that "
            f"begins with them, got {came}: wrap it in a module whose forward returns them alone, "
            f"or, in a loop of your own, pick them with dt.Student(logits=...); {_JOIN}"
        )
    return logits


def picked_logits(pick: Callable[[Any], Any], raw: Any) -> Tensor:
    """What a function of the user's own picks. Raises ConfigError: it is no tensor."""
    logits = pick(raw)
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"dt.Student(logits=...) must return one tensor, got {type(logits).__name__}: {_JOIN}"
        )
    return logits


_JOIN = "join several heads, torch.cat([...], 1), to split them in the loss"
