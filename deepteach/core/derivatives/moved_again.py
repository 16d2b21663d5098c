"""Does an activation checkpoint move buffers? Training runs once more what is inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn.functional import batch_norm, instance_norm
from torch.overrides import TorchFunctionMode

from deepteach.core.derivatives.plain_kernels import checkpoints_told
from deepteach.core.layout import ModuleLayout

_BY_BATCH: dict[Callable, str] = {batch_norm: "training", instance_norm: "use_input_stats"}
"""What moves running statistics behind their versions, and the argument by which it does."""


class MovedAgain(TorchFunctionMode):
    """Looks into the checkpoints of a module's pass; entered while one of them is open.

    Versions of the module's buffers tell that they were written to; normalisations that move
    running statistics are seen as they are called.
    """

    def __init__(self, layout: ModuleLayout) -> None:
        super().__init__()
        self.found = False
        """Whether a buffer was moved inside of a checkpoint."""
        self._layout, self._open = layout, 0
        self._before: list[tuple[Tensor | None, int]] = []

    @contextmanager
    def looking(self) -> Iterator[None]:
        """During a pass."""
        try:
            with checkpoints_told(self._told):
                yield
        finally:
            if self._open:  # an error left it: it ends when that is forgotten, or never
                self._open = 0
                self.__exit__(None, None, None)

    def _told(self, begins: bool) -> None:
        if begins:
            self._open += 1
            if self._open == 1:
                self._before = self._versions()
                self.__enter__()
        elif self._open:
            self._open -= 1
            if not self._open:
                self.__exit__(None, None, None)
                self.found |= not _same(self._before, self._versions())

    def _versions(self) -> list[tuple[Tensor | None, int]]:
        held = self._layout.buffers()
        return [(leaf, 0 if leaf is None else leaf._version) for _, leaf in held]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        switch = _BY_BATCH.get(func)
        if switch is not None and not self.found:
            given = signature(func).bind(*args, **kwargs)
            given.apply_defaults()
            self.found = given.arguments["running_mean"] is not None and given.arguments[switch]
        return func(*args, **kwargs)


def _same(one: list[tuple[Tensor | None, int]], other: list[tuple[Tensor | None, int]]) -> bool:
    """Tensors are compared by what they are."""
    pairs = zip(one, other, strict=True)
    return all(a is b and was == now for (a, was), (b, now) in pairs)
