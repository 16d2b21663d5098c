"""One classification problem in memory, and the checks that it must pass.

Symbols: n samples, c channels, h height, w width, d columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepteach.data.splits import stratified_split
from deepteach.data.validation import (
    CHUNK,
    ENCODE,
    features,
    groups_of,
    labels_of,
    overlap_of,
    refuse_lengths,
    refuse_non_finite,
    refuse_one_class,
    refuse_out_of_range,
    rows_of,
)
from deepteach.errors import DataError

# What a reader of files returns: arguments of `from_arrays`, and what the user must be told.
Read = tuple[dict[str, Any], list[str]]


@dataclass(frozen=True, eq=False)
class Data:
    """Training, trusted (validation) and test samples of one problem, on the CPU.

    x = (raw - mean) / scale with the moments of the training samples: per channel for
    images (n, c, h, w), per column for tables (n, d).
    """

    x_train: Tensor  # float32
    y_train: Tensor  # (n,) int64, as given: possibly wrong
    x_valid: Tensor
    y_valid: Tensor  # trusted
    x_test: Tensor | None
    y_test: Tensor | None
    y_clean: Tensor | None  # the truth of the training labels, where known
    classes: int
    name: str
    mean: Tensor  # (c, 1, 1) or (d,)
    scale: Tensor
    rows: Tensor  # (n,) int64: the user's own row number of each training sample
    rows_valid: Tensor | None = None  # of the trusted samples, where they share that numbering
    group: Tensor | None = None  # (n,) int64 codes of the sources of the training samples
    group_names: tuple[str, ...] = ()  # by code
    label_names: tuple[str, ...] | None = None  # by label, where the user's were not 0..C-1
    notes: tuple[str, ...] = ()  # what the user must be told

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
    rows_train: Any = None,
    rows_valid: Any = None,
    name: str = "arrays",
    seed: int = 0,
    classes: int | None = None,
    valid_size: int | None = None,
    normalise: bool = True,
) -> Data:
    """Check arrays, tensors or data frames, and turn them into tensors, normalised or not.

    Features are (n, d), (n, h, w), or images with channels last or first. Labels are
    integers 0..C-1. Without `x_valid`, `valid_size` samples (default: 10 %, at least 2 per
    class, at most 1000) are split off, stratified by `seed`; their labels are the truth
    where `y_clean` is known. `group_train` names the source of each training sample, by
    numbers or text; `rows_train` and `rows_valid` number the samples as the user does
    (default: their place in x_train, in x_valid). Raises DataError.
    """
    raw = {"x_train": x_train, "x_valid": x_valid, "x_test": x_test}
    given = {"y_train": y_train, "y_clean": y_clean, "y_valid": y_valid, "y_test": y_test}
    for x, y in (("x_valid", "y_valid"), ("x_test", "y_test")):
        if (raw[x] is None) != (given[y] is None):
            present, absent = (y, x) if raw[x] is None else (x, y)
            raise DataError(f"{present} is given without {absent}: give both or neither")
    xs = {k: features(v, k) for k, v in raw.items() if v is not None}
    ys = {k: labels_of(v, k) for k, v in given.items() if v is not None}
    refuse_lengths(xs, ys)
    refuse_one_class(ys)
    for x, values in xs.items():
        if values.shape[1:] != xs["x_train"].shape[1:]:
            raise DataError(
                f"samples of {x} have shape {values.shape[1:]}, those of x_train "
                f"{xs['x_train'].shape[1:]}: expected the same"
            )
    group, group_names = groups_of(group_train, len(xs["x_train"]))
    rows = rows_of(rows_train, "rows_train", len(xs["x_train"]))
    trusted = None if rows_valid is None else rows_of(rows_valid, "rows_valid", len(ys["y_valid"]))
    known = _count_classes(ys, classes)
    notes: list[str] = []
    if "x_valid" not in xs:
        rest, part, note = _split_off(xs, ys, seed, valid_size)
        rows, trusted = rows[rest], rows[part]
        group = None if group is None else group[rest]
        notes.append(note)
    elif valid_size is not None:
        notes.append(f"valid_size {valid_size} is not used: the data has its own x_valid")
    mean, scale = _moments(xs["x_train"])
    if not normalise:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    x = {k: _normalised(v, mean, scale) for k, v in xs.items()}
    y = {k: torch.from_numpy(v) for k, v in ys.items()}
    data = Data(
        x_train=x["x_train"],
        y_train=y["y_train"],
        x_valid=x["x_valid"],
        y_valid=y["y_valid"],
        x_test=x.get("x_test"),
        y_test=y.get("y_test"),
        y_clean=y.get("y_clean"),
        classes=known,
        name=name,
        mean=torch.from_numpy(mean.astype(np.float32)),
        scale=torch.from_numpy(scale.astype(np.float32)),
        rows=torch.from_numpy(rows),
        rows_valid=None if trusted is None else torch.from_numpy(trusted),
        group=None if group is None else torch.from_numpy(group),
        group_names=group_names,
    )
    return replace(data, notes=(*notes, *check(data)))


def check(data: Data) -> tuple[str, ...]:
    """What a user must be told about `data`; raises DataError where it cannot be used.

    Refused: labels that are not integers in 0..C-1, arrays of different length, NaN or
    Inf, an empty or one-class part, and a validation set that repeats training rows.
    Warned about: a tiny validation set, and a few repeated rows.
    """
    xs = {"x_train": data.x_train, "x_valid": data.x_valid, "x_test": data.x_test}
    ys = {
        "y_train": data.y_train,
        "y_clean": data.y_clean,
        "y_valid": data.y_valid,
        "y_test": data.y_test,
    }
    for name, x in xs.items():
        if x is not None:
            refuse_non_finite(x.numpy(), name)
    labels = {k: labels_of(y, k) for k, y in ys.items() if y is not None}
    refuse_lengths({k: x for k, x in xs.items() if x is not None}, labels)
    for name, y in labels.items():
        refuse_out_of_range(y, name, data.classes)
    refuse_one_class(labels)
    notes = []
    missing = sorted(set(range(data.classes)) - set(labels["y_valid"].tolist()))
    if missing:
        notes.append(
            f"no validation sample of {'class' if len(missing) == 1 else 'classes'} "
            f"{_some(missing)}: the teacher learns nothing there"
        )
    if len(labels["y_valid"]) < max(10, 2 * data.classes):
        notes.append(
            f"only {len(labels['y_valid'])} validation samples for {data.classes} classes: "
            "the teacher will follow their accidents; add trusted samples"
        )
        warnings.warn(notes[-1], stacklevel=2)
    if overlap := overlap_of(data.x_train.numpy(), data.x_valid.numpy()):
        notes.append(overlap)
        warnings.warn(overlap, stacklevel=2)
    return tuple(notes)


def _count_classes(labels: dict[str, np.ndarray], classes: int | None) -> int:
    """C, such that the labels are 0..C-1.

    Where C is not given it is read off the trusted labels if there are any, so that a
    wild training label is an error and not one more class.
    """
    seen = np.unique(np.concatenate(list(labels.values())))
    if classes is None and "y_valid" in labels:
        trusted = [labels[k] for k in ("y_valid", "y_test", "y_clean") if k in labels]
        classes = max(2, int(max(y.max() for y in trusted)) + 1)
        seen = seen[(seen >= 0) & (seen < classes)]
        if len(seen) < classes:
            gap = int(np.argmin(np.append(seen, -1) == np.arange(len(seen) + 1)))
            raise DataError(
                f"labels go up to {classes - 1} but label {gap} occurs nowhere: {ENCODE}"
            )
    count = max(2, len(seen)) if classes is None else classes
    for name, y in labels.items():
        refuse_out_of_range(y, name, count)
    return count


def _split_off(
    xs: dict[str, np.ndarray], ys: dict[str, np.ndarray], seed: int, size: int | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Move a stratified part of the training samples to x_valid, y_valid.

    Returns the places of what is left and of what was moved, and what to tell the user.
    """
    y = ys["y_train"]
    labels, first, counts = np.unique(y, return_index=True, return_counts=True)
    if (counts < 2).any():
        alone = int(np.argmin(counts))
        raise DataError(
            f"label {labels[alone]} occurs once in y_train (index {first[alone]}), too "
            "rarely to split off a validation set: correct it, or give x_valid and y_valid"
        )
    wanted = min(1000, max(1, len(y) // 10)) if size is None else size
    rest, part = stratified_split(y, wanted, seed, least=2 if size is None else 0)
    trusted = ys.get("y_clean", y)
    xs["x_valid"], ys["y_valid"] = xs["x_train"][part], trusted[part]
    xs["x_train"] = xs["x_train"][rest]
    ys.update({k: ys[k][rest] for k in ("y_train", "y_clean") if k in ys})
    kind = "true" if "y_clean" in ys else "given"
    note = (
        f"no x_valid: {len(part)} of {len(y)} training samples (stratified) were split off "
        f"as the trusted set, with their {kind} labels"
    )
    return rest, part, note


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (1 where constant) per channel or column, in float64."""
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    starts = range(0, len(x), CHUNK)
    count = x.size // x.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # found below
        sums = [x[i : i + CHUNK].sum(axes, dtype=np.float64) for i in starts]
        mean = (np.sum(sums, axis=0) / count).reshape(shape)
        squares = [((x[i : i + CHUNK] - mean) ** 2).sum(axes) for i in starts]
        std = np.sqrt(np.sum(squares, axis=0) / count).reshape(shape)
        single = np.stack([mean, std]).astype(np.float32)
    if not np.isfinite(single).all():
        raise DataError("x_train holds numbers too large for float32: rescale its columns")
    return mean, np.where(std <= 1e-12 * np.abs(mean), 1.0, std)


def _normalised(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Tensor:
    out = np.empty(x.shape, np.float32)
    for i in range(0, len(x), CHUNK):
        out[i : i + CHUNK] = (x[i : i + CHUNK] - mean) / scale
    return torch.from_numpy(out)


def _some(items: list[int]) -> str:
    """The first five, then how many more."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(map(str, items[:5])) + more
