"""Wrong labels on purpose, with the mask of what was changed.

`uniform` and `flip` follow the paper's wording on a NumPy Generator. `mwn_split` and
`mwn_corrupt` repeat, draw by draw, the generator of the published Meta-Weight-Net code, on
the legacy `RandomState` stream that it uses; results must name which of the two they used.
Symbols: n samples, C classes, T the (C, C) matrix of P(given label | true label).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from deepteach.errors import ConfigError

if TYPE_CHECKING:  # a task names its kinds of noise, and data have a task
    from deepteach.data.dataset import Data

Kind = Literal["none", "uniform", "flip", "shuffle", "mwn-uniform", "mwn-flip"]

NoiseOf = Callable[[np.ndarray, float, int, int], tuple[np.ndarray, np.ndarray]]
"""(labels, rate, classes, seed) -> (noisy, mask of the samples whose label changed)."""

_Drawn = Callable[[np.ndarray, float, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]

_STREAM = 1  # keeps the noise apart from other draws of the same seed


def uniform(
    y: np.ndarray, rate: float, classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """With probability `rate` a label becomes a random class, perhaps the true one.

    So the share of wrong labels is rate (C-1)/C. Returns (noisy, mask), both (n,); mask
    marks the wrong ones. Raises ConfigError.
    """
    _check(rate, classes, least=2)
    redrawn = generator.random(len(y)) < rate
    noisy = np.where(redrawn, generator.integers(classes, size=len(y)), y)
    return noisy, noisy != y


def flip(
    y: np.ndarray, rate: float, classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """With probability `rate` a label becomes one of its class's two similar classes.

    The two are drawn at random once per class, and are equally likely. Returns (noisy,
    mask), both (n,). Raises ConfigError.
    """
    _check(rate, classes, least=3)
    labels = np.arange(classes)
    similar = np.stack([generator.choice(labels[labels != i], 2, replace=False) for i in labels])
    flipped = generator.random(len(y)) < rate
    noisy = np.where(flipped, similar[y, generator.integers(2, size=len(y))], y)
    return noisy, noisy != y


def shuffle(
    y: np.ndarray, rate: float, classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """With probability `rate` a sample is hit; those that are hit exchange their labels.

    For labels of any task, `(n, ...)`. None keeps its own, but the new one may be the same.
    """
    _check(rate, classes, least=0)
    hit = generator.permutation(np.flatnonzero(generator.random(len(y)) < rate))
    noisy = y.copy()
    noisy[hit] = y[np.roll(hit, 1)]
    return noisy, _changed(noisy, y)


def turn(
    y: np.ndarray, rate: float, classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """With probability `rate` a 0 becomes 1 and a 1 becomes 0: each of several labels by itself."""
    _check(rate, classes, least=0)
    noisy = np.where(generator.random(y.shape) < rate, 1 - y, y).astype(y.dtype)
    return noisy, _changed(noisy, y)


def redraw(
    y: np.ndarray, rate: float, classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """With probability `rate` each of several labels is drawn anew, 0 or 1, perhaps as it was."""
    _check(rate, classes, least=0)
    redrawn = generator.random(y.shape) < rate
    noisy = np.where(redrawn, generator.integers(2, size=y.shape), y).astype(y.dtype)
    return noisy, _changed(noisy, y)


def _changed(noisy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (noisy != y).reshape(len(y), -1).any(1)


def mwn_split(
    labels: np.ndarray, num_meta: int, classes: int, seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.random.RandomState]:
    """Meta-Weight-Net's split: indices (train, meta), grouped by class, and the stream.

    Class by class, its indices are shuffled; the first num_meta // C are meta samples. The
    stream is returned because uniform noise goes on with it. The published numbers use
    the 50,000 CIFAR labels in file order, num_meta 1000 and seed 1.
    """
    if not 0 <= num_meta <= len(labels):
        raise ConfigError(f"num_meta is {num_meta}: expected 0..{len(labels)}")
    stream = np.random.RandomState(seed)
    train, meta = [], []
    for label in range(classes):
        index = np.flatnonzero(labels == label)
        stream.shuffle(index)
        meta.append(index[: num_meta // classes])
        train.append(index[num_meta // classes :])
    return np.concatenate(train), np.concatenate(meta), stream


def mwn_corrupt(
    labels: np.ndarray,
    kind: Literal["unif", "flip", "flip2"],
    rate: float,
    classes: int,
    stream: np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Meta-Weight-Net's noise on labels in the order of `mwn_split`: (noisy, mask).

    `unif` draws from `stream`, as `mwn_split` left it. `flip` (one other class) and `flip2`
    (two, the paper's flip) start a new stream with seed 1, whatever the split's seed, and
    choose the other classes from it first. Raises ConfigError.
    """
    _check(rate, classes, least=3 if kind == "flip2" else 2)
    matrix = (1 - rate) * np.eye(classes)
    if kind == "unif":
        if stream is None:
            raise ConfigError("kind 'unif' needs the stream that mwn_split returned")
        # Rounding included: rate * (1 / C) is not always rate / C.
        matrix += rate * np.full((classes, classes), 1 / classes)
    else:
        stream = np.random.RandomState(1)
        for i in range(classes):
            others = np.flatnonzero(np.arange(classes) != i)
            if kind == "flip":
                matrix[i, stream.choice(others)] = rate
            else:
                matrix[i, stream.choice(others, 2, replace=False)] = rate / 2
    noisy = np.array([stream.choice(classes, p=matrix[y]) for y in labels], np.int64)
    return noisy, noisy != labels


def corrupt(data: Data, kind: Kind, rate: float, seed: int) -> Data:
    """`data` with noise of this kind on its training labels, and `y_clean` = the truth.

    The validation and test labels stay as they are. Where the truth was known already it
    is kept. For `mwn-*` the trusted set is already apart, so `mwn_split` runs on the
    training labels with num_meta 0: the labels are redrawn grouped by class, in shuffled
    order, and each is put back to its sample's place. Raises ConfigError.
    """
    if kind not in get_args(Kind):
        raise ConfigError(
            f"unknown noise kind '{kind}': expected one of {', '.join(get_args(Kind))}"
        )
    if kind == "none":
        return data
    noises = data.task.noises
    if kind not in noises:
        raise ConfigError(
            f"noise kind '{kind}' is none for task {data.task.name}: use {' or '.join(noises)}"
        )
    noisy, mask = noises[kind](data.y_train.numpy(), rate, data.classes, seed)
    note = f"{kind} noise, rate {rate:g}: {mask.mean():.1%} of the training labels changed"
    return replace(
        data,
        y_train=torch.from_numpy(noisy),
        y_clean=data.y_train if data.y_clean is None else data.y_clean,
        notes=(*data.notes, note),
    )


def _drawn(function: _Drawn) -> NoiseOf:
    def noisy(y: np.ndarray, rate: float, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return function(y, rate, classes, np.random.default_rng([seed, _STREAM]))

    return noisy


def _published(kind: Literal["unif", "flip", "flip2"]) -> NoiseOf:
    def noisy(y: np.ndarray, rate: float, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        order, _, stream = mwn_split(y, 0, classes, seed)
        made, mask = np.empty_like(y), np.empty(len(y), bool)
        made[order], mask[order] = mwn_corrupt(y[order], kind, rate, classes, stream)
        return made, mask

    return noisy


SHUFFLE: dict[str, NoiseOf] = {"shuffle": _drawn(shuffle)}
"""For labels of any task."""

CLASS_NOISE: dict[str, NoiseOf] = {
    "uniform": _drawn(uniform),
    "flip": _drawn(flip),
    **SHUFFLE,
    "mwn-uniform": _published("unif"),
    "mwn-flip": _published("flip2"),
}

BINARY_NOISE: dict[str, NoiseOf] = {"uniform": _drawn(uniform), "flip": _drawn(turn), **SHUFFLE}

MULTILABEL_NOISE: dict[str, NoiseOf] = {"uniform": _drawn(redraw), "flip": _drawn(turn), **SHUFFLE}


def _check(rate: float, classes: int, least: int) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"noise rate is {rate}: expected a number in 0..1")
    if classes < least:
        raise ConfigError(
            f"this noise needs at least {least} classes, the data has {classes}: "
            "use noise kind 'uniform'"
        )
