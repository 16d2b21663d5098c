"""Which source a sample comes from: one learned number for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepteach.core.feature import Feature
from deepteach.core.given import whole_number
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError

TRUSTED = -1
"""The group of a trusted sample that trains along: it comes from no source of training data."""


def rides(snapshot: Snapshot) -> Tensor:
    """`(batch,)` bool: which samples are trusted ones that ride along."""
    if snapshot.group is None:
        return torch.zeros(len(snapshot.losses), dtype=torch.bool, device=snapshot.losses.device)
    return snapshot.group == TRUSTED


class Group(Feature):
    """The source of a sample, one-hot: a linear teacher learns one number a source.

    Where nobody can know which sources help, that is easily learned. The last column is that
    of the trusted samples that ride along in a batch (group -1): the trusted set is one more
    source. `deep`'s own teacher, `log_linear.LogLinear`, does not read it: they count 1 there.

    Args:
        count: sources; groups are 0..count-1, or -1.
        shares: of the training samples, one a source, by which a source's number is told less
            the mean of all: what is learned then is how the sources differ, and not what all of
            them count beside trusted samples. None: the numbers as they are.

    Raises:
        ConfigError: not a share a source; a batch without `group`, or groups out of range, when
            they are first seen.
    """

    unit = 0.5  # learned twice as fast as other numbers: nothing is known of a source at first

    def __init__(self, count: int, shares: Sequence[float] | None = None) -> None:
        super().__init__()
        self.count = count = whole_number("Group's count of sources", count)
        self.width = count + 1
        columns = torch.eye(count + 1)
        if shares is not None:
            if len(shares) != count:
                raise ConfigError(f"Group({count}) takes a share a source, got {len(shares)}")
            columns[:count, :count] -= torch.tensor(shares)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, snapshot: Snapshot) -> Tensor:
        group = snapshot.group
        if group is None:
            raise ConfigError(
                "Group reads the source of each sample: give coach.loss(x, y, group=...), or name "
                "the sources of the data by --group COLUMN or group_train"
            )
        if group.device.type == "cpu" and len(group):  # elsewhere the look-up itself fails
            low, high = int(group.min()), int(group.max())
            if low < TRUSTED or high >= self.count:
                raise ConfigError(
                    f"Group({self.count}) got groups from {low} to {high}: expected 0 to "
                    f"{self.count - 1}, or -1 for trusted samples"
                )
        columns = self.get_buffer("columns")
        return columns[torch.where(group == TRUSTED, self.count, group)]
