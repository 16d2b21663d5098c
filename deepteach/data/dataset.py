"""One problem, in memory or read on access, and the checks that it must pass.

Symbols: n samples, c channels, h height, w width, d columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepteach.data.checked import checked, with_trusted
from deepteach.data.lazy import LazyRows
from deepteach.data.ranges import Range, refuse_two_ranges
from deepteach.data.repeats import Keys, Repeats
from deepteach.data.rows import Samples, select
from deepteach.data.scaling import divisor, lost_digits, normalised, spread, whole
from deepteach.data.tables.frames import columns_of
from deepteach.data.tasks.base import Task
from deepteach.data.tasks.classification import Classification
from deepteach.data.tasks.registry import AUTO
from deepteach.data.texts import Texts
from deepteach.data.validation import (
    Numbers,
    as_array,
    refuse_beyond_single,
    refuse_lengths,
    refuse_non_finite,
    refuse_overflow,
    row_numbers,
)
from deepteach.errors import DataError


@dataclass(frozen=True, eq=False)
class Data:
    """Training, trusted (validation) and test samples of one problem, on the CPU.

    Training and test samples may be read on access (`LazyRows`); trusted ones are in memory.
    x = (raw - mean) / scale with the moments of the training samples: per channel for
    images (n, c, h, w) and series (n, c, t), per column for tables (n, d).
    """

    x_train: Samples  # (n, ...) float32; int32 or int64 where they are tokens
    y_train: Tensor  # codes of `task`, (n,) int64 in 0..C-1 of classes, as given: maybe wrong
    x_valid: Tensor  # (m, ...) as x_train
    y_valid: Tensor  # (m,), likewise: trusted
    x_test: Samples | None  # only measures
    y_test: Tensor | None
    y_clean: Tensor | None  # the truth of the training labels, where known
    classes: int  # C, or what the task has in their place
    name: str  # what the data is called, in messages
    mean: Tensor  # (c, 1, 1), (c, 1), (d,), ... float64: it spreads over a sample
    scale: Tensor
    rows: Tensor  # (n,) int64: the user's own row number of each training sample
    rows_valid: Tensor | None = None  # of the trusted samples, where they share that numbering
    paths: Texts | None = None  # (n,) the file of each training sample, where known
    group: Tensor | None = None  # (n,) int64 codes of the sources of the training samples
    group_names: tuple[str, ...] = ()  # by code
    label_names: tuple[str, ...] | None = None  # by label, where the user's were not 0..C-1
    notes: tuple[str, ...] = ()  # what the user must be told
    task: Task = Classification()  # what the labels are; its names and number are filled in
    columns: tuple[Any, ...] | None = None  # of the frame that x_train was
    decisions: str = ""  # what a person has decided of single rows, and was done, as a csv

    def __post_init__(self) -> None:
        names = self.label_names if self.task.names is None else self.task.names
        object.__setattr__(self, "task", replace(self.task, classes=self.classes, names=names))

    def only(self, places: Tensor) -> Data:
        """Of the training samples those at `(k,)` places; the other parts, and scales, stay."""
        return replace(
            self,
            x_train=select(self.x_train, places),
            y_train=self.y_train[places],
            y_clean=None if self.y_clean is None else self.y_clean[places],
            rows=self.rows[places],
            paths=None if self.paths is None else self.paths.take(places.numpy()),
            group=None if self.group is None else self.group[places],
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether a sample is (channels, height, width)."""
        return self.x_train.dim() == 4


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_valid: Any = None,
    y_valid: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    y_clean: Any = None,
    *,
    group_train: Any = None,
    paths_train: Sequence[str] | None = None,
    rows_train: Any = None,
    rows_valid: Any = None,
    rows_test: Any = None,
    name: str = "arrays",
    seed: int = 0,
    classes: int | None = None,
    label_names: Sequence[str | int] | None = None,
    valid_size: int | None = None,
    normalise: bool = True,
    as_given: bool = False,
    task: str = AUTO,
    overwrite: bool = False,
) -> Data:
    """Check arrays, tensors or data frames, and turn them into tensors.

    Args:
        x_train: (n, d), (n, h, w), images with channels last (1, 3 or 4) or first, or more axes,
            of which the second is that of the channels; or `LazyRows`, which stay unread. So may
            x_test, while an x_valid of them is read into memory.
        y_train: labels, as their task reads them: (n,) of classes.
        x_valid: trusted samples, as x_train.
        y_valid: their labels.
        x_test: samples that only measure, as x_train.
        y_test: their labels.
        y_clean: the truth of y_train, where known.
        group_train: the source of each training sample, numbers or text.
        paths_train: the file of each training sample.
        rows_train: the user's own row numbers (default: the place in x_train).
        rows_valid: those of the trusted samples, where they share that numbering.
        rows_test: those of the test samples, likewise, for messages.
        name: what the data is called.
        seed: of the split of a trusted set.
        classes: their number, unless it is to be read off the labels.
        label_names: what the user calls each label, where it is no number.
        valid_size: how many training samples become the trusted set where there is no
            x_valid (default: 10 %, at least 2 per class, at most 1000), stratified; their
            labels are the truth where `y_clean` is known. Of an x_valid that is given, how
            many are used (default: all), stratified, too.
        normalise: centre and scale by the moments of the training samples; of those that are
            read on access, the samples that are split off count as well.
        as_given: for a module of the user's own. What is not bytes keeps its axes, and whole
            numbers stay whole numbers, neither centred nor scaled.
        task: what the labels are, a name of `tasks.registry.TASKS`; found out unless given.
        overwrite: inputs may be scaled in place, for the caller has no more use for them.

    Raises:
        DataError: one line that says what is wrong, where, and what to do.
    """
    parts = checked(
        {"x_train": x_train, "x_valid": x_valid, "x_test": x_test},
        {"y_train": y_train, "y_clean": y_clean, "y_valid": y_valid, "y_test": y_test},
        {"train": rows_train, "valid": rows_valid, "test": rows_test},
        group=group_train,
        paths=paths_train,
        classes=classes,
        names=label_names,
        as_given=as_given,
        task=task,
    )
    split_off = "x_valid" not in parts.xs
    parts = with_trusted(parts, seed, valid_size)
    xs, notes = parts.xs, parts.notes
    lazy = isinstance(xs["x_train"], LazyRows) or isinstance(xs["x_valid"], LazyRows)
    keys = Keys.of(xs["x_train"], xs["x_valid"], wide=not as_given) if lazy else None
    if isinstance(xs["x_valid"], LazyRows):
        xs = {**xs, "x_valid": xs["x_valid"].held()}
    refuse_two_ranges({k: Range.of(v) for k, v in xs.items()})
    x, mean, scale, lost = _scaled(xs, normalise, as_given, overwrite, parts.rows)
    if lost is not None:
        notes = (*notes, lost)
        warnings.warn(lost, UserWarning, stacklevel=2)
    y = {k: torch.from_numpy(v) for k, v in parts.ys.items()}
    trusted, group, called = parts.rows.get("valid"), parts.group, parts.task.names
    data = Data(
        x_train=x["x_train"],
        y_train=y["y_train"],
        x_valid=x["x_valid"],
        y_valid=y["y_valid"],
        x_test=x.get("x_test"),
        y_test=y.get("y_test"),
        y_clean=y.get("y_clean"),
        classes=parts.task.classes,
        name=name,
        mean=mean,
        scale=scale,
        rows=torch.from_numpy(parts.rows["train"]),
        rows_valid=None if trusted is None else torch.from_numpy(trusted),
        paths=parts.paths,
        group=None if group is None else torch.from_numpy(group),
        group_names=parts.group_names,
        label_names=None if called is None else tuple(map(str, called)),
        task=parts.task,
        columns=None if (columns := columns_of(x_train)) is None else tuple(columns),
    )
    return replace(data, notes=(*notes, *check(data, split_off=split_off, keys=keys)))


def check(data: Data, *, split_off: bool = False, keys: Keys | None = None) -> tuple[str, ...]:
    """What a user must be told about `data`.

    Refused: labels that are not of the task, arrays of different length, NaN or
    Inf, an empty or one-class part, and a validation set that repeats training rows, unless
    it was `split_off` from them. Warned about: a tiny validation set, one that lacks a class
    of the training set, and a few rows that are in both. `keys` tell rows apart where they
    are not all in memory.

    Raises:
        DataError: the data cannot be used.
    """
    xs = {"x_train": data.x_train, "x_valid": data.x_valid, "x_test": data.x_test}
    ys = {
        "y_train": data.y_train,
        "y_clean": data.y_clean,
        "y_valid": data.y_valid,
        "y_test": data.y_test,
    }
    for name, x in xs.items():
        if isinstance(x, Tensor):
            refuse_non_finite(x.numpy(), name)
    labels = {k: as_array(y) for k, y in ys.items() if y is not None}
    refuse_lengths({k: x for k, x in xs.items() if x is not None}, labels)
    rows = row_numbers(data.rows, "rows", len(data.x_train))
    data.task.refuse_strange(labels)
    told = data.task.told(labels)
    notes, warned = [one.note for one in told], [one.note for one in told if one.warn]
    keys = keys or Keys.of(data.x_train, data.x_valid)
    repeats = Repeats.of(keys)
    rows_valid = None if data.rows_valid is None else data.rows_valid.numpy()
    if twins := repeats.across(rows, rows_valid, refuse=not split_off):
        notes.append(twins)
        warned.append(twins)
    if twins := repeats.within(labels["y_train"], rows):
        notes.append(twins)
    for note in warned:
        warnings.warn(note, stacklevel=2)
    return tuple(notes)


def _scaled(
    xs: dict[str, Any], normalise: bool, as_given: bool, overwrite: bool, numbers: Numbers
) -> tuple[dict[str, Any], Tensor, Tensor, str | None]:
    """The samples as tensors, the mean and scale that were taken out of them, and what to tell."""
    kinds = {k: x.raw_dtype if isinstance(x, LazyRows) else x.dtype for k, x in xs.items()}
    keep = {k: as_given and kind.kind in "iu" and kind != np.uint8 for k, kind in kinds.items()}
    for k in xs:
        if keep[k] != keep["x_train"]:
            raise DataError(
                f"{k} has dtype {kinds[k]}, x_train {kinds['x_train']}: give both whole numbers, "
                "or both floats"
            )
    train = xs["x_train"]
    plain = keep["x_train"] or not normalise
    mean, std = train.moments.spread() if isinstance(train, LazyRows) else spread(train)
    bounded = (np.maximum(np.abs(mean), std) <= np.finfo(np.float32).max).all()
    if not bounded and isinstance(train, np.ndarray):  # what is read on access was looked at
        refuse_beyond_single(train, "x_train", numbers)
    lost = lost_digits(mean, std) if plain and not keep["x_train"] else None
    scale = divisor(mean, std)
    if plain:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    made: dict[str, Any] = {}
    for k, x in xs.items():
        if isinstance(x, LazyRows):
            made[k] = x if keep[k] or plain and x.raw_dtype.kind == "f" else x.scaled(mean, scale)
        else:
            made[k] = whole(x) if keep[k] else normalised(x, mean, scale, overwrite=overwrite)
            if not keep[k]:
                refuse_overflow(made[k], x, k, numbers)
    return made, torch.from_numpy(mean), torch.from_numpy(scale), lost
