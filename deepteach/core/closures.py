"""The closure that `optimizer.step` may be given, among its arguments as hooks see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def closure_of(args: tuple, kwargs: dict) -> Callable[[], Any] | None:
    """The closure that `optimizer.step` was given; `args` begin with the optimizer."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure if callable(closure) else None


def with_closure(args: tuple, kwargs: dict, closure: Callable[[], Any]) -> tuple[tuple, dict]:
    """The same arguments of `optimizer.step` with another closure."""
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}
