"""Random changes of a whole batch at once, on the batch's device: ours, or the user's own.

Symbols: n samples, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import brief, imported

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""(batch, generator) -> the batch, changed; its draws come from the generator alone."""


@dataclass(frozen=True)
class Augment:
    """Pad by reflection, crop each sample at random back to its size, mirror half of them.

    This is CIFAR's usual augmentation. What is not a batch of images is returned as it
    is, and nothing is drawn for it.

    Args:
        pad: pixels on each side; None takes an eighth of the shorter side, CIFAR's 4 of 32.
        flip: mirror left and right; wrong for digits and letters.

    Raises:
        ConfigError: a negative pad.
    """

    pad: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad is not None and self.pad < 0:
            raise ConfigError(f"pad is {self.pad}: expected 0 or more pixels")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A new (n, c, h, w) batch; the draws are made on the CPU.

        So a run sees the same crops on every device. Raises ConfigError where the image is
        too small to reflect `pad` pixels.
        """
        if x.dim() != 4:
            return x
        n, c, h, w = x.shape
        pad = min(h, w) // 8 if self.pad is None else self.pad
        if pad >= min(h, w):
            raise ConfigError(
                f"pad is {pad} for images of {h}x{w}: expected less than the image's "
                "side; lower pad"
            )
        corner = torch.randint(2 * pad + 1, (2, n, 1), generator=generator)
        top, left = corner.to(x.device)
        rows = top + torch.arange(h, device=x.device)  # (n, h)
        columns = left + torch.arange(w, device=x.device)  # (n, w)
        if self.flip:
            mirrored = torch.randint(2, (n, 1), generator=generator).bool().to(x.device)
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(x, (pad,) * 4, mode="reflect")
        sample = torch.arange(n, device=x.device).view(n, 1, 1, 1)
        channel = torch.arange(c, device=x.device).view(1, c, 1, 1)
        return padded[sample, channel, rows.view(n, 1, h, 1), columns.view(n, 1, 1, w)]


def identity(x: Tensor, generator: torch.Generator) -> Tensor:
    """No augmentation, and no draw."""
    return x


PHOTOGRAPHS = ("manifest", "folder", "cifar10", "cifar100")
"""Sources that are augmented unless something else is asked for: what they hold are images."""
SMALLEST = 16
"""Pixels of a side from which on they are: a digit of 8 is another when it is shifted by one."""


def by_default(source: str, shape: Sequence[int]) -> bool:
    """Whether samples of this shape, from `--data source`, are augmented where nothing is said."""
    known = source.partition(":")[0] in PHOTOGRAPHS
    return known and len(shape) == 3 and min(shape[1:]) >= SMALLEST


def resolve(name: bool | str | None, own: Augmentation | None = None) -> Augmentation:
    """`Augment()` for True, `identity` for False, or a function by `package.module:name`.

    `own` is such a function at hand, called `name` in messages.

    Raises:
        ConfigError: the path cannot be imported, or names no function.
    """
    if own is None and (name is None or isinstance(name, bool)):
        return Augment() if name else identity
    name = str(name)
    function = imported("augment", name) if own is None else own
    if isinstance(function, type) or not callable(function):
        kind = "a class" if isinstance(function, type) else f"of type {type(function).__name__}"
        raise ConfigError(
            f"augment {name!r} is {kind}: expected a function (x, generator) -> x of a batch"
        )
    return _Own(name, function)


@dataclass(frozen=True)
class _Own:
    """A function of the user's own, whose mistakes are one line."""

    path: str
    function: Callable[..., object]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        try:
            made = self.function(x, generator)
        except DeepTeachError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(
                f"augment {self.path!r} failed on a batch of shape {tuple(x.shape)} "
                f"({brief(error)}): expected a function (x, generator) -> x"
            ) from error
        if not isinstance(made, Tensor) or made.shape[:1] != x.shape[:1]:
            found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ConfigError(
                f"augment {self.path!r} returned {found} for a batch of shape "
                f"{tuple(x.shape)}: expected a tensor of as many samples"
            )
        return made
