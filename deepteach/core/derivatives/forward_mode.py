"""Forward-mode derivatives, without what torch loads for operations that hardly any student has.

`torch.autograd.forward_ad` imports the exporter and compiles some twenty decompositions when it is
first used, which takes as long as thousands of steps of a small student. They serve operations
without a rule of their own; so they are loaded when one is met.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deepteach.tree import Params

_PLACES: tuple[Any, Any] = (torch._VF, torch._C)
_enter, _exit, _make, _unpack = (
    next((getattr(place, name) for place in _PLACES if hasattr(place, name)), None)
    for name in ("_enter_dual_level", "_exit_dual_level", "_make_dual", "_unpack_dual")
)
_LEAN = None not in (_enter, _exit, _make, _unpack)
"""Whether this torch has the kernels that `forward_ad` wraps, by the names that they had."""

_loaded = False


def along(
    function: Callable[[Params], tuple[Tensor, ...]], theta: Params, direction: Params
) -> list[tuple[Tensor, Tensor | None]]:
    """(value, slope along `direction`) of each result of `function` at `theta`, without a graph.

    A slope is None where a result does not depend on theta. The function may be called twice.

    Raises:
        NotImplementedError or RuntimeError: an operator has no forward rule.
    """
    global _loaded
    if not _LEAN and not _loaded:
        _load_decompositions()
        _loaded = True
    if not _loaded:
        try:
            return _along(function, theta, direction)
        except (NotImplementedError, RuntimeError) as error:
            if not lacks_forward_rule(error):
                raise
        _load_decompositions()
        _loaded = True
    return _along(function, theta, direction)


def _load_decompositions() -> None:
    """What torch loads at first use, when it warns that it scripts, which no user can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_module("torch._decomp.decompositions_for_jvp")
        except ImportError:  # of another torch: then it is loaded, and warned of, as ever
            pass


def _along(
    function: Callable[[Params], tuple[Tensor, ...]], theta: Params, direction: Params
) -> list[tuple[Tensor, Tensor | None]]:
    make, unpack = _make_and_unpack()
    with torch.no_grad(), _level() as level:
        dual = {n: make(leaf.detach(), direction[n], level=level) for n, leaf in theta.items()}
        return [tuple(unpack(found, level=level)) for found in function(dual)]


def _make_and_unpack() -> tuple[Callable[..., Any], Callable[..., Any]]:
    if _make is None or _unpack is None:
        return forward_ad.make_dual, forward_ad.unpack_dual
    return _make, _unpack


@contextmanager
def _level() -> Iterator[int]:
    if _enter is None or _exit is None:
        with forward_ad.dual_level() as level:
            yield level
        return
    level = _enter()
    try:
        yield level
    finally:
        _exit(level=level)


def lacks_forward_rule(error: Exception) -> bool:
    """Whether torch says that an operation has no forward-mode derivative."""
    text = str(error)
    return any(part in text for part in _NO_RULE)


_NO_RULE = ("forward AD", "forward-mode", "jvp", "Could not run 'aten::")
"""What torch says then; the last where it can make no tangents of sparse tensors."""
