"""What the teacher reaches through buffers that the window's own passes move.

A pass may leave something behind for later ones: running statistics, a power iteration, a
queue. Where it depends on theta, it belongs to the state that a window carries on, beside
theta and the optimizer's slots. Both that and whether a pass reads it are seen by passes with
other values. Running statistics are differentiated (`running_statistics`); what else depends
on theta and is read is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from deepteach.core.checks.bystanders import altered, beside, losses_beside, one_read
from deepteach.core.checks.examination import Examined
from deepteach.core.derivatives.running_statistics import RunningStatistics, pull_statistics
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.core.student import Student
from deepteach.core.validation import Validation
from deepteach.errors import ConfigError
from deepteach.rng import replayed
from deepteach.tree import Params, clone, dense_parts, tree_map


class MovedBuffers:
    """The trusted loss as a function of the buffers after each step, backwards from the last.

    Args:
        objective: knows the student.
        examined: what of it was examined before; gets what is found now.
        steps: of the window.
        theta: after them.
        validation: the trusted batch.

    Raises:
        ConfigError: a buffer that these passes move is read, and is no running statistic.
    """

    def __init__(
        self,
        objective: Objective,
        examined: Examined,
        steps: Sequence[Step],
        theta: Params,
        validation: Validation,
    ) -> None:
        self.cotangent: Params = {}
        """d(trusted loss)/d(buffers), of those that it reads."""
        self.off: Callable[[int], Params | None] = lambda position: None
        """How far theta before a step may be off, where it was found by rounded steps."""
        self._student, self._steps = objective.student, steps
        self._after = [step.passes[0].buffers for step in steps[1:]]
        self._after.append(self._student.buffers())
        self._refuse_apart(theta, validation)
        if len(steps) == 1:
            # It begins where no teacher has reached; passes after it may not have.
            if self._student.modes() != steps[0].passes[-1].modes and objective.touched():
                names = _differing(steps[0].passes[0].buffers, self._after[-1])
                self._look(theta, validation, names, examined=True)
            return
        key = (self._student.structure(), steps[-1].passes[-1].modes)
        before, names = examined.buffers or (None, [])
        known = before == key
        if not known:
            names = _differing(steps[0].passes[0].buffers, self._after[-1])
            if not names:
                return
            names = _moved_by_theta(self._student, steps[-1], theta, names)
            _refuse_read_in_training(objective, steps[-1], theta, names)
        if names and self._student.modes() != steps[-1].passes[-1].modes:
            self._look(theta, validation, names, examined=known)
        examined.buffers = key, names
        if self.cotangent and objective.ranks.count > 1:
            raise ConfigError(
                "the running statistics of several processes differ, so the trusted loss in eval "
                "mode does: call model.train() before coach.update"
            )

    def _refuse_apart(self, theta: Params, validation: Validation) -> None:
        """What something else moved, and training passes do not read, may the trusted batch."""
        names = list(dict.fromkeys(name for step in self._steps for name in step.apart))
        if not names:
            return
        buffers = self._after[-1]
        if self._student.modes() != self._steps[-1].passes[-1].modes:
            statistics, used = RunningStatistics(buffers), _copies(buffers)
            with torch.no_grad(), statistics.of(used):
                validation.value(clone(theta), used)
            names = [name for name in names if name not in statistics.known]  # `compare` tells

        def seen(changed: Sequence[str]) -> Tensor:
            used = beside(theta, self._student, changed)
            return validation.value(used, altered(buffers, changed))

        name = one_read(seen, names)
        if name is not None:
            raise ConfigError(
                f"something besides coach.loss moved {name!r} within the window, and the trusted "
                "batch reads it: call coach.update right after optimizer.step(), before that, with "
                f"window=1, or, where it is a buffer whose values do not depend on the student, "
                f"say so by dt.Student(scheduled=[{name!r}])"
            )

    def _look(
        self, theta: Params, validation: Validation, names: list[str], *, examined: bool
    ) -> None:
        buffers = self._after[-1]
        theta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        statistics, used = RunningStatistics(buffers), _copies(buffers)
        with torch.enable_grad(), statistics.of(used):
            value = validation.value(theta, used)
        own = {name: statistics.start[name] for name in names if name in statistics.known}
        if own and value.requires_grad:
            found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
            pairs = zip(own, found, strict=True)
            self.cotangent = {name: g for name, g in pairs if g is not None}
        others = [name for name in names if name not in statistics.known]
        if others and not examined:

            def seen(changed: Sequence[str]) -> Tensor:
                return validation.value(theta, altered(buffers, changed))

            _refuse_read(seen, others, "by the trusted batch")

    def pull(self, theta: Params, position: int) -> Params:
        """What the buffers after a step say of the theta that it began at; goes a step back.

        Raises:
            ConfigError: other passes than the recorded ones moved the buffers.
        """
        part, earlier, reached = pull_statistics(
            self._student, theta, self._steps[position], self.cotangent
        )
        self.compare(reached, position, theta)
        self.cotangent = earlier
        return part

    @torch.no_grad()
    def check_first(self, theta: Params) -> None:
        """Passes at the window's first step, which began at `theta`, led to the buffers after it.

        Raises:
            ConfigError: other passes than the recorded ones moved the buffers.
        """
        if not self.cotangent:
            return
        statistics = RunningStatistics(self._steps[0].passes[0].buffers)
        statistics.follow(self._student, theta, self._steps[0])
        self.compare({n: statistics.values[n].detach() for n in self.cotangent}, 0, theta)

    def add_to(self, d_theta: Params, theta: Params, position: int) -> Params:
        """`d_theta` with the part of `pull`, where there is one."""
        if not self.cotangent:
            return d_theta
        return tree_map(torch.add, d_theta, self.pull(theta, position))

    def compare(self, reached: Params, position: int, theta: Params | None = None) -> None:
        """The buffers after a step must be those that its passes `reached`, from `theta`.

        Raises:
            ConfigError: they are not: something else moved them, or `theta` is off by rounding.
        """
        recorded = self._after[position]
        for name, leaf in reached.items():
            if not _near(leaf, recorded[name]):
                why = self._by_rounding(name, theta, position)
                raise ConfigError(
                    f"{name!r}, which the trusted batch is normalised by, {why}: call "
                    "model.train() before coach.update"
                )

    @torch.no_grad()
    def _by_rounding(self, name: str, theta: Params | None, position: int) -> str:
        """Why a buffer after a step is another one."""
        step, recorded = self._steps[position], self._after[position][name]
        if theta is not None and (off := self.off(position)) is not None:
            ends = []
            for shifted in (torch.sub, torch.add):
                statistics = RunningStatistics(step.passes[0].buffers)
                statistics.follow(self._student, tree_map(shifted, theta, off), step)
                ends.append(statistics.values[name].detach())
            low, high = torch.minimum(*ends), torch.maximum(*ends)
            if _near(recorded.clamp(low, high), recorded):
                return (
                    "follows parameters whose gradients are 0 but for rounding, of which Adam "
                    "makes steps that no replay repeats (a bias before it: bias=False)"
                )
        return "was moved by other passes than those of coach.loss"


@torch.no_grad()
def _moved_by_theta(student: Student, step: Step, theta: Params, names: list[str]) -> list[str]:
    """Those that a pass leaves otherwise at another theta, or after other ones of them."""
    seen, elsewhere = step.passes[-1], {name: 1.01 * leaf + 1e-3 for name, leaf in theta.items()}

    def after(at: Params, changed: Iterable[str]) -> Params:
        buffers = altered(seen.buffers, changed)
        with replayed(seen.generators), student.in_modes(seen.modes):
            student.functional(at, buffers, seen.inputs, update=True)
        return buffers

    plain, found = after(theta, []), set()
    while True:
        other = after(elsewhere, found)
        more = {name for name in names if not _same(plain[name], other[name])}
        if more <= found:
            return [name for name in names if name in found]
        found |= more


def _refuse_read_in_training(
    objective: Objective, step: Step, theta: Params, names: list[str]
) -> None:
    _refuse_read(partial(losses_beside, objective, step, theta), names, "by later ones")


def _refuse_read(seen: Callable[[Sequence[str]], Tensor], names: list[str], reader: str) -> None:
    """Raise where `seen` of other values in `names` is not what it is of the present ones."""
    name = one_read(seen, names)
    if name is not None:
        raise ConfigError(
            f"the student's passes move the buffer {name!r}, and it is read {reader} (a power "
            "iteration, a moving average?), which a window of several steps would miss: use "
            "window=1, or keep that layer in eval mode"
        )


def _near(leaf: Tensor, recorded: Tensor) -> bool:
    slack, size = torch.finfo(leaf.dtype).eps ** 0.5, torch.linalg.vector_norm
    return bool(size(leaf - recorded) <= slack * (1 + size(recorded)))


def _differing(left: Params, right: Params) -> list[str]:
    return [
        name
        for name, leaf in right.items()
        if leaf.is_floating_point() and not (name in left and _same(left[name], leaf))
    ]


def _same(left: Tensor, right: Tensor) -> bool:
    if left.layout != right.layout or left.shape != right.shape:
        return False
    return all(map(torch.equal, dense_parts(left), dense_parts(right)))


def _copies(buffers: Params) -> Params:
    return {name: leaf.clone() for name, leaf in buffers.items()}
