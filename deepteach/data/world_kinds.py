"""The worlds of `worlds.py`, a function each.

Trusted and test samples stay those of the target: new sources, labels and class sizes are those
of the training samples alone. Symbols: n training samples, C classes, c channels, h height,
w width.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from deepteach.data import noise
from deepteach.data.archives import npz
from deepteach.data.labels import labels_of
from deepteach.data.validation import features, refuse_out_of_range
from deepteach.errors import ConfigError, DataError
from deepteach.names import known

Arrays = dict[str, Any]
"""Arguments of `from_arrays`, with `classes`; images (n, c, h, w), labels codes 0..C-1."""

INPUTS = ("x_train", "x_valid", "x_test")

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def biased(
    arrays: Arrays,
    generator: np.random.Generator,
    sources: Count = 20,
    good: Annotated[int, Field(ge=0)] = 4,
    share: Share = 0.9,
    size: Annotated[int, Field(ge=0)] = 0,
) -> Arrays:
    """Sources with a shortcut: a corner's colour gives the label away, in all but `good` of them.

    There it is the label's colour with probability `share`, else another class's; in the good
    sources, in the trusted and in the test samples it is a class's drawn at random. The corner
    has `size` x `size` pixels; 0 takes a quarter of the shorter side. No label is changed.
    """
    _refuse_good("biased", good, sources)
    x = _images("biased", arrays)
    size = size or max(1, min(x.shape[2:]) // 4)
    if size >= min(x.shape[2:]):
        raise ConfigError(
            f"world biased: size is {size} for images of {x.shape[2]}x{x.shape[3]}: lower it"
        )
    truth, classes = _truth(arrays), arrays["classes"]
    source = generator.integers(sources, size=len(truth))
    palette = _palette(x, classes)
    made = dict(arrays)
    for part in (key for key in INPUTS if key in arrays):
        painted = arrays[part].copy()
        colour = generator.integers(classes, size=len(painted))
        if part == "x_train":
            other = (truth + generator.integers(1, classes, size=len(truth))) % classes
            given_away = np.where(generator.random(len(truth)) < share, truth, other)
            colour = np.where(source < good, colour, given_away)
        painted[:, :, :size, :size] = palette[colour][:, :, None, None]
        made[part] = painted
    names = [f"{'good' if i < good else 'biased'} {i:02d}" for i in range(sources)]
    return {**made, "group_train": np.array(names)[source]}


def mixed(
    arrays: Arrays,
    generator: np.random.Generator,
    path: Path | None,
    of: str = "clean,flip0.2,flip0.4,uniform0.8",
    sources: Count = 12,
) -> Arrays:
    """Sources of unequal label quality, each with the labels of one entry of `of`, in turn.

    An entry is `clean`; `flip` or `uniform` with a rate behind it, the noise of that kind; or
    the name of another npz file in the folder of this one, whose y_train are the labels that
    other people gave the same samples.
    """
    kinds = of.split(",")
    truth, classes = _truth(arrays), arrays["classes"]
    answers = np.stack(
        [_labels(kind, arrays, truth, classes, generator, path) for kind in kinds], axis=1
    )
    source = generator.integers(sources, size=len(truth))
    given = answers[np.arange(len(truth)), source % len(kinds)]
    names = [f"{kinds[i % len(kinds)]} {i:02d}" for i in range(sources)]
    return {**arrays, "y_train": given, "y_clean": truth, "group_train": np.array(names)[source]}


def domains(
    arrays: Arrays,
    generator: np.random.Generator,
    of: str = "plain,grey,inverted,rotated",
    sources: Count = 12,
) -> Arrays:
    """Sources of another domain: each shows its images as one entry of `of` says, in turn.

    `plain` is the domain of the trusted and test samples; `grey` has the mean of the channels
    in all of them, `inverted` the negative, `rotated` a quarter turn. No label is changed.
    """
    kinds, x = of.split(","), _images("domains", arrays)
    shown = [known("domain", kind, _DOMAINS)(x) for kind in kinds]
    source = generator.integers(sources, size=len(x))
    made = x.copy()
    for place, kind in enumerate(shown):
        own = source % len(kinds) == place
        made[own] = kind[own]
    names = [f"{kinds[i % len(kinds)]} {i:02d}" for i in range(sources)]
    return {**arrays, "x_train": made, "group_train": np.array(names)[source]}


def sampled(
    arrays: Arrays,
    generator: np.random.Generator,
    column: Annotated[int, Field(ge=0)] = 0,
    sources: Count = 20,
    good: Annotated[int, Field(ge=0)] = 4,
    share: Share = 0.9,
) -> Arrays:
    """Sources that sampled by label and a feature at once, so that P(y|x) differs in them.

    A row agrees where its feature `column` is above the median and its label is of the upper
    half of the classes, or neither is. All but `good` sources leave out rows at random until a
    `share` of theirs does not agree: what the feature says of the label is turned round.
    """
    _refuse_good("sampled", good, sources)
    flat = arrays["x_train"].reshape(len(arrays["x_train"]), -1)
    if column >= flat.shape[1]:
        raise ConfigError(
            f"world sampled: column is {column}: expected one of 0..{flat.shape[1] - 1}"
        )
    values, truth = flat[:, column], _truth(arrays)
    high = values > np.median(values)
    high = high if high.any() else values == values.max()
    agrees = (2 * truth >= arrays["classes"]) == high
    source = generator.integers(sources, size=len(truth))
    biased_row = source >= good
    agreeing = float(agrees[biased_row].mean()) if biased_row.any() else 0.0
    wanted, there = np.array([share, 1 - share]), np.array([1 - agreeing, agreeing])
    if high.all() or not there.all():
        raise ConfigError(
            f"world sampled: column {column} says nothing of the label here: choose another one"
        )
    stay = wanted / there
    stay = stay / stay.max()  # of rows that do not agree, and of those that do
    drawn = generator.random(len(truth)) < stay[agrees.astype(int)]
    names = [f"{'good' if i < good else 'biased'} {i:02d}" for i in range(sources)]
    made = {**arrays, "group_train": np.array(names)[source]}
    return _kept(made, np.flatnonzero(drawn | ~biased_row))


def tail(
    arrays: Arrays, generator: np.random.Generator, factor: Annotated[float, Field(ge=1)] = 100.0
) -> Arrays:
    """A long tail: class sizes fall exponentially; the largest is `factor` times the smallest.

    Which class is how large is drawn; the largest keeps as many samples as the smallest had.
    """
    truth, classes = _truth(arrays), arrays["classes"]
    most = int(np.bincount(truth, minlength=classes).min())
    if most < factor:
        raise ConfigError(
            f"world tail: the smallest class has {most} samples, too few for a factor of "
            f"{factor:g}: lower it"
        )
    rows = []
    for place, label in enumerate(generator.permutation(classes)):
        count = round(most * factor ** (-place / (classes - 1)))
        rows.append(generator.permutation(np.flatnonzero(truth == label))[:count])
    return _kept(arrays, np.sort(np.concatenate(rows)))


# --- what worlds share --------------------------------------------------------------------


def _truth(arrays: Arrays) -> np.ndarray:
    """(n,) the labels as far as they are known to be right."""
    known_truth = arrays.get("y_clean")
    return arrays["y_train"] if known_truth is None else known_truth


def _images(world: str, arrays: Arrays) -> np.ndarray:
    x = arrays["x_train"]
    if x.ndim != 4:
        raise ConfigError(
            f"world {world} changes images, and x_train has shape {x.shape}: choose another one"
        )
    return x


def _refuse_good(world: str, good: int, sources: int) -> None:
    if good > sources:
        raise ConfigError(f"world {world}: good is {good} of {sources} sources: lower it")


def _top(x: np.ndarray) -> float:
    """The brightest value of a pixel."""
    return 255.0 if x.dtype == np.uint8 else float(x.max())


def _palette(x: np.ndarray, classes: int) -> np.ndarray:
    """(C, c) a colour for each class: hues around the circle, or shades where c is not 3."""
    steps = np.arange(classes)[:, None]
    if x.shape[1] == 3:
        levels = 0.5 + 0.5 * np.cos(2 * np.pi * (steps / classes + np.arange(3) / 3))
    else:
        levels = np.repeat(steps / max(1, classes - 1), x.shape[1], axis=1)
    return (levels * _top(x)).astype(x.dtype)


def _grey(x: np.ndarray) -> np.ndarray:
    if x.shape[1] == 1:
        raise ConfigError("world domains: images of one channel are grey: leave grey out of `of`")
    return np.repeat(x.mean(1, keepdims=True).astype(x.dtype), x.shape[1], axis=1)


def _rotated(x: np.ndarray) -> np.ndarray:
    if x.shape[2] != x.shape[3]:
        raise ConfigError(
            "world domains: only square images can be turned: leave rotated out of `of`"
        )
    return np.rot90(x, axes=(2, 3))


_DOMAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "grey": _grey,
    "inverted": lambda x: (_top(x) - x).astype(x.dtype),
    "rotated": _rotated,
}

_NOISES = {"flip": noise.flip, "uniform": noise.uniform}


def _labels(
    kind: str,
    arrays: Arrays,
    truth: np.ndarray,
    classes: int,
    generator: np.random.Generator,
    path: Path | None,
) -> np.ndarray:
    """(n,) the labels that one entry of `mixed` stands for."""
    if kind == "clean":
        return truth
    if added := re.fullmatch(rf"({'|'.join(_NOISES)})(\d*\.?\d+)", kind):
        return _NOISES[added[1]](truth, float(added[2]), classes, generator)[0]
    if path is None or not re.fullmatch(r"\w[\w.-]*", kind):
        raise ConfigError(
            f"world mixed: {kind!r} is no entry of `of`: expected clean, flip0.4, uniform0.6, or "
            "the name of an npz file beside that of the data"
        )
    beside = path.with_name(f"{kind}.npz")
    other, _ = npz(beside)
    given = labels_of(other["y_train"], f"y_train of {beside}")
    x = features(other["x_train"], f"x_train of {beside}")
    if not np.array_equal(x, arrays["x_train"]) or len(given) != len(truth):
        raise DataError(f"{beside} holds other samples than {path}: expected the same x_train")
    if given.dtype.kind != "i" or "label_names" in arrays:
        raise DataError(
            f"world mixed compares labels of two files, {path} and {beside}: write both as whole "
            "numbers 0..C-1"
        )
    refuse_out_of_range(given, f"y_train of {beside}", classes)
    return given


def _kept(arrays: Arrays, rows: np.ndarray) -> Arrays:
    """The training samples of these places, under the user's own row numbers."""
    count = len(arrays["y_train"])
    made = {"rows_train": np.arange(count), **arrays}
    for key in ("x_train", "y_train", "y_clean", "group_train", "paths_train", "rows_train"):
        if made.get(key) is not None:
            made[key] = np.asarray(made[key])[rows]
    return made
