"""The samples that a training reads, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.teachers.group import TRUSTED


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
        """`(batch,)` source of each of the rows, `TRUSTED` for rows from n on.

        Where no sources are known, training samples beside trusted ones are of source 0; of a
        batch without trusted ones nothing is said (None).
        """
        count, here = len(self.y), rows.to(self.y.device)
        if self.group is not None:
            own = self.group[here.clamp(max=count - 1)]
        elif bool((rows >= count).any()):
            own = torch.zeros_like(here)
        else:
            return None
        return torch.where(here < count, own, TRUSTED)
