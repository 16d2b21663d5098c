"""In which form a module of the user's own takes the samples of an estimator."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
from torch import nn

from deepteach.core.student import Student, last_linear
from deepteach.data.dataset import Data
from deepteach.errors import ConfigError
from deepteach.training.build import state_width


def form_for(
    model: object, internal: str | None, x: np.ndarray, made: Callable[..., Data]
) -> tuple[Data, bool]:
    """The data that `made(normalise=..., as_given=...)` makes of `x`; whether they are as given.

    Normalised, with an axis of channels, unless `model` is a module that can take two samples only
    as they are: series `(n, c, t)`, or tokens. Where `x` is whole numbers and the module has an
    embedding, which numbers that are normalised would run through by accident, the order is the
    other one.

    Raises:
        ConfigError: a module that takes neither.
    """
    layer = (internal or last_linear(model)) if isinstance(model, nn.Module) else None
    whole = x.dtype.kind in "iu"
    if not isinstance(model, nn.Module) or not layer or x.dtype == np.uint8:
        return made(), False
    if x.ndim == 2 and not whole:
        return made(), False
    student, refusals = Student(copy.deepcopy(model), layer), []
    first = whole and any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    for as_given in (first, not first):
        with warnings.catch_warnings():
            if refusals:
                warnings.simplefilter("ignore")  # they were given once
            data = made(normalise=not as_given or x.dtype.kind == "b", as_given=as_given)
        try:
            state_width(student, data)
            return data, as_given
        except ConfigError as error:
            refusals.append(str(error))
    raise ConfigError(f"{refusals[0]}; of X {'normalised' if first else 'as it is'}: {refusals[1]}")
