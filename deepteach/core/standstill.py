"""Between two steps nothing but the optimizer may move the student: is it where a step left it?

Versions of tensors tell of most writes, and at once. They do not tell of `leaf.data.clamp_()`,
and count weights that were exchanged and put back, so norms decide: those of a step without
writes are compared when the window is crossed, so that no step waits for the device.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from deepteach.core.record import Step
from deepteach.core.trained import Trained
from deepteach.errors import ConfigError, ReplayError, WindowWarning

MOVED = (
    "something besides optimizer.step() changed the student's parameters, or what its optimizer "
    "holds, after a step"
)
NOT_TAUGHT = "the optimizer made a step without coach.loss, which cannot be replayed"

POSTPONED = 2
"""Updates in a row that may wait for a step that leads to where the student is."""


class Mark:
    """A student and its optimizer at one moment."""

    def __init__(self, trained: Trained) -> None:
        theta = trained.parameters()
        held = trained.held(theta)
        slots = trained.rule.slot_names
        tensors = {("", name): leaf for name, leaf in theta.items()} | {
            (slot, name): held[name].get(slot) for slot in slots for name in theta
        }
        found = {key: leaf for key, leaf in tensors.items() if isinstance(leaf, Tensor)}
        self._keys, self._leaves = tuple(found), list(found.values())
        self._versions = [leaf._version for leaf in self._leaves]

    @cached_property
    def norms(self) -> list[Tensor]:
        """Of each tensor, when this is first asked."""
        return norms(self._leaves)

    def moved(self, now: Mark) -> bool:
        """Whether what has been replaced or written to since is something else now."""
        if self._keys != now._keys:
            return True
        same = all(a is b for a, b in zip(self._leaves, now._leaves, strict=True))
        if same and self._versions == now._versions:
            return False
        return bool(_differ(self.norms, now.norms))


class Standstill:
    """Cuts the window where something else than a step moved the student.

    Args:
        trained: what may not be moved.
        guarded: whether that matters.
        anchored: a window can begin only at a step before which the state was kept.
    """

    def __init__(self, trained: Trained, *, guarded: bool, anchored: bool) -> None:
        self._trained, self._guarded, self._anchored = trained, guarded, anchored
        self._mark: Mark | None = None
        self._cause, self._told, self._waited = "", set[str](), 0

    def begin(self) -> None:
        """A new window, after an update."""
        self._cause, self._waited = "", 0

    def mark(self) -> None:
        """This is where the step led."""
        self._mark = Mark(self._trained) if self._guarded else None
        if self._mark is not None:
            _ = self._mark.norms

    def left(self, steps: deque[Step]) -> bool:
        """Whether the student has left the place where the newest of `steps` led.

        What versions do not tell is remembered beside that step, for `sift`.
        """
        before = self._mark
        self.mark()
        if not steps or before is None or self._mark is None:
            return False
        if before.moved(self._mark):
            return True
        first = before.norms if steps[-1].left is None else steps[-1].left[0]
        steps[-1] = replace(steps[-1], left=(first, self._mark.norms))
        return False

    def sift(self, steps: deque[Step]) -> list[Step]:
        """The steps since the student was last moved; waits for the device, once."""
        gaps = [(i, step.left) for i, step in enumerate(steps) if step.left is not None]
        if not gaps:
            return list(steps)
        flags = torch.stack([_differ(*left) for _, left in gaps]).tolist()
        last = max((i for (i, _), flag in zip(gaps, flags, strict=True) if flag), default=-1)
        kept = [replace(step, left=None) for step in list(steps)[last + 1 :]]
        while last >= 0 and self._anchored and kept and kept[0].state is None:
            kept.pop(0)
        return kept

    def refuse_written(self) -> None:
        """Raises ConfigError: the optimizer's memory was changed after coach.loss."""
        if self._mark is not None and self._mark.moved(Mark(self._trained)):
            raise ConfigError(
                "something changed what the optimizer holds, or which parameters it trains, "
                "between coach.loss and optimizer.step(): do that before coach.loss"
            )

    def cut(self, cause: str) -> None:
        """Steps are dropped because of it."""
        self._cause = cause

    def tell(self, count: int, window: int) -> None:
        """Warn, once for each cause, of a look back through fewer steps than were asked for."""
        if self._cause and count < window and self._cause not in self._told:
            self._told.add(self._cause)
            since = (
                f"goes back over {count} of {window} steps" if count else "waits for the next step"
            )
            warnings.warn(
                f"{self._cause}: the window begins anew there, so this update {since}",
                WindowWarning,
                stacklevel=3,
            )

    def postpone(self) -> None:
        """An update is due, and no step leads to where the student is.

        Raises:
            ReplayError: neither did one when the last updates were due.
        """
        self._waited += 1
        if self._waited > POSTPONED:
            self.refuse_none()
        self.tell(0, 1)

    def refuse_none(self) -> None:
        """Raises an error: there is no step to look back through."""
        if self._cause:
            raise ReplayError(
                f"{self._cause}, so that no recorded step leads to where the student is and the "
                "teacher cannot be taught: call coach.update right after optimizer.step(), before "
                "that, or remove it"
            )
        raise ConfigError(
            "no step was recorded since the teacher last changed: call coach.loss(x, y)"
            ".backward() and optimizer.step() first"
        )


def norms(leaves: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each, in float32 at least."""
    plain = [leaf.detach() for leaf in leaves]
    if not plain:
        return []
    short = any(leaf.dtype.itemsize < 4 for leaf in plain)
    dtype = torch.float32 if short else None
    return list(torch._foreach_norm(plain, 2, dtype))  # pyright: ignore[reportPrivateImportUsage]


def _differ(left: list[Tensor], right: list[Tensor]) -> Tensor:
    one, other = torch.stack(left), torch.stack(right)
    if one.dtype != other.dtype or one.device != other.device:
        return torch.ones((), dtype=torch.bool)
    return (one != other).any()
