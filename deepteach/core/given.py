"""Arguments of a user's own: one of another kind than expected is refused in a line."""

from __future__ import annotations

import math
from typing import Any

from deepteach.errors import ConfigError


def positive(name: str, value: Any, remedy: str) -> float:
    """A number above 0, perhaps infinite; of any type that is a number. Raises ConfigError."""
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor of several
        found = math.nan
    if not found > 0:
        raise ConfigError(f"{name} must be a number above 0, got {value!r}: {remedy}")
    return found
