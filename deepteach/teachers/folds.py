"""Which part of a cross-fitting each sample belongs to."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.rng import stream


def turns(order: Tensor, folds: int) -> Tensor:
    """The part of each sample, `(n,)`: samples take turns in this order."""
    part = torch.empty_like(order)
    part[order] = torch.arange(len(order), device=order.device) % folds
    return part


def folds_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """`(n,)` the part of each sample, of `folds`; every label is spread evenly over them.

    Raises:
        ConfigError: no label has as many samples.
    """
    from sklearn.model_selection import StratifiedKFold

    if int(labels.bincount().max()) < folds:
        raise ConfigError(
            f"cross-validation in {folds} folds needs a class of as many samples: set "
            f"folds={int(labels.bincount().max())} or less"
        )
    drawn = stream(seed, "folds").initial_seed() % 2**32  # as large as scikit-learn takes
    splits = StratifiedKFold(folds, shuffle=True, random_state=drawn)
    parts = torch.empty_like(labels)
    with warnings.catch_warnings():
        # A class of fewer samples than folds is missing from some parts, and that is all.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for part, (_, held) in enumerate(splits.split(labels, labels)):
            parts[torch.from_numpy(held)] = part
    return parts
