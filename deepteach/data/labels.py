"""Labels as people write them become 0..C-1, and keep their names.

Read as they are: whole numbers 0..C-1, also as floats (0.0, 1.0), booleans or a column (n, 1).
Coded, with a note: 1..C, -1 and +1, text. Refused: labels with gaps, which are as often a
mistake, and fractions. n samples, C classes.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from deepteach.data.tables.categories import MISSING
from deepteach.data.validation import (
    ENCODE,
    Numbers,
    as_array,
    is_missing,
    is_number,
    label_in_message,
    place,
    quoted,
    refuse_out_of_range,
)
from deepteach.errors import DataError

_TRUSTED = ("y_valid", "y_test", "y_clean")
_LARGEST = 2.0**53  # above it floats are no longer every whole number


@dataclass(frozen=True)
class Labels:
    """The labels of all parts as codes."""

    codes: dict[str, np.ndarray]  # (n,) int64 in 0..C-1, by y_train, y_valid, ...
    classes: int
    names: tuple[str | int, ...] | None  # the user's own, where not 0..C-1; numbers of numbers
    notes: tuple[str, ...]  # what the user must be told


def labels_of(value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
    """`(n,)` whole numbers as int64, or text; their range is not checked here.

    Args:
        value: an array, tensor, series, list or column (n, 1).
        name: "y_train", ..., for the messages.
        numbers: the user's own row numbers, for the messages.

    Raises:
        DataError: another shape, a missing label, a fraction, or numbers mixed with text.
    """
    y = as_array(value)
    if y.ndim == 2 and y.shape[1] > 1:
        raise DataError(
            f"{name} has shape {y.shape} (one-hot?): expected integer labels of shape "
            f"(n,), e.g. {name}.argmax(1)"
        )
    if y.ndim == 2:
        y = y.reshape(-1)
    if y.ndim != 1:
        raise DataError(f"{name} has shape {y.shape}: expected (n,), e.g. {name}.reshape(-1)")
    if len(y) == 0:
        raise DataError(f"{name} is empty: expected at least one sample")
    if y.dtype.kind == "O":
        y = _of_objects(y, name, numbers)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind == "f":
        wide = y.astype(np.float64)  # half floats end far below the bound
        whole = (wide == np.trunc(wide)) & (np.abs(wide) < _LARGEST)
        wrong = np.flatnonzero(~(np.isfinite(wide) & whole))
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"{name} has dtype {y.dtype} ({place(numbers, name, first)}: {y[first]}): expected "
                f"integer labels 0..C-1; {len(wrong)} of {len(y)} are missing or fractions (of "
                "quantities say task=regression)"
            )
    if y.dtype.kind == "U":
        _refuse_missing([not item.strip() for item in y.tolist()], name, numbers)
        return y
    if y.dtype.kind not in "buif":
        raise DataError(f"{name} has dtype {y.dtype} (index 0: {y[0]!r}): {ENCODE}")
    if y.dtype == np.uint64 and int(y.max()) > np.iinfo(np.int64).max:
        first = int(np.argmax(y))
        raise DataError(f"label {y[first]} at {place(numbers, name, first)}: {ENCODE}")
    return y.astype(np.int64)


def encode(ys: Mapping[str, np.ndarray], classes: int | None, numbers: Numbers) -> Labels:
    """Codes of labels as `labels_of` returns them, the same in every part.

    Where `classes` is not given it is read off the trusted labels if there are any, and off
    the training labels that go on where those end. A label that occurs once in y_train and
    in no trusted sample is a mistake, not one more class, whichever it is.

    Raises:
        DataError: the labels are not those of C classes.
    """
    texts = [name for name, y in ys.items() if y.dtype.kind == "U"]
    if texts and len(texts) < len(ys):
        other = next(name for name in ys if name not in texts)
        raise DataError(f"{texts[0]} holds text and {other} numbers: give both the same labels")
    if texts:
        return _encode_text(ys, classes, numbers)
    seen = np.unique(np.concatenate(list(ys.values())))
    if seen.tolist() == [-1, 1] and classes in (None, 2):
        names = (-1, 1)
        return Labels({k: (y + 1) // 2 for k, y in ys.items()}, 2, names, (sorted_order(names),))
    shifted = seen[0] == 1 and (classes is None or seen[-1] == classes)
    if not shifted:
        return Labels(dict(ys), _count(ys, classes, 0, numbers), None, ())
    count = _count({k: y - 1 for k, y in ys.items()}, classes, 1, numbers)
    names = tuple(range(1, count + 1))
    return Labels({k: y - 1 for k, y in ys.items()}, count, names, (sorted_order(names),))


def _of_objects(y: np.ndarray, name: str, numbers: Numbers | None) -> np.ndarray:
    """Text or numbers out of an array of Python objects, as data frames hold them."""
    kinds = {type(item) for item in y.tolist()}
    _refuse_missing([is_missing(item) for item in y.tolist()], name, numbers)
    if all(issubclass(kind, str) for kind in kinds):
        return np.array(y.tolist(), dtype=np.str_)
    if all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds):
        return np.array(y.tolist())
    found = " and ".join(sorted(kind.__name__ for kind in kinds)[:3])
    raise DataError(f"{name} holds labels of type {found}: {ENCODE}")


def _refuse_missing(missing: list[bool], name: str, numbers: Numbers | None) -> None:
    if any(missing):
        raise DataError(
            f"{name} has no label at {place(numbers, name, missing.index(True))} ({sum(missing)} "
            f"of {len(missing)} are missing): give them labels, or remove those samples"
        )


def _encode_text(ys: Mapping[str, np.ndarray], classes: int | None, numbers: Numbers) -> Labels:
    names, codes = np.unique(np.concatenate(list(ys.values())), return_inverse=True)
    ends = np.cumsum([len(y) for y in ys.values()])[:-1]
    coded = dict(zip(ys, np.split(codes.astype(np.int64), ends), strict=True))
    told = tuple(map(str, names.tolist()))
    if classes is not None and len(told) > classes:
        raise DataError(
            f"the labels have {len(told)} names ({_shown(map(label_in_message, told))}), more than "
            f"the {classes} classes"
        )
    if classes is None:
        _refuse_lone(coded, told, numbers)
    count = max(2, len(told) if classes is None else classes)
    more = tuple(str(label) for label in range(len(told), count))
    notes = [sorted_order(told), *(odd := _odd_names(told))]
    for note in odd:
        warnings.warn(note, UserWarning, stacklevel=2)
    return Labels(coded, count, told + more, tuple(notes))


def _odd_names(names: tuple[str, ...]) -> list[str]:
    """What to warn of: names that may be one in two spellings, or none at all."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for name in names:
        plain = " ".join(name.casefold().split())
        alike[Decimal(plain) if is_number(plain) else plain].append(name)
    notes = [
        f"labels {' and '.join(map(quoted, several[:5]))} are classes of "
        "their own: write them alike if they are one"
        for several in alike.values()
        if len(several) > 1
    ]
    return (
        notes
        + [
            f"label {quoted(name)} is a class of its own: remove such rows if it says that "
            "there is no label"
            for name in names
            if name.strip().lower() in MISSING
        ]
        + [
            f"label {quoted(name)} is one class: say task=multilabel if it is several labels"
            for name in [name for name in names if _several(name, names)][:1]
        ]
    )


def _several(name: str, names: tuple[str, ...]) -> bool:
    """Whether a name is made of others, with a bar between."""
    parts = [part.strip() for part in name.split("|")]
    return len(parts) > 1 and any(part in names for part in parts)


def _count(ys: Mapping[str, np.ndarray], classes: int | None, first: int, numbers: Numbers) -> int:
    """C, such that the labels, of which the user calls the lowest `first`, are 0..C-1."""
    seen = np.unique(np.concatenate(list(ys.values())))
    count = max(2, len(seen)) if classes is None else classes
    read_off = classes is None and "y_valid" in ys
    if read_off:
        labels, counts = np.unique(ys["y_train"], return_counts=True)
        often = set(labels[counts > 1].tolist())
        top = max(int(ys[name].max()) for name in _TRUSTED if name in ys) + 1
        while top in often:
            top += 1
        count = max(2, top)
        inside = seen[(seen >= 0) & (seen < count)]
        if len(inside) < count:
            gap = int(np.argmin(np.append(inside, -1) == np.arange(len(inside) + 1)))
            raise DataError(
                f"labels go up to {count - 1 + first} but label {gap + first} occurs nowhere: "
                f"{ENCODE}; of quantities say task=regression"
            )
    for name, y in ys.items():
        refuse_out_of_range(y, name, count, first, numbers)
    if read_off:
        _refuse_lone(ys, [str(label + first) for label in range(count)], numbers)
    return count


def _refuse_lone(
    codes: Mapping[str, np.ndarray], names: tuple[str, ...] | list[str], numbers: Numbers
) -> None:
    """A label of one training sample and no trusted one is more likely a slip than a class."""
    if "y_valid" not in codes:
        return
    trusted = np.concatenate([codes[name] for name in _TRUSTED if name in codes])
    labels, index, counts = np.unique(codes["y_train"], return_index=True, return_counts=True)
    for label, at in zip(labels[counts == 1], index[counts == 1], strict=True):
        if label not in trusted:
            raise DataError(
                f"label {label_in_message(names[label])} occurs once in y_train "
                f"({place(numbers, 'y_train', int(at))}) and in no trusted sample: correct it, "
                "or say how many classes there are"
            )


def sorted_order(names: tuple[str | int, ...]) -> str:
    """The note on names that became codes."""
    return "labels in sorted order: " + _shown(
        f"{label_in_message(name)} = {i}" for i, name in enumerate(names)
    )


def _shown(items: Any) -> str:
    """The first ten."""
    listed = list(items)
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
