"""The samples that a training reads, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.data.dataset import Data

NO_GROUP = -1
"""The group of a trusted sample that trains along: it comes from no source of training data."""


@dataclass(frozen=True, eq=False)
class DeviceData:
    """Training samples `(n, ...)` and trusted ones `(m, ...)`; `group` `(n,)` where known."""

    x: Tensor
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    group: Tensor | None = None

    @classmethod
    def of(cls, data: Data, device: torch.device) -> DeviceData:
        """Move what a training reads to its device."""
        return cls(
            x=data.x_train.to(device),
            y=data.y_train.to(device),
            x_valid=data.x_valid.to(device),
            y_valid=data.y_valid.to(device),
            group=None if data.group is None else data.group.to(device),
        )

    def groups(self, rows: Tensor) -> Tensor | None:
        """`(batch,)` source of each row, `NO_GROUP` for rows from n on; None where unknown."""
        if self.group is None:
            return None
        count = len(self.group)
        own = self.group[rows.clamp(max=count - 1)]
        return torch.where(rows < count, own, torch.full_like(own, NO_GROUP))
