"""The one objective: L(theta, omega) = sum_k u_k l_k + lambda R, u = w / sum w.

This file owns the normalisation. The forward step, the reversal and every derivative call
it, so they cannot disagree on a factor 1/n (the paper's Algorithm 1 and Eq. 2 do). The
regulariser lambda R is the optimizer's own weight decay and belongs to `optim`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from deepteach.core.batches.numbered import index_of, numbered
from deepteach.core.derivatives import forward_mode
from deepteach.core.derivatives.double_backward import TwiceDifferentiable
from deepteach.core.derivatives.linearised import (
    Linearised,
    derivatives_known,
    gradients,
    leads_to,
    refuse_cut,
)
from deepteach.core.derivatives.plain_kernels import uncompiled
from deepteach.core.layout import ModuleLayout, layout_of
from deepteach.core.losses import (
    NOTHING,
    SampleLoss,
    counted,
    mass_of,
    normalise,
    refuse_log_weights,
    refuse_shape,
)
from deepteach.core.record import Step
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Outputs, Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError
from deepteach.rng import generator_states, replayed, same_states
from deepteach.tree import Params, tree_map


@dataclass
class Objective:
    """Student, teacher and loss as one differentiable function of (theta, omega).

    L = sum_k u_k l_k, u the teacher's normalised weights, l the student's own loss or one
    that the teacher shapes. With `through_weights` what the teacher reads depends on theta,
    and that derivative is taken ("deeper interactions"); without it the features are held
    constant, and L depends on theta through the logits alone, which the derivatives below
    exploit.

    On several ranks a batch is spread over them. The normaliser is that of the whole batch;
    values and gradients are this rank's part, and L and its gradient the sums of the parts.
    """

    student: Student
    teacher: AbstractTeacher
    loss: SampleLoss
    through_weights: bool
    forward_mode: bool = True
    uncut: bool = False
    """No gradient of the student was cut off when that was last asked (`refuse_cut`)."""
    left: list[tuple[int, int]] | None = None
    """The student's buffers as the last pass that was trained on left them, and their versions."""
    ranks: Ranks = field(default_factory=Ranks)
    summed: Params | None = None
    """While a sweep asks for it: how large the terms are that `teacher_gradient` adds up."""
    confirmed: list[Step] = field(default_factory=list)
    """Steps of the present sweep whose weights have come out again."""
    known_layout: ModuleLayout | None = None

    @property
    def taught(self) -> ModuleLayout:
        """The teacher's layers and tensors as they are now."""
        known = self.known_layout = layout_of(self.teacher, self.known_layout)
        return known

    def gathered(self, tree: Params) -> Params:
        """Parameters, or a direction of them, gathered for a pass where they are split."""
        return self.student.shards.whole(tree)

    def total(self, tree: Params, what: str) -> Params:
        """The sum over ranks of what passes gave for the parameters; split where those are."""
        return self.student.shards.summed(tree, what, self.ranks)

    def leave(self) -> None:
        """The student's buffers are as a pass that is trained on left them."""
        self.left = self._buffers()

    def touched(self) -> bool:
        """Whether something may have written to them since."""
        return self.left != self._buffers()

    def _buffers(self) -> list[tuple[int, int]]:
        return [(id(leaf), leaf._version) for _, leaf in self.student.layout.buffers()]

    def sample_losses(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """`(batch,)` losses; refuses a loss that already averages."""
        with uncompiled():
            losses = self.loss(outputs.logits, labels)
        refuse_shape(losses, outputs.logits, labels, len(outputs.internal), "loss")
        _refuse_without_gradient(losses, outputs.logits, "loss")
        return losses

    def snapshot(
        self,
        outputs: Outputs,
        labels: Tensor,
        clock: Clock,
        index: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Snapshot:
        losses = self.sample_losses(outputs, labels)
        index = index_of(index, len(losses))
        group = numbered(group, "group", len(losses))
        mass = mass_of(self.loss, labels)
        return Snapshot(outputs.internal, outputs.logits, labels, losses, clock, index, group, mass)

    @property
    def omega(self) -> Params:
        """The teacher's parameters by name, detached."""
        return {name: leaf.detach() for name, leaf in self.taught.parameters.items()}

    @property
    def held(self) -> bool:
        """What the teacher reads is constant in theta."""
        return not (self.through_weights or self.teacher.through)

    def weights(self, omega: Params, snapshot: Snapshot) -> Tensor:
        """u(omega) of a batch, `(batch,)`; features detached where they are held."""
        shares = self._shares(self._log_weights(omega, snapshot), snapshot)
        return shares.to(snapshot.losses.dtype)

    def _log_weights(self, omega: Params, snapshot: Snapshot) -> Tensor:
        """Logarithms of the raw weights, each times the mass of its sample."""
        seen = snapshot.detach() if self.held else snapshot
        found = self.taught.call(omega, (seen,))
        refuse_log_weights(found, self.teacher, len(snapshot.losses))
        if snapshot.mass is not None:
            found = found + snapshot.mass.to(found.dtype).log()
        return counted(found, snapshot.ignored())

    def _shares(self, log_weights: Tensor, snapshot: Snapshot) -> Tensor:
        """u of a batch, in the logarithms' precision; of the whole batch on several ranks."""
        if self.ranks.count > 1:
            shares, total = self.ranks.shares(log_weights, snapshot.total())
            return shares if self.teacher.normalised else log_weights.exp() / (total or 1)
        if self.teacher.normalised:
            return normalise(log_weights)
        total = snapshot.total()
        if isinstance(total, Tensor):
            total = torch.where(total > 0, total, 1)
        return log_weights.exp() / total

    def log_mass(self, omega: Params, snapshot: Snapshot) -> float:
        """log sum w m of a batch, or log sum m where weights are not normalised."""
        log_weights, total = self._log_weights(omega, snapshot).double(), snapshot.total()
        if not self.teacher.normalised:
            return math.log(total) if total > 0 else NOTHING
        return float(log_weights.logsumexp(0))

    def losses(self, omega: Params, logits: Tensor, snapshot: Snapshot) -> Tensor:
        """l(z; omega), `(batch,)`, as a teacher shapes it that reads `snapshot`."""
        given, drawn = (logits, snapshot, self.loss), generator_states(logits.device)
        with uncompiled():
            shaped = self.taught.call(omega, given, function=self.teacher.sample_losses)
        if not same_states(drawn, generator_states(logits.device)):
            raise ConfigError(
                f"the loss that {type(self.teacher).__name__} shapes draws random numbers, which "
                "replays of it would draw anew: draw them in the student's forward"
            )
        refuse_shape(shaped, logits, snapshot.labels, len(snapshot.losses), "sample_losses")
        _refuse_without_gradient(shaped, logits, "sample_losses")
        return shaped.to(snapshot.losses.dtype)

    def value(
        self,
        omega: Params,
        snapshot: Snapshot,
        weights: Tensor | None = None,
        held: Snapshot | None = None,
    ) -> Tensor:
        """L without lambda R, a scalar.

        `weights` are those of `snapshot` if known already, `held` what a teacher reads that
        shapes the loss; it reads `snapshot` itself unless given.
        """
        used = self.weights(omega, snapshot) if weights is None else weights
        if not self.teacher.shapes_loss:
            return used @ snapshot.losses
        seen = (snapshot if held is None else held).detach() if self.held else snapshot
        return used @ self.losses(omega, snapshot.logits, seen)

    def replay(self, theta: Params, step: Step) -> Snapshot:
        """The recorded passes at `theta`: same batches, modes, buffers and random draws."""
        seen = step.snapshot
        parts = []
        for part in step.passes:
            with replayed(part.generators), self.student.in_modes(part.modes):
                outputs = self.student.functional(theta, part.buffers, part.inputs)
                parts.append(self.snapshot(outputs, part.labels, seen.clock))
        first, *others = parts
        snapshot = first.followed_by(*others) if others else first
        return replace(snapshot, index=seen.index, group=seen.group)

    def read_outside(self, theta: Params, step: Step) -> str | None:
        """A parameter of the module that a replay reads from elsewhere than what it is given."""
        with torch.enable_grad():
            losses = self.replay(self.gathered(theta), step).losses
        named = self.student.layout.parameters
        return leads_to(losses, {n: leaf for n, leaf in named.items() if leaf.requires_grad})

    def linearised(
        self, theta: Params, step: Step, omega: Params, *, first_order: bool = False
    ) -> Linearised:
        """g = grad_theta L at `theta`, with the graph for its derivatives unless first order."""
        theta = self.gathered(theta)
        theta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        with torch.enable_grad():
            with nullcontext() if first_order else TwiceDifferentiable():
                snapshot = self.replay(theta, step)
            return self.linearise(theta, snapshot, omega, step, first_order=first_order)

    def linearise(
        self,
        theta: Params,
        snapshot: Snapshot,
        omega: Params,
        step: Step,
        *,
        first_order: bool = False,
    ) -> Linearised:
        """As `linearised`, from a pass at hand whose graph begins at `theta`.

        Weights, and what the teacher reads, are those recorded in `step` where they are held.
        """
        leaf, respond, held = torch.zeros(0), None, step.snapshot
        if self.held:
            leaf = used = step.weights.detach().requires_grad_()
            value = self.value(omega, snapshot, used, held)
            respond = partial(self.teacher_gradient, omega, held, recorded=step)
        else:
            omega = {name: leaf.detach().requires_grad_() for name, leaf in omega.items()}
            value = self.value(omega, snapshot)
        if respond is not None and self.teacher.shapes_loss and not first_order:
            # A zero added to dL/dz: the derivative of <g, dv> with respect to it is J_z dv.
            logits = snapshot.logits
            leaf = torch.zeros_like(logits).requires_grad_()
            pull = gradients(value, {"z": logits}, create_graph=True)["z"]
            start, cotangent = logits, pull + leaf
        else:
            start, cotangent = value, None
        with derivatives_known():
            found = torch.autograd.grad(
                start,
                list(theta.values()),
                cotangent,
                create_graph=not first_order,
                allow_unused=True,
            )
        if not first_order and not self.uncut:
            refuse_cut(found)
            self.uncut = True
        pairs = list(zip(theta.items(), found, strict=True))
        gradient = {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}
        return Linearised(
            theta=theta,
            omega=omega,
            leaf=leaf,
            gradient=gradient,
            losses=snapshot.losses.detach(),
            logits=snapshot.logits.detach(),
            value=value.detach(),
            used=frozenset(name for (name, _), g in pairs if g is not None),
            respond=respond,
        )

    def directional(self, theta: Params, step: Step, direction: Params) -> tuple[Tensor, Tensor]:
        """(l, moved): losses `(batch,)`, and how a direction of theta moves the batch.

        That is the losses' derivative `(batch,)`, or the logits' where the teacher shapes
        the loss. First-order forward mode, both detached. Raises NotImplementedError where
        an operator has no forward rule; the caller then takes `linearised`.
        """
        theta, direction = self.gathered(theta), self.gathered(direction)
        shaped = self.teacher.shapes_loss

        def replayed_at(dual: Params) -> tuple[Tensor, ...]:
            snapshot = self.replay(dual, step)
            return (snapshot.losses, snapshot.logits) if shaped else (snapshot.losses,)

        found = forward_mode.along(replayed_at, theta, direction)
        losses, (values, moved) = found[0][0], found[-1]
        return losses, torch.zeros_like(values) if moved is None else moved

    def teacher_gradient(
        self, omega: Params, held: Snapshot, moved: Tensor, recorded: Step | None = None
    ) -> Params:
        """grad_omega of the derivative of L in a direction of theta.

        `held` is the batch as recorded at that step, `moved` what `directional` says of the
        direction. The student is not differentiated: only the small teacher is. The step
        that is `recorded` is noted where its weights have come out again.
        """
        omega = {name: leaf.detach().requires_grad_() for name, leaf in omega.items()}
        held = held.detach()
        with torch.enable_grad():
            log_weights = self._log_weights(omega, held)
            weights = self._shares(log_weights, held).to(held.losses.dtype)
            if recorded is not None and torch.equal(weights, recorded.weights):
                self.confirmed.append(recorded)
            if self.teacher.shapes_loss:
                logits = held.logits.detach().requires_grad_()
                value = weights @ self.losses(omega, logits, held)
                (pull,) = torch.autograd.grad(value, logits, create_graph=True)
                change = pull * moved
            else:
                change = weights * moved
            if self.summed is not None:
                terms = _terms(log_weights, change, omega)
                self.summed = tree_map(torch.add, self.summed, terms)
            return gradients(change.sum(), omega)


def _refuse_without_gradient(losses: Tensor, logits: Tensor, name: str) -> None:
    if logits.requires_grad and not losses.requires_grad:
        raise ConfigError(
            f"{name} returned values without a gradient: compute them from the logits by torch's "
            "own operations, without detach() or numpy"
        )


def _terms(log_weights: Tensor, change: Tensor, omega: Params) -> Params:
    """What the derivative of sum_k a_k, a = u m, is the small difference of, by entry.

    It is sum_k (a_k - u_k sum_j a_j) dlog w_k/domega. Where dlog w_k/domega is the same for all
    samples of a batch that is 0, but for the rounding of terms of this size.
    """
    size = change.detach().flatten(1).sum(1) if change.dim() > 1 else change.detach()
    size = size.abs().to(log_weights.dtype)
    return tree_map(torch.abs, gradients(log_weights, omega, size, retain_graph=True))
