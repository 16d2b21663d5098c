"""The samples that a training reads, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.data.rows import Samples, readable
from deepteach.teachers.group import TRUSTED


@dataclass(frozen=True, eq=False)
class DeviceData:
    """Training samples `(n, ...)` and trusted ones `(m, ...)`; `group` `(n,)` where known."""

    x: Samples
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    group: Tensor | None = None

    @classmethod
    def of(cls, data: Data, device: torch.device) -> DeviceData:
        """Move what a training reads to its device."""
        return cls(
            x=data.x_train.to(device),
            y=data.task.learned(data.y_train).to(device),
            x_valid=data.x_valid.to(device),
            y_valid=data.task.learned(data.y_valid).to(device),
            group=None if data.group is None else data.group.to(device),
        )

    def inputs(self, rows: Tensor, needed: Tensor | None = None) -> Tensor:
        """`(batch, ...)` inputs; rows from n on are trusted samples.

        Of inputs that must be read only those at the `needed` places of the batch are, where
        these are given; the others are 0.
        """
        if needed is not None and len(needed) < len(rows) and readable(self.x) is not None:
            found = self.inputs(rows[needed])
            whole = found.new_zeros((len(rows), *found.shape[1:]))
            whole[needed.to(found.device)] = found
            return whole
        count, trusted = len(self.y), rows >= len(self.y)
        if not bool(trusted.any()):
            return self.x[rows if readable(self.x) is not None else rows.to(self.y.device)]
        others, own = (rows[trusted] - count).to(self.y.device), ~trusted
        inputs = self.x_valid.new_empty((len(rows), *self.x_valid.shape[1:]))
        inputs[trusted] = self.x_valid[others]
        if bool(own.any()):
            inputs[own] = self.inputs(rows[own])
        return inputs

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
