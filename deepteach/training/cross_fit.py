"""Probabilities for training samples by students that have not seen them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deepteach.core.predict import logits
from deepteach.data.map_style import from_loader
from deepteach.data.rows import select
from deepteach.errors import ConfigError
from deepteach.teachers.folds import folds_of
from deepteach.training.api import assembled, configured, run


def cross_fitted(
    model: nn.Module | str,
    train_data: Any,
    valid_data: Any,
    teacher: Any = "deep",
    *,
    folds: int = 5,
    classes: int | None = None,
    **settings: Any,
) -> NDArray[np.float64]:
    """Out-of-sample probabilities of the training samples, in their order: `(n, classes)`.

    The training samples are parted into `folds`, alike in their labels. For each of them a
    fresh copy of `model` is taught on the others, and says what it thinks of this one. So the
    whole costs about `folds` - 1 trainings. The columns are the classes in sorted order (or the
    labels of several), as `cleanlab.filter.find_label_issues(labels, pred_probs)` takes them.

    Args:
        model: as in `train`; it is not changed.
        train_data: as in `train`.
        valid_data: trusted samples; they teach in every fold.
        teacher: as in `train`; copied for every fold.
        folds: 2 or more.
        classes: their number, unless it is to be read off the labels.
        settings: as in `train`, but for `decisions` and what is written or trained beside.

    Raises:
        DataError: data that cannot be trained on.
        ConfigError: settings that do not go together, no trusted samples, quantities in place of
            classes, or more folds than any class has samples.
    """
    if not isinstance(folds, int | np.integer) or folds < 2:
        raise ConfigError(f"folds must be 2 or more, got {folds!r}")
    if valid_data is None:
        raise ConfigError("cross_fitted needs trusted samples: give valid_data")
    if settings.get("out") is not None:
        raise ConfigError("cross_fitted writes no run: leave out out")
    if settings.get("decisions") is not None:
        raise ConfigError(
            "cross_fitted judges every sample under its given label: leave out decisions"
        )
    settings = {"data": "arrays", **from_loader(train_data), **settings}
    settings |= {"baseline": False, "beside": ()}
    config, own = configured(model, teacher, settings)
    given = {"train_data": train_data, "valid_data": valid_data, "test_data": None}
    data = assembled(config, model, given, None, classes)
    data.task.probabilities(torch.zeros(1, data.task.outputs))  # refuses before anything is trained
    strata = torch.from_numpy(data.task.strata(data.y_train.numpy()))
    parts = folds_of(strata, folds, config.seed)
    found: NDArray[np.float64] | None = None
    for fold in range(folds):
        held = parts == fold
        rest, left_out = ((~held).nonzero().squeeze(1), held.nonzero().squeeze(1))
        fresh = {name: copy.deepcopy(own[name]) for name in ("module", "teacher")}
        result = run(config, data.only(rest), **{**own, **fresh})
        student = result.model if result.model_ema is None else result.model_ema
        said = logits(student, select(data.x_train, left_out))
        if found is None:
            found = np.empty((len(held), result.task.probabilities(said[:1]).shape[1]))
        found[left_out.numpy()] = result.task.probabilities(said).numpy()
    assert found is not None
    return found
