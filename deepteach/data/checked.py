"""The arrays of a problem by part, checked against each other on their way to `Data`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from deepteach.data.lazy import LazyRows
from deepteach.data.splits import stratified_split
from deepteach.data.tables.frames import index_notes, refuse_columns
from deepteach.data.tasks.base import Task
from deepteach.data.tasks.registry import AUTO, kind_of, told_of
from deepteach.data.texts import Texts
from deepteach.data.validation import (
    Numbers,
    features,
    groups_of,
    label_array,
    refuse_lengths,
    refuse_non_finite,
    row_numbers,
)
from deepteach.errors import DataError


@dataclass(frozen=True, eq=False)
class Checked:
    """What was given, in arrays that fit each other; nothing is scaled yet.

    Args:
        xs: the samples of x_train, x_valid and x_test, as arrays or `LazyRows`.
        ys: the labels of y_train, y_clean, y_valid and y_test, as codes of `task`.
        task: what the labels are.
        rows: the user's own row numbers of train, and of valid and test where they share them.
        group: the code of each training sample's source, where known.
        group_names: the sources by code.
        paths: the file of each training sample, where known.
        notes: what the user must be told.
    """

    xs: dict[str, Any]
    ys: dict[str, np.ndarray]
    task: Task
    rows: Numbers
    group: np.ndarray | None
    group_names: tuple[str, ...]
    paths: Texts | None
    notes: tuple[str, ...]


def checked(
    raw: Mapping[str, Any],
    given: Mapping[str, Any],
    rows: Mapping[str, Any],
    *,
    group: Any,
    paths: Sequence[str] | None,
    classes: int | None,
    names: Sequence[str | int] | None,
    as_given: bool,
    task: str,
) -> Checked:
    """The arguments of `from_arrays`, None where they are absent, as arrays that fit each other.

    Raises:
        DataError: they do not, or cannot be read.
    """
    for x, y in (("x_valid", "y_valid"), ("x_test", "y_test")):
        if (raw[x] is None) != (given[y] is None):
            present, absent = (y, x) if raw[x] is None else (x, y)
            raise DataError(f"{present} is given without {absent}: give both or neither")
    refuse_columns(raw, "x_train")
    refuse_columns(given, "y_train")
    notes = index_notes(raw, {**given, "group_train": group})
    given = {k: None if v is None else label_array(v, k) for k, v in given.items()}
    xs: dict[str, Any] = {
        k: v if isinstance(v, LazyRows) else features(v, k, as_given=as_given)
        for k, v in raw.items()
        if v is not None
    }
    numbers = {
        k: row_numbers(own, f"rows_{k}", len(xs[f"x_{k}"]))
        for k, own in rows.items()
        if own is not None and f"x_{k}" in xs
    }
    kind = kind_of(task, given)
    ys = {k: kind.read(v, k, numbers) for k, v in given.items() if v is not None}
    for k, values in xs.items():
        if isinstance(values, LazyRows):
            notes.extend(values.found.notes)
            for note in values.found.notes:
                warnings.warn(note, UserWarning, stacklevel=3)
        else:
            refuse_non_finite(values, k, numbers)
    refuse_lengths(xs, ys)
    for k, values in xs.items():
        if values.shape[1:] != xs["x_train"].shape[1:]:
            raise DataError(
                f"samples of {k} have shape {values.shape[1:]}, those of x_train "
                f"{xs['x_train'].shape[1:]}: expected the same"
            )
    labels = kind.coded(ys, classes, names, numbers)
    count = len(xs["x_train"])
    codes, group_names = groups_of(group, count)
    files = None if paths is None else Texts.of(paths)
    if files is not None and len(files) != count:
        raise DataError(
            f"x_train has {count} rows but paths_train {len(files)}: expected a file for each"
        )
    notes.extend(labels.notes)
    if task == AUTO and (taken := told_of(kind, labels.task.classes, bool(labels.task.names))):
        notes.append(taken)
    numbers.setdefault("train", np.arange(count))
    return Checked(xs, labels.codes, labels.task, numbers, codes, group_names, files, tuple(notes))


def with_trusted(parts: Checked, seed: int, size: int | None) -> Checked:
    """The same with a trusted set of `size` samples, split off where none was given.

    Unless `size` is given it is a tenth of the training samples, or all trusted ones.
    """
    if "x_valid" not in parts.xs:
        return _split_off(parts, seed, size)
    return parts if size is None else _fewer(parts, seed, size)


def _split_off(parts: Checked, seed: int, size: int | None) -> Checked:
    """A stratified part of the training samples is the trusted set."""
    xs, ys, rows = parts.xs, parts.ys, parts.rows["train"]
    x, y = xs["x_train"], ys["y_train"]
    parts.task.refuse_rare(y)
    wanted = min(1000, max(1, len(y) // 10)) if size is None else size
    strata, least = parts.task.strata(y), 2 if size is None else 0
    rest, part = stratified_split(strata, wanted, seed, least=least)
    kind = "true" if "y_clean" in ys else "given"
    note = (
        f"no x_valid: {len(part)} of {len(y)} training samples (stratified) were split off "
        f"as the trusted set, with their {kind} labels"
    )
    left = {k: ys[k][rest] for k in ("y_train", "y_clean") if k in ys}
    return replace(
        parts,
        xs={**xs, "x_valid": _taken(x, part), "x_train": _taken(x, rest)},
        ys={**ys, **left, "y_valid": ys.get("y_clean", y)[part]},
        rows={**parts.rows, "train": rows[rest], "valid": rows[part]},
        group=None if parts.group is None else parts.group[rest],
        paths=None if parts.paths is None else parts.paths.take(rest),
        notes=(*parts.notes, note),
    )


def _fewer(parts: Checked, seed: int, size: int) -> Checked:
    """A stratified part of the trusted samples is left."""
    y, rows = parts.ys["y_valid"], parts.rows
    there = len(y)
    if size > there:
        raise DataError(f"valid_size is {size}, and x_valid has {there} samples: lower it")
    part = np.arange(there)
    if size < there:
        _, part = stratified_split(parts.task.strata(y), size, seed)
    note = f"valid_size {size}: {size} of the {there} samples of x_valid (stratified) are used"
    return replace(
        parts,
        xs={**parts.xs, "x_valid": _taken(parts.xs["x_valid"], part)},
        ys={**parts.ys, "y_valid": y[part]},
        rows={**rows, "valid": rows["valid"][part]} if "valid" in rows else rows,
        notes=(*parts.notes, note),
    )


def _taken(x: Any, places: np.ndarray) -> Any:
    """Some of the samples; what is read on access stays unread."""
    return x.select(torch.from_numpy(places)) if isinstance(x, LazyRows) else x[places]
