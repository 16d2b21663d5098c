"""What a student's passes read and no step trains: does something else move it within a window?

Buffers, and parameters that are not trained (a target network, frozen layers). What a loop writes
there between two passes may depend on the student's weights, and so on the teacher, on a way that
no derivative follows: a centre, a memory bank, an average of the weights. Besides, replays are
given the buffers that their pass began with, but parameters as they are now. So a window begins
after the last such write to what passes read. That a write ignores the weights, as a schedule
does, cannot be seen: `Student(scheduled=...)` says it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from deepteach.core.checks.trained import Trained
from deepteach.core.objective import Objective
from deepteach.core.record import Apart, Step
from deepteach.core.student import Student
from deepteach.errors import ConfigError
from deepteach.rng import untouched
from deepteach.shards import own
from deepteach.tree import Params, clone, dense_parts, norms

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Place:
    """Tensors by name at one moment; `values` of all of them in a row, where they were taken."""

    named: Params
    versions: list[int]
    sizes: tuple[int, ...]
    values: Tensor | None

    @classmethod
    def of(cls, named: Params, measure: Callable[[list[Tensor]], list[Tensor]] | None) -> _Place:
        leaves = list(named.values())
        found = [] if measure is None else measure(leaves)
        row = torch.cat([leaf.reshape(-1).to(found[0].device) for leaf in found]) if found else None
        sizes = tuple(leaf.numel() for leaf in found)
        return cls(named, [leaf._version for leaf in leaves], sizes, row)

    def apart(self, now: _Place) -> Apart | None:
        """What has moved until `now`: by values, or by writes that versions tell of."""
        alike = list(self.named) == list(now.named) and self.sizes == now.sizes
        if alike and self.values is not None and now.values is not None:
            return Apart(tuple(self.named), self.sizes, self.values != now.values)
        before = dict(zip(self.named, self.versions, strict=True))
        moved = [
            name
            for (name, leaf), version in zip(now.named.items(), now.versions, strict=True)
            if self.named.get(name) is not leaf or before[name] != version
        ]
        return Apart(tuple(moved)) if moved else None


class Bystanders:
    """Watches them from pass to pass.

    Args:
        trained: the student, and what of it is trained.
        objective: gives passes once more.
        guarded: whether it matters that something moves.

    Raises:
        ConfigError: `student.scheduled` names what is no buffer.
    """

    def __init__(self, trained: Trained, objective: Objective, *, guarded: bool) -> None:
        self._trained, self._objective, self._guarded = trained, objective, guarded
        self._buffers: _Place | None = None
        self._frozen: _Place | None = None
        self._spoilt: list[Apart] = []
        """What has moved of the frozen parameters since the first pass of the pending step."""
        self._known: dict[tuple[str, ...], str | None] = {}
        """Which of some tensors is read, of a student that runs as `_ran`."""
        self._ran: object = None
        self._listed: tuple[object, object] | None = None
        self._lists: tuple[Params, Params] = {}, {}
        """What is watched, of a module and an optimizer as `_listed`."""
        student = trained.student
        names = [name for name, _ in student.layout.buffers()]
        for name in student.scheduled:
            if name not in names:
                raise ConfigError(
                    f"dt.Student(scheduled=...) names {name!r}, and the module's buffers are "
                    f"{', '.join(names[:8]) or 'none'}: name those that your loop moves"
                )

    def __getstate__(self) -> dict:
        """Of copies, whose tensors are others."""
        places = {"_buffers": None, "_frozen": None, "_listed": None, "_lists": ({}, {})}
        return {**vars(self), **places, "_known": {}, "_ran": None}

    def forget(self) -> None:
        """They are where they should be when they are next looked at."""
        self._buffers = self._frozen = None

    def passed(self, *, begins: bool, counts: bool) -> None:
        """A pass has left the buffers, or was undone in them; `begins` where it opens a step."""
        if not self._guarded:
            return
        now, _ = self._watched()
        self._buffers = _Place.of(now, _copies if counts else None) if now else None
        if begins:
            self._spoilt.clear()

    def look(self, steps: deque[Step], *, counts: bool) -> None:
        """What has moved since is remembered beside the newest step, the last before that."""
        if not self._guarded:
            return
        buffers, frozen = self._buffers, self._frozen
        now, others = self._watched()
        if not (now or others or buffers or frozen):
            return
        self._buffers = _Place.of(now, _copies if counts else None)
        self._frozen = _Place.of(others, norms if counts else None)
        found = None if buffers is None else buffers.apart(self._buffers)
        other = None if frozen is None else frozen.apart(self._frozen)
        if other is not None:
            self._spoilt.append(other)
        more = [apart for apart in (found, other) if apart is not None]
        if more and steps:
            steps[-1] = replace(steps[-1], beside=(*steps[-1].beside, *more))

    def stepped(self, step: Step) -> Step:
        """The step just taken: what its passes read and was moved until its end."""
        spoilt, self._spoilt = self._spoilt, []
        return replace(step, beside=(*step.beside, *spoilt)) if spoilt else step

    def sift(self, steps: Sequence[Step]) -> tuple[list[Step], str | None]:
        """The steps since something moved what passes read, and what that was.

        Of steps that are kept, `apart` has the names of what was moved after them and training
        passes do not read. Waits for the device; all ranks agree.
        """
        if not self._guarded or not steps:
            return list(steps), None
        ranks = self._objective.ranks
        if not ranks.any(any(step.beside or step.apart for step in steps)):
            return list(steps), None
        names = [name for tensors in self._watched() for name in tensors]
        places = {name: place for place, name in enumerate(names)}
        table = torch.zeros(len(steps), len(names), dtype=torch.int32)
        for row, moved in zip(table, _moved(steps), strict=True):
            row[[places[name] for name in moved if name in places]] = 1
        if ranks.count > 1:
            table = ranks.table(*table.flatten()).amax(0).view(table.shape)
        last, cause, left = -1, None, []
        for index, row in enumerate(table.tolist()):
            moved = tuple(name for name, flag in zip(names, row, strict=True) if flag)
            left.append(moved)
            read = self._read(moved, steps[-1])
            if ranks.any(read is not None):
                last, cause = index, self._cause(read or moved[0])
        kept = zip(steps[last + 1 :], left[last + 1 :], strict=True)
        return [replace(step, beside=(), apart=moved) for step, moved in kept], cause

    def _watched(self) -> tuple[Params, Params]:
        """Buffers, and parameters that are not trained; listed anew where either has changed."""
        student, trained = self._trained.student, self._trained
        layout, found = student.layout, trained.found()
        if self._listed is None or self._listed[0] is not layout or self._listed[1] is not found:
            taught = trained.parameters()
            buffers = {
                name: leaf
                for name, leaf in layout.buffers()
                if leaf.is_floating_point() and name not in student.scheduled
            }
            others = {
                name: leaf
                for name, leaf in layout.parameters.items()
                if name not in taught and leaf.dtype in _FLOATS and not leaf.is_meta
            }
            self._listed, self._lists = (layout, found), (buffers, others)
        return self._lists

    def _read(self, moved: tuple[str, ...], step: Step) -> str | None:
        """One of these tensors, where a pass like that of `step` gives other losses without it."""
        ran = self._trained.student.structure(), step.passes[-1].modes
        if self._ran != ran:
            self._ran, self._known = ran, {}
        if moved not in self._known:
            seen = partial(losses_beside, self._objective, step, self._trained.parameters())
            with untouched():
                self._known[moved] = one_read(seen, moved)
        return self._known[moved]

    def _cause(self, name: str) -> str:
        trained = self._trained
        leaf = trained.student.layout.parameters.get(name)
        if leaf is None:
            return (
                f"something besides coach.loss changed the buffer {name!r}, which the student's "
                "passes read (where its values do not depend on the student, as those of a "
                f"schedule, say so by dt.Student(scheduled=[{name!r}]))"
            )
        groups = trained.optimizer.param_groups
        stepped = any(leaf is held for group in groups for held in group["params"])
        why = (
            "the optimizer goes on moving it: zero_grad(set_to_none=True)"
            if stepped
            else "a target network that follows the student?"
        )
        return (
            f"something changed {name!r}, a parameter that is not trained and that the student's "
            f"passes read ({why})"
        )


def beside(theta: Params, student: Student, changed: Iterable[str]) -> Params:
    """Copies of `theta`, and other values in what else of `changed` is a parameter."""
    known = student.layout.parameters
    others = {name: known[name] for name in changed if name in known}
    return {**clone(theta), **altered(others, others)}


def losses_beside(
    objective: Objective, step: Step, theta: Params, changed: Iterable[str]
) -> Tensor:
    """The losses of a step's passes at `theta`, with other values in what is `changed`."""
    passes = tuple(replace(p, buffers=altered(p.buffers, changed)) for p in step.passes)
    used = objective.gathered(beside(theta, objective.student, changed))
    return objective.replay(used, replace(step, passes=passes)).losses


@torch.no_grad()
def one_read(seen: Callable[[Sequence[str]], Tensor], names: Sequence[str]) -> str | None:
    """One of `names` in which other values change what is `seen`; None where none does."""
    if not names:
        return None
    plain = seen([])

    def differs(changed: Sequence[str]) -> bool:
        slack = torch.finfo(plain.dtype).eps ** 0.5
        return not bool((seen(changed) - plain).abs().max() <= slack * (1 + plain.abs().max()))

    if not differs(names):
        return None
    while len(names) > 1:
        half = names[: len(names) // 2]
        names = half if differs(half) else names[len(half) :]
    return names[0]


def altered(tensors: Params, names: Iterable[str]) -> Params:
    """Copies of all, with other values in `names`; what is positive stays so.

    Entries change by different amounts: a softmax does not see what shifts them all alike.
    """
    copies = clone(tensors)
    for name in names:
        if name in copies:
            leaf = copies[name]
            if leaf.layout != torch.strided:
                copies[name] = 1.25 * leaf
                continue
            some = torch.arange(leaf.numel(), device=leaf.device) * 0.618 % 1
            copies[name] = leaf + (0.25 * leaf + 0.1) * (1 + some.to(leaf.dtype).view(leaf.shape))
    return copies


def _copies(leaves: list[Tensor]) -> list[Tensor]:
    parts = [[part.flatten() for part in dense_parts(own(leaf))] for leaf in leaves]
    return [
        own_parts[0] if len(own_parts) == 1 else torch.cat([p.to(leaf.dtype) for p in own_parts])
        for leaf, own_parts in zip(leaves, parts, strict=True)
    ]


def _moved(steps: Sequence[Step]) -> list[set[str]]:
    """The names of what was moved after each step; the device is waited for once."""
    looks = [(i, apart) for i, step in enumerate(steps) for apart in step.beside]
    unknown = [apart.flags for _, apart in looks if apart.flags is not None]
    found = [set(step.apart) for step in steps]
    some = iter(torch.stack([flags.any() for flags in unknown]).tolist() if unknown else ())
    for index, apart in looks:
        if apart.flags is None or next(some):
            found[index].update(apart.moved())
    return found
