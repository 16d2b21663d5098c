"""Arguments of a user's own: one of another kind than expected is refused in a line."""

from __future__ import annotations

import math
from inspect import signature
from operator import index
from typing import Any, TypeVar

from deepteach.errors import ConfigError

Expected = TypeVar("Expected")


def as_number(value: Any) -> float:
    """A number of any type that is one; NaN for what is none."""
    try:
        return math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor of several
        return math.nan


def positive(name: str, value: Any, remedy: str) -> float:
    """A number above 0, perhaps infinite. Raises ConfigError."""
    if not (found := as_number(value)) > 0:
        raise ConfigError(f"{name} must be a number above 0, got {value!r}: {remedy}")
    return found


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of any integer type. Raises ConfigError."""
    try:
        found = None if isinstance(value, bool) else index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        raise ConfigError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return found


def object_of(name: str, value: Any, kind: type[Expected], example: str) -> Expected:
    """What is of that kind. Raises ConfigError: it is not, as a class of it is not."""
    if isinstance(value, kind):
        return value
    came = f"of type {type(value).__name__}"
    if isinstance(value, type) and issubclass(value, kind):
        came, wanted = f"the class {value.__name__}", signature(value).parameters.values()
        if all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted
        ):
            example = f"dt.{value.__name__}()"
    raise ConfigError(f"{name} must be an object like {example}, got {came}: give {example}")
