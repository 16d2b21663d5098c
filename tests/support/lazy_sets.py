"""Datasets whose samples are made on access, and note that they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Listed(Dataset[Any]):
    """Samples of arrays, one at a time; `reads` are the rows in the order of access.

    `draws` adds noise from all three global generators, as random augmentation does.
    """

    def __init__(self, x: Any, y: Any, group: Any = None, *, draws: bool = False) -> None:
        self.x, self.y, self.group, self.draws = x, y, group, draws
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        self.reads.append(row)
        x, y = self.x[row], self.y[row]
        if self.draws:
            x = x + 0.1 * np.float32(np.random.normal() + float(torch.randn(())) + random.random())
        return (x, y) if self.group is None else (x, y, self.group[row])


class Failing(Listed):
    """Samples of which one cannot be read."""

    def __getitem__(self, row: int) -> Any:
        if row == 7:
            raise OSError("the disk\nis gone")
        return super().__getitem__(row)
