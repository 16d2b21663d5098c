"""Kernels that replays need: such as can be differentiated twice, and are not compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepteach.core.derivatives.recurrent import own_recurrence

Callee = TypeVar("Callee", bound=Callable[..., Any])


def uncompiled() -> AbstractContextManager[object]:
    """Run compiled code as it was written: it cannot be differentiated twice."""
    # Where nothing was compiled the compiler need not be imported.
    used = "torch._dynamo.eval_frame" in sys.modules
    return torch.compiler.set_stance("force_eager") if used else nullcontext()


def as_written(method: Callee) -> Callee:
    """A method that a compiled function around it calls, and does not trace.

    What a Coach does beside a pass cannot be traced; what the user has compiled of the student
    stays compiled. torch's public decorator imports the compiler with the package, this one of
    its own optimizers when it is called.
    """
    return getattr(torch, "_disable_dynamo", lambda it: it)(method)


@contextmanager
def plain_kernels(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Attention and recurrence that can be differentiated twice, no activation checkpoints.

    Nor weights that `parametrize.cached()` keeps: they are those of the module's own parameters.

    The encoder's inference fast path has no derivative rules. A checkpoint would recompute its
    activations in the backward pass, by the module's own parameters and not the replay's. torch has
    no switch for that; where its internal name is gone, such a student fails the checks of replays.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    recompute = getattr(torch.utils.checkpoint, _RECOMPUTE, None)
    torch.backends.mha.set_fastpath_enabled(False)
    setattr(torch.utils.checkpoint, _RECOMPUTE, _kept_activations)
    reentrant = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _Kept  # type: ignore[misc]
    try:
        with _math_attention(), own_recurrence(layers), _uncached():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        setattr(torch.utils.checkpoint, _RECOMPUTE, recompute)
        torch.utils.checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]


@contextmanager
def _math_attention() -> Iterator[None]:
    """As `sdpa_kernel(SDPBackend.MATH)`, which takes five times as long."""
    cuda = torch.backends.cuda
    before = (
        (cuda.enable_flash_sdp, cuda.flash_sdp_enabled(), False),
        (cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled(), False),
        (cuda.enable_cudnn_sdp, cuda.cudnn_sdp_enabled(), False),
        (cuda.enable_math_sdp, cuda.math_sdp_enabled(), True),
    )
    try:
        for enable, _, wanted in before:
            enable(wanted)
        yield
    finally:
        for enable, was, _ in before:
            enable(was)


@contextmanager
def _uncached() -> Iterator[None]:
    """Parametrized weights are computed anew, inside of `parametrize.cached()` too."""
    before = getattr(parametrize, _CACHING, 0)
    setattr(parametrize, _CACHING, 0)
    try:
        yield
    finally:
        setattr(parametrize, _CACHING, before)


_CACHING = "_cache_enabled"
"""How many such blocks are entered: torch has no switch for it."""

_RECOMPUTE = "_checkpoint_without_reentrant_generator"


class _Kept:
    """In the place of the function of a reentrant checkpoint, which knows no second derivative."""

    @staticmethod
    def apply(function: Callable, _preserve: bool, *args: Any) -> Any:
        # torch's own gives gradients only where one of these wants one.
        wanted = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in args)
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted), _told(wanted):
            return function(*args)


def _kept_activations(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    """In the place of the generator that sets recomputation up around a checkpoint."""
    with _told(torch.is_grad_enabled()):
        yield


@contextmanager
def checkpoints_told(listener: Callable[[bool], None]) -> Iterator[None]:
    """The listener is called where a checkpoint that training recomputes begins, and ends.

    It is given whether it begins.
    """
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


_LISTENERS: list[Callable[[bool], None]] = []


@contextmanager
def _told(recomputed: bool) -> Iterator[None]:
    heard = tuple(_LISTENERS) if recomputed else ()
    for listener in heard:
        listener(True)
    try:
        yield
    finally:
        for listener in heard:
            listener(False)
