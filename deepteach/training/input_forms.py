"""In which form a module of the user's own takes the samples."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepteach.core.predict import device_of, evaluating
from deepteach.core.student import Student, last_linear, refuse_lazy
from deepteach.data.dataset import Data
from deepteach.data.lazy import LazyRows
from deepteach.data.reading import Request
from deepteach.data.tasks.binary import Binary
from deepteach.data.tasks.classification import Classification
from deepteach.data.validation import as_array, features
from deepteach.errors import ConfigError
from deepteach.rng import replayed
from deepteach.training.build import state_width


def bytes_are_whole(model: object, internal: str | None, x: Any) -> bool:
    """Whether `x`, arrays or `LazyRows`, is bytes that are whole numbers to the module, not pixels.

    They are pixels, to be normalised as images, unless it takes two samples only as they are. An
    embedding reads whole numbers, so a module with one gets them as they are if it can.
    """
    layer = (internal or last_linear(model)) if isinstance(model, nn.Module) else None
    forms = None if layer is None else _two_of(x)
    if not isinstance(model, nn.Module) or layer is None or forms is None:
        return False
    pixels, whole = forms
    images = not _embeds(model) and _takes(model, layer, pixels)
    return not images and _takes(model, layer, whole)


def _embeds(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in module.modules())


def _two_of(x: Any) -> tuple[Tensor, Tensor] | None:
    """Two samples of bytes, as pixels and as whole numbers; None of what is not bytes."""
    if isinstance(x, LazyRows):
        if x.raw_dtype != np.uint8:
            return None
        two = Request(range(min(2, len(x))))
        return x.items.inputs(two).float() / 255, replace(x.items, whole_bytes=True).inputs(two)
    try:
        found = as_array(x[:2] if isinstance(x, np.ndarray | Tensor) else x)[:2]
    except (TypeError, ValueError, IndexError):
        return None  # it is refused where all of it is looked at
    if found.dtype != np.uint8 or found.ndim < 2 or 0 in found.shape:
        return None
    pixels = np.ascontiguousarray(features(found, "x_train", as_given=True))
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(found.astype(np.int64))


def _takes(module: nn.Module, layer: str, inputs: Tensor) -> bool:
    """Whether a pass of these samples succeeds; it changes nothing."""
    try:
        refuse_lazy(module)
        student = Student(module, layer)
        with torch.no_grad(), evaluating(module), replayed(None):
            student.functional({}, student.buffers(), inputs.to(device_of(module)))
    except Exception:  # the user's code may raise anything
        return False
    return True


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
    if not isinstance(model, nn.Module) or not layer:
        return made(), False
    student, refusals = Student(copy.deepcopy(model), layer), []
    if x.dtype == np.uint8 or x.ndim == 2 and not whole:
        return _by_outputs(student, made()), False
    first = whole and _embeds(model)
    for as_given in (first, not first):
        with warnings.catch_warnings():
            if refusals:
                warnings.simplefilter("ignore")  # they were given once
            data = made(normalise=not as_given or x.dtype.kind == "b", as_given=as_given)
        data = _by_outputs(student, data)
        try:
            state_width(student, data)
            return data, as_given
        except ConfigError as error:
            refusals.append(str(error))
    raise ConfigError(f"{refusals[0]}; of X {'normalised' if first else 'as it is'}: {refusals[1]}")


def _by_outputs(student: Student, data: Data) -> Data:
    """The same, of task binary where a module gives one logit for two classes."""
    if type(data.task) is Classification and data.classes == 2:
        one = replace(data, task=Binary())
        with suppress(ConfigError):
            state_width(student, one)
            return one
    return data
