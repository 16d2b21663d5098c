"""Which samples a batch has, for what remembers them."""

from __future__ import annotations

from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError


def sample_index(snapshot: Snapshot, reader: str) -> Tensor:
    """The index of each sample, `(batch,)` int64.

    Args:
        snapshot: the batch.
        reader: who remembers samples, named in the error.

    Raises:
        ConfigError: the loop does not say which samples these are.
    """
    if snapshot.index is None:
        raise ConfigError(
            f"{reader} remembers samples: say which they are by coach.loss(x, y, index=...)"
        )
    return snapshot.index
