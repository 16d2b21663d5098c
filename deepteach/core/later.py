"""Numbers that are found when somebody asks for them: on a device each would be waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Later:
    """A number that is found when it is asked for: `find` makes somebody say `found`."""

    __slots__ = ("_find", "_value")

    def __init__(self, find: Callable[[], None]) -> None:
        self._find: Callable[[], None] | None = find
        self._value = 0.0

    def found(self, value: float) -> None:
        self._value, self._find = value, None

    def __float__(self) -> float:
        if self._find is not None:
            self._find()
        return self._value


class WhenAsked:
    """A field of a dataclass: a number, or a `Later` that is found when the field is read.

    0 unless given. `vars(instance)["_" + name]` is what was given, found or not.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, owner: Any, kind: type | None = None) -> float:
        return 0.0 if owner is None else float(vars(owner)[self._name])

    def __set__(self, owner: Any, value: float | Later) -> None:
        vars(owner)[self._name] = value
