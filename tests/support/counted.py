"""How much an operation costs, by count and not by clock."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """Notes how many calls were made, and the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        made = found if isinstance(found, tuple | list) else [found]
        sizes = [leaf.numel() for leaf in made if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return found
