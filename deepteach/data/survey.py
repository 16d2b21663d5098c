"""One pass over samples that stay where they are: their labels, moments, digests, and faults.

Symbols: n samples, b of a batch, c channels or columns, the second axis of x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepteach.data.reading import Items, Request, Stream
from deepteach.data.repeats import digests
from deepteach.data.scaling import Moments
from deepteach.data.validation import as_array, first_non_finite, non_finite_message
from deepteach.errors import DataError
from deepteach.rng import globals_kept

BYTES_AT_ONCE = 2**22
"""Size of what is read at a time."""


@dataclass(frozen=True)
class Survey:
    """What is known of n samples without holding them."""

    shape: tuple[int, ...]  # of one sample, as it travels
    kind: np.dtype[Any]
    labels: np.ndarray | None  # (n,) or (n, ...) as given; None where samples have none
    group: np.ndarray | None
    moments: Moments
    digests: np.ndarray  # (n, 16) bytes
    notes: tuple[str, ...]  # what the user must be told


@dataclass(frozen=True)
class _Glance:
    """The same of one batch, with the first fault that it has."""

    labels: np.ndarray | None
    groups: np.ndarray | None
    parts: int  # 1 to 3: x, y, group
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    moments: Moments
    digests: np.ndarray
    bad: int  # rows that are not finite
    fault: tuple[int, int, float] | None  # the first of them, where in it, and what is there


@dataclass(frozen=True)
class _Glances:
    """What a worker answers."""

    items: Items

    def __call__(self, request: Request) -> _Glance:
        items, rows = self.items, [int(row) for row in request.rows]
        with globals_kept():
            samples = [items.item(row) for row in rows]
        for row, sample in zip(rows, samples, strict=True):
            if len(sample) != len(samples[0]):
                raise DataError(
                    f"item {row} of {items.name} is not made up of {len(samples[0])} parts as "
                    f"item {rows[0]} is: give every sample as many"
                )
        given = items.stacked([sample[0] for sample in samples], rows)
        bad, fault = first_non_finite(given, single=True)
        x = items.compact(given)
        return _Glance(
            labels=_column([s[1] for s in samples], items.name) if len(samples[0]) > 1 else None,
            groups=_column([s[2] for s in samples], items.name) if len(samples[0]) > 2 else None,
            parts=len(samples[0]),
            shape=x.shape[1:],
            kind=x.dtype,
            moments=Moments.of(given if bad == 0 else np.zeros_like(x)),
            digests=digests(x),
            bad=bad,
            fault=None if fault is None else (rows[fault[0]], *fault[1:]),
        )


def survey(items: Items, workers: int, say: Callable[[str], None]) -> Survey:
    """Read all samples once; `say` is told before that is begun.

    Raises:
        DataError: a sample that cannot be read, of another shape, or with NaN, Inf, or what is
            too large for float32.
    """
    count, name = len(items), items.name
    if count == 0:
        raise DataError(f"{name} is empty: expected at least one sample")
    glance = _Glances(items)
    first = glance(Request([0]))
    size = int(np.prod(first.shape)) * first.kind.itemsize
    say(
        f"{name}: its {count} samples of {size / 1024:.3g} KiB are read once for their labels, "
        "for NaN, repeats and moments, and then whenever they are trained on"
    )
    repeatable = np.array_equal(glance(Request([0])).digests, first.digests)
    found = list(_checked(glance, first, count, max(1, min(256, BYTES_AT_ONCE // size)), workers))
    bad = sum(part.bad for part in found)
    if fault := next((part.fault for part in found if part.fault is not None), None):
        raise DataError(non_finite_message(name, *fault, bad))
    notes = () if repeatable else (
        f"{name} gave another sample when row 0 was read again: let it draw from the global "
        "generators of torch, numpy or random, which are seeded for every row, or a resumed run "
        "will not repeat its bits",
    )  # fmt: skip
    return Survey(
        first.shape,
        np.result_type(*{part.kind for part in found}),
        _joined([part.labels for part in found if part.labels is not None], name),
        _joined([part.groups for part in found if part.groups is not None], name),
        Moments.joined([part.moments for part in found]),
        np.concatenate([part.digests for part in found]),
        notes,
    )


def _checked(
    glance: _Glances, first: _Glance, count: int, size: int, workers: int
) -> Iterator[_Glance]:
    """All samples, each batch like the first one."""
    requests = [Request(range(i, min(i + size, count))) for i in range(0, count, size)]
    stream, name = Stream(glance, workers), glance.items.name
    with closing(stream):
        yield from _alike(name, requests, stream, first)


def _alike(name: str, requests: list[Request], stream: Stream, first: _Glance) -> Iterator[_Glance]:
    for request, part in zip(requests, stream.answers(requests), strict=True):
        row = request.rows[0]
        if part.shape != first.shape:
            raise DataError(
                f"item {row} of {name} has shape {part.shape}, item 0 {first.shape}: expected "
                "samples of one shape"
            )
        floats = part.kind.kind == first.kind.kind == "f"  # of one and of two lengths
        if part.kind != first.kind and not floats or part.parts != first.parts:
            raise DataError(
                f"item {row} of {name} has dtype {part.kind} and {part.parts} parts, item 0 "
                f"{first.kind} and {first.parts}: give every sample the same"
            )
        yield part


def _plain(value: Any) -> Any:
    """A label or group as Python's own number or text, or an array of several."""
    array = as_array(value)
    return array.item() if array.size == 1 else array


def _column(values: list[Any], name: str) -> np.ndarray:
    """`(b,)` numbers, or text as objects, or `(b, ...)` where each is an array."""
    values = [_plain(value) for value in values]
    _refuse_shapes({np.shape(value) for value in values}, name)
    if np.shape(values[0]) != ():
        return np.stack(values)
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {int, float, bool}:
        return np.array(values)
    return _objects(values)


def _joined(parts: list[np.ndarray], name: str) -> np.ndarray | None:
    """All columns as one: of one type where they are, else of Python's own numbers and texts."""
    if not parts:
        return None
    _refuse_shapes({part.shape[1:] for part in parts}, name)
    if parts[0].ndim > 1 or len({part.dtype for part in parts}) == 1 and parts[0].dtype != object:
        return np.concatenate(parts)
    seen: dict[Any, Any] = {}  # texts that are equal take the place of one
    return _objects([seen.setdefault((type(v), v), v) for part in parts for v in part.tolist()])


def _refuse_shapes(shapes: set[tuple[int, ...]], name: str) -> None:
    if len(shapes) > 1:
        raise DataError(f"labels or groups of {name} have shapes {sorted(shapes)}: give them one")


def _objects(values: list[Any]) -> np.ndarray:
    """So that numbers beside text stay apart from it."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
