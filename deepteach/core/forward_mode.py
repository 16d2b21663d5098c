"""Dual numbers: the level at which torch carries a tangent beside each value."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module

import torch
from torch.autograd import forward_ad


@contextmanager
def dual_level() -> Iterator[None]:
    """A level of `torch.autograd.forward_ad`, without graphs for the reverse."""
    _decompositions()
    with torch.no_grad(), forward_ad.dual_level():
        yield


@cache
def _decompositions() -> None:
    """Load what torch loads at first use, when it warns that it scripts, which no user can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_module("torch._decomp.decompositions_for_jvp")
        except ImportError:  # of another torch: then it is loaded, and warned of, as ever
            pass
