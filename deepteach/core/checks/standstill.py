"""Between two steps nothing but the optimizer may move the student: is it where a step left it?

Versions of tensors tell of most writes, and at once. They do not tell of `leaf.data.clamp_()`,
and count weights that were exchanged and put back, so norms decide: those of a step without
writes are compared when the window is crossed, so that no step waits for the device.
"""

from __future__ import annotations

import operator
import warnings
from collections import deque
from functools import cached_property

import torch
from torch import Tensor

from deepteach.core.checks.trained import Trained
from deepteach.core.record import Step
from deepteach.errors import ConfigError, ReplayError, WindowWarning
from deepteach.shards import anywhere, over_ranks
from deepteach.tree import norms

MOVED = (
    "something besides optimizer.step() changed the student's parameters, or what its optimizer "
    "holds, after a step"
)
REBUILT = "layers of the student were added, removed or replaced after a step"
NOT_TAUGHT = "the optimizer made a step without coach.loss, which cannot be replayed"

NOT_ASKED = "coach.update was not called when an update was due"

POSTPONED = 2
"""Updates in a row that may wait for a step that leads to where the student is."""


class Mark:
    """A student and its optimizer at one moment."""

    def __init__(self, trained: Trained) -> None:
        self._names, self._leaves = trained.watched()
        self._versions = [leaf._version for leaf in self._leaves]

    @cached_property
    def norms(self) -> list[Tensor]:
        """Of each tensor, when this is first asked."""
        return norms(self._leaves)

    def same(self, now: Mark) -> bool:
        """Whether nothing has been replaced, and nothing written to as versions tell."""
        # A version tells of writes to one tensor alone.
        return (
            self._versions == now._versions
            and len(self._leaves) == len(now._leaves)
            and all(map(operator.is_, self._leaves, now._leaves))
            and self._names == now._names
        )

    def moved(self, now: Mark) -> bool:
        """Whether what has been replaced or written to since is something else now."""
        if self.same(now):
            apart = False
        else:
            apart = self._names != now._names or bool(_differ(self.norms, now.norms))
        return anywhere(apart, self._leaves)


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
        self._measured, self._always = True, False
        self._cause, self._told, self._waited = "", set[str](), 0

    def begin(self) -> None:
        """A new window, after an update."""
        self._cause, self._waited = "", 0

    def forget(self) -> None:
        """Where the student is when this is next asked is where its newest step led."""
        self._mark, self._measured = None, True
        self.begin()

    def mark(self, *, counts: bool = True) -> None:
        """This is where the step led; `counts` says whether a window may look back over it."""
        self._mark = Mark(self._trained) if self._guarded else None
        self._measured = counts or self._always
        if self._mark is not None and self._measured:
            _ = self._mark.norms

    def measure(self) -> None:
        """A copy is made: it has other tensors, whose versions tell nothing."""
        if self._mark is not None:
            _ = self._mark.norms

    def compare(self) -> None:
        """This is such a copy: what was measured says whether it is where the newest step led."""
        self._measured = True

    def look_always(self) -> None:
        """A window may look back over any step."""
        self._always = True

    def left(self, steps: deque[Step]) -> bool:
        """Whether the student has left the place where the newest of `steps` led.

        What versions do not tell is remembered beside that step, for `sift`. Of a step that no
        window looks back over no norms are taken, so that whatever was written to counts as moved.
        """
        before = self._mark
        if before is None or not steps:
            self.mark(counts=self._measured)
            return False
        if not self._measured:
            now = self._mark = Mark(self._trained)
            return not before.same(now)
        self.mark()
        assert self._mark is not None
        if before.moved(self._mark):
            return True
        first = before.norms if steps[-1].left is None else steps[-1].left[0]
        steps[-1] = steps[-1].followed((first, self._mark.norms))
        return False

    def sift(self, steps: deque[Step]) -> list[Step]:
        """The steps since the student was last moved; waits for the device, once."""
        gaps = [(i, step.left) for i, step in enumerate(steps) if step.left is not None]
        if not gaps:
            return list(steps)
        apart = torch.stack([_differ(*left) for _, left in gaps])
        flags = over_ranks(apart.int(), self._trained.parameters().values()).tolist()
        last = max((i for (i, _), flag in zip(gaps, flags, strict=True) if flag), default=-1)
        kept = [step.followed(None) for step in list(steps)[last + 1 :]]
        return self.begun(kept) if last >= 0 else kept

    def begun(self, steps: list[Step]) -> list[Step]:
        """The steps from where a window can begin."""
        kept = (i for i, step in enumerate(steps) if not self._anchored or step.state is not None)
        return steps[next(kept, len(steps)) :]

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


def _differ(left: list[Tensor], right: list[Tensor]) -> Tensor:
    one, other = torch.stack(left), torch.stack(right)
    if one.dtype != other.dtype or one.device != other.device:
        return torch.ones((), dtype=torch.bool)
    return (one != other).any()
