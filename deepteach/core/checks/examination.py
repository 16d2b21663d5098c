"""Are the gradients that a student is trained with those of its losses? A few samples tell.

Hooks, reversed gradients, detached parts and a backward pass of the user's own change what
comes back. Forward mode passes some of that by, and torch's second derivative applies it twice
or misses it, in silence. So black boxes are asked: first derivatives as training takes them,
and central differences of the losses and of those derivatives. It is done in float64 where the
module lets its numbers be cast, at a point beside theta, where hardly a unit stands on its kink;
what is not found true there is asked once more, at another one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.nested import in_double, rows_of, size_of
from deepteach.core.derivatives.double_backward import TwiceDifferentiable
from deepteach.core.derivatives.forward_mode import along, lacks_forward_rule
from deepteach.core.derivatives.linearised import derivatives_known, gradients
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.core.validation import Validation
from deepteach.rng import stream
from deepteach.tree import Params, all_finite, dot, norm, tree_map

DIFFERENCES, EITHER, REVERSE, SECOND = "differences", "either", "reverse", "second"
"""Derivatives that adjoints take of the losses; either is forward mode, or else reverse."""

ROWS = 4
"""Samples that are asked."""

SIZES = (1e-2, 2e-3, 1e-5, 1e-6)
"""Steps to either side, relative to theta; the long ones are for what computes in float32."""

BESIDE = 1e-3
"""How far from theta they are asked, relative to it."""

LARGEST = 2**28
"""Parameters of a module that is still copied in float64."""


@dataclass(frozen=True)
class Findings:
    """What was found of a student's gradients.

    Args:
        true: they are those of its losses, and torch knows their derivative.
        derived: torch knows how they follow the samples' weights.
        forward: forward mode says of the losses what they say.
        checked: the gradient of the validation loss is its own.
        finite: the derivatives that torch has of them are numbers.
    """

    true: bool = True
    derived: bool = True
    forward: bool = True
    checked: bool = True
    finite: bool = True

    def __or__(self, other: Findings) -> Findings:
        """What holds in either: a kink between two differences is nobody's hook."""
        return Findings(*map(operator.or_, astuple(self), astuple(other)))

    def __and__(self, other: Findings) -> Findings:
        """What holds in both."""
        return Findings(*map(operator.and_, astuple(self), astuple(other)))


@dataclass
class Examined:
    """What examinations have said of a student: it is asked anew where it has changed.

    Args:
        structure: the student's, and the derivative that was wanted, when `findings` were made.
        findings: of its gradients.
        names: the parameters that they are about.
        without_gradient: those of them that were asked where a step gives no gradient to what
            earlier ones have moved.
        sweeps: windows that were crossed.
        buffers: the structure that was examined for what passes leave to later ones in buffers,
            and the buffers in which they do.
    """

    structure: object = None
    findings: Findings = field(default_factory=Findings)
    names: frozenset[str] = frozenset()
    without_gradient: frozenset[str] = frozenset()
    sweeps: int = 0
    buffers: tuple[object, list[str]] | None = None

    def about(self, structure: object) -> None:
        """What is asked next is of a student with this structure: of another, nothing is known."""
        if self.structure != structure:
            self.structure = structure
            self.names = self.without_gradient = frozenset()

    def unasked(self, steps: Sequence[Step]) -> tuple[list[Step], set[str], set[str]]:
        """The steps to ask for what is not known, what steps move, and the new `without_gradient`.

        A parameter that gets no gradient stays where it is. A step that gives none to one that
        earlier steps have moved is asked itself: the loss may read it all the same.
        """
        to_ask, moved, without_gradient = [], set[str](), set(self.without_gradient)
        for step in steps:
            still = moved - step.hyper.keys()
            if not still <= without_gradient:
                to_ask.append(step)
                without_gradient |= still
            moved |= step.hyper.keys()
        if not (to_ask or moved <= self.names):
            to_ask.append(steps[-1])
        return to_ask, moved, without_gradient

    def learn(self, found: Findings, names: set[str], without_gradient: set[str]) -> None:
        """What was found of these parameters; what holds for each of two sets holds for both."""
        known = self.names if found == self.findings == Findings() else frozenset()
        self.findings, self.names = found, known | names
        self.without_gradient = frozenset(without_gradient)


Losses = Callable[[Params], Tensor]
"""What is asked: losses as a function of the parameters."""


Question = Callable[[bool, slice, Params, int], Findings]
"""What is found of those rows, in float64 or as they are, at theta and beside it at a point."""


def findings_of(
    objective: Objective, theta: Params, step: Step, validation: Validation, derivative: str
) -> Findings:
    """Ask the first samples of a recorded step, and of the trusted batch, for what is true."""
    trained, checked = _of_step(objective, theta, step), _of_trusted(objective, theta, validation)
    in_modes, modes = objective.student.in_modes, step.passes[0].modes

    def question(double: bool, rows: slice, start: Params, point: int) -> Findings:
        own, other = trained(double, rows), checked(double, rows)
        with in_modes(modes):
            in_training = _reached(own, start)
        reached = _either(in_training, _reached(other, start), start)
        with in_modes(modes):
            found = _Examination(own, start, point, reached).findings(derivative)
        return replace(found, checked=_Examination(other, start, point, reached).true())

    return _asked(objective, theta, question)


def _asked(objective: Objective, theta: Params, question: Question) -> Findings:
    """The answer of a few samples in float64; or a few as they are, or all of them."""
    size = sum(leaf.numel() for leaf in objective.student.module.parameters())
    few = min(ROWS, getattr(objective, "size", ROWS))  # no more than a chunk of `micro_batch`
    for double, count in ((True, few), (False, few), (False, None)):
        if double and size > LARGEST:
            continue
        start, rows = in_double(theta) if double else theta, slice(0, count)
        try:
            found = question(double, rows, start, 0)
            return found if found == Findings() else found | question(double, rows, start, 1)
        except Exception:  # a module may refuse other types and smaller batches in any way
            if count is None:
                raise
    raise AssertionError("the last try returns or raises")


def _of_step(objective: Objective, theta: Params, step: Step) -> Callable[[bool, slice], Losses]:
    seen, count = step.passes[0], size_of(step.passes[0].labels)
    frozen = _frozen(objective, theta)

    def losses(double: bool, rows: slice) -> Losses:
        inputs, labels = _rows(seen.inputs, rows, count), _rows(seen.labels, rows, count)
        buffers = {**seen.buffers, **frozen}
        if double:
            inputs, labels, buffers = map(in_double, (inputs, labels, buffers))
        part = replace(seen, inputs=inputs, labels=labels, buffers=buffers)
        few = replace(step, passes=(part,), snapshot=step.snapshot.rows(rows))
        return lambda theta: objective.replay(theta, few).losses

    return losses


def _of_trusted(
    objective: Objective, theta: Params, validation: Validation
) -> Callable[[bool, slice], Losses]:
    count, frozen = size_of(validation.labels), _frozen(objective, theta)

    def losses(double: bool, rows: slice) -> Losses:
        batch = [_rows(value, rows, count) for value in (validation.inputs, validation.labels)]
        buffers = {**objective.student.buffers(), **frozen}
        if double:
            *batch, buffers = map(in_double, (*batch, buffers))
        return lambda theta: validation.at(theta, buffers, *batch).unsqueeze(0)

    return losses


def _reached(losses: Losses, theta: Params) -> dict[str, Tensor | None]:
    """Which entries of theta have a gradient; None of what the graph does not lead to."""
    leaves = _leaves(theta)
    with torch.enable_grad(), derivatives_known():
        value = losses(leaves).sum()
        if not value.requires_grad:
            return dict.fromkeys(leaves)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {name: None if g is None else g != 0 for name, g in zip(leaves, found, strict=True)}


def _either(
    one: dict[str, Tensor | None], other: dict[str, Tensor | None], theta: Params
) -> Params:
    """Which entries of theta have a gradient in training, or of the trusted batch.

    One that has none is a constant of the meta-gradient, whatever the losses are at other values
    of it: the row of an embedding's `padding_idx`. But what neither leads to is all asked: a step
    of the window has moved it.
    """
    found: Params = {}
    for name, leaf in theta.items():
        parts = [reached for tree in (one, other) if (reached := tree[name]) is not None]
        every = torch.ones_like(leaf, dtype=torch.bool)
        found[name] = torch.stack(parts).any(0) if parts else every
    return found


def _rows(value: Any, rows: slice, count: int) -> Any:
    return rows_of(value, rows, count) if rows.stop is not None else value


def _frozen(objective: Objective, theta: Params) -> Params:
    """Gathered once, where they are split: ranks may ask different numbers of times."""
    named = objective.student.module.named_parameters()
    return objective.gathered({name: leaf.detach() for name, leaf in named if name not in theta})


class _Examination:
    """Losses near `theta`, in a direction `along` that is made of theta's own sizes."""

    def __init__(
        self, losses: Losses, theta: Params, point: int = 0, reached: Params | None = None
    ) -> None:
        self.losses = losses
        draws = stream(point, "examination")
        usual = norm(theta) / max(sum(leaf.numel() for leaf in theta.values()), 1) ** 0.5

        def noise(leaf: Tensor) -> Tensor:
            drawn = torch.randn(leaf.shape, generator=draws, dtype=torch.float32).to(leaf)
            size = torch.linalg.vector_norm(leaf) / max(leaf.numel(), 1) ** 0.5
            return drawn * torch.where(size > 0, size, usual)

        self.along = tree_map(noise, theta)
        if reached is not None:
            self.along = tree_map(torch.mul, self.along, reached)
        self.theta = tree_map(lambda leaf: leaf.detach() + BESIDE * noise(leaf), theta)

        self.base = self._plain(self.theta)
        # A pass that does not repeat itself is found, and worded, by the replays.
        self.repeats = not _apart(self._plain(self.theta), self.base, 1e-3 * self.base.abs())
        # Of samples that are fitted to the last digit all slopes are rounding: of numbers like
        # 1, over the shortest step that counts.
        eps = torch.finfo(self.base.dtype).eps
        self.rounding = eps / (SIZES[-1] if self.base.dtype == torch.float64 else SIZES[1])
        self.floor = 1e-8 * self.base.abs() + self.rounding

    def findings(self, derivative: str) -> Findings:
        """All that is asked of a training pass."""
        if not self.repeats:
            return Findings()
        true = self.true()
        if derivative == DIFFERENCES:
            return Findings(true)
        trained = self._trained()
        forward, derived, finite = self._forward_agrees(trained), True, True
        if not (forward and derivative == EITHER):
            by_reverse = self._by_reverse()
            derived, finite = not _apart(by_reverse, trained, self.floor), all_finite([by_reverse])
        if derivative == SECOND and true and derived:
            floor = 1e-8 * torch.linalg.vector_norm(trained) + self.rounding
            curvature = self._curvature()
            true, finite = self._agrees(curvature, self._gradient, floor), all_finite([curvature])
        return Findings(true, derived, forward, finite=finite)

    def true(self) -> bool:
        """Whether the slopes that training takes are those of the losses."""
        return not self.repeats or self._agrees(self._trained(), self._plain, self.floor)

    def _plain(self, theta: Params) -> Tensor:
        with torch.no_grad():
            return self.losses(theta)

    def _gradient(self, theta: Params) -> Tensor:
        """All entries of the gradient of the sum of the losses, as training takes it."""
        leaves = _leaves(theta)
        with torch.enable_grad():
            return _flat(gradients(self.losses(leaves).sum(), leaves))

    def _curvature(self) -> Tensor:
        """How torch says that `_gradient` moves along."""
        leaves = _leaves(self.theta)
        with torch.enable_grad(), TwiceDifferentiable():
            value = self.losses(leaves).sum()
            inner = dot(gradients(value, leaves, create_graph=True), self.along)
            return _flat(gradients(inner, leaves))

    def _trained(self) -> Tensor:
        """The slope of each sample's loss along, by first derivatives as training takes them."""
        leaves = _leaves(self.theta)
        with torch.enable_grad():
            losses = self.losses(leaves)
            found = [gradients(one, leaves, retain_graph=True) for one in losses.unbind()]
        return torch.stack([dot(gradient, self.along) for gradient in found])

    def _by_reverse(self) -> Tensor:
        """The same by differentiating the gradient of the weighted losses."""
        leaves = _leaves(self.theta)
        with torch.enable_grad(), TwiceDifferentiable():
            losses = self.losses(leaves)
            weights = torch.ones_like(losses).requires_grad_()
            gradient = gradients(weights @ losses, leaves, create_graph=True)
            return gradients(dot(gradient, self.along), {"": weights})[""]

    def _forward_agrees(self, trained: Tensor) -> bool:
        """Whether there is a forward mode, and it says the same."""
        try:
            [(_, slopes)] = along(lambda dual: (self.losses(dual),), self.theta, self.along)
        except (NotImplementedError, RuntimeError) as error:
            if not lacks_forward_rule(error):
                raise
            return False
        found = torch.zeros_like(trained) if slopes is None else slopes
        return not _apart(found, trained, self.floor)

    def _agrees(self, claimed: Tensor, function: Callable[[Params], Tensor], floor: Tensor) -> bool:
        """Whether central differences of `function` along say the same as `claimed`.

        Those of one size at least: the others may have crossed the kink of a unit. Or the two
        that are nearest each other, to within what parts them.
        """

        def moved(size: float) -> Params:
            return tree_map(lambda a, b: torch.add(a, b, alpha=size), self.theta, self.along)

        found = [(function(moved(s)) - function(moved(-s))) / (2 * s) for s in SIZES]
        pairs = [(later, later - earlier) for earlier, later in zip(found, found[1:], strict=False)]
        best, spread = min(pairs, key=lambda pair: float(torch.linalg.vector_norm(pair[1])))
        slack = 10 * torch.linalg.vector_norm(spread) + floor
        if not _apart(claimed, best, slack):
            return True
        sharp = claimed.dtype == torch.float64  # else short differences are rounding
        return sharp and any(not _apart(claimed, one, floor) for one in found)


def _apart(found: Tensor, known: Tensor, slack: Tensor) -> bool:
    """Whether they differ by more than `slack` and the rounding of their type."""
    relative = 1e-2 if known.dtype != torch.float64 else 1e-6
    error = torch.linalg.vector_norm(found - known)
    allowed = torch.linalg.vector_norm(slack) + relative * torch.linalg.vector_norm(known)
    return not bool(error <= allowed)


def _leaves(theta: Params) -> Params:
    return {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}


def _flat(tree: Params) -> Tensor:
    return torch.cat([leaf.detach().reshape(-1) for leaf in tree.values()])


def looks_again(count: int) -> bool:
    """Whether what is looked at now and then is due: the 1st, 4th, 16th, 64th time, ..."""
    return count > 0 and count & (count - 1) == 0 and count.bit_length() % 2 == 1
