"""The Coach: taught training for a loop, an optimizer and a schedule of the user's own.

Long, because the public contract is documented where it is kept: half of it is docstrings.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepteach.core.accumulation import refuse_accumulation
from deepteach.core.adjoint.base import AbstractAdjoint, MetaGradient
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.all_or_nothing import all_or_nothing
from deepteach.core.batches.distributed_batch import (
    prove_equal,
    refuse_bad_losses,
    refuse_batchwise,
    refuse_empty,
)
from deepteach.core.batches.nested import device_of_batch, moved, ordinary, size_of, without_graph
from deepteach.core.batches.numbered import widened
from deepteach.core.batches.trusted_batches import Trusted, TrustedBatches
from deepteach.core.checks.gradient_audit import GradientAudit
from deepteach.core.derivatives.linearised import deliver
from deepteach.core.derivatives.plain_kernels import as_written
from deepteach.core.given import object_of, positive, whole_number
from deepteach.core.ledger import Ledger, trust_of
from deepteach.core.look_back import LookBack
from deepteach.core.losses import (
    SampleLoss,
    ValidationLoss,
    counted,
    cross_entropy,
    normalise,
    refuse_log_weights,
    validation_loss_of,
)
from deepteach.core.microbatch import MicroBatched, MicroValidation
from deepteach.core.module_state import buffers_kept
from deepteach.core.objective import Objective
from deepteach.core.observation import Observations
from deepteach.core.optim import Clipped, Rule, rule_for, unwrapped
from deepteach.core.record import Pass, Step
from deepteach.core.recorder import Recorder
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs, Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.core.training_pass import TrainingPass
from deepteach.core.update import (
    ROUNDING,
    UNFITTED,
    UpdateRecord,
    descend,
    refuse_unable,
    warn_of_collapse,
)
from deepteach.core.validation import Validation
from deepteach.distributed.collectives import PERIOD, Ranks, here, shown
from deepteach.errors import ConfigError, DeepTeachError, NumericError, ReplayError
from deepteach.names import brief
from deepteach.rng import generator_states, same_states, untouched
from deepteach.tree import Params, all_finite, norm, zeros_like


class Coach:
    """Weights the student's loss by the teacher and teaches the teacher by meta-gradients.

    Call `loss(x, y).backward()`, step your optimizer, then `update(valid)`. Every `interval`
    steps the validation loss is differentiated through the last `window` optimizer steps.
    Buffers, optimizer and random generators are never changed behind your back.

    Args:
        student: the module and the layer whose internal state the teacher reads.
        optimizer: your own; its parameter groups and learning rates are read at each step.
        teacher: any `AbstractTeacher`; baselines are teachers too.
        interval: optimizer steps between updates of the teacher (K).
        window: steps that the meta-gradient looks back through (B <= K).
        adjoint: how the meta-gradient is computed, and how exactly; unless given,
            `Reversed(fallback=True)`.
        teacher_optimizer: Adam with rate 1e-2 on the teacher unless given.
        through_weights: let gradients reach the student through the weights.
        loss: `(logits, y) -> (batch,)`; cross-entropy unless given.
        validation_loss: "nll", "expected_accuracy", "smooth_error" or `(logits, y) -> scalar`;
            the mean of `loss` unless given.
        clip_norm: the norm to which you clip the gradients between backward() and step(), by
            `torch.nn.utils.clip_grad_norm_`; None or infinity where you do not.
        rule: how the optimizer steps, for one that deepteach does not know.
        total_steps: length of the training, for features that read its progress.
        accumulate: every `coach.loss(...).backward()` since the last step is a part of the next.
        ranks: the processes that train together; those of the initialised process group
            unless given.

    `ledger` keeps the mean weight of every sample that `loss` is given the `index` of.

    Under a process group each rank passes its part of every batch, and all of the trusted one;
    `loss`, `update` and `meta_gradient` are called by all ranks. See docs/distributed.md.

    Raises:
        ConfigError: anything that cannot be done exactly, with the remedy.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        teacher: AbstractTeacher,
        *,
        interval: int = 20,
        window: int = 2,
        adjoint: AbstractAdjoint | None = None,
        teacher_optimizer: torch.optim.Optimizer | None = None,
        through_weights: bool = False,
        loss: SampleLoss = cross_entropy,
        validation_loss: str | ValidationLoss | None = None,
        clip_norm: float | None = None,
        rule: Rule | None = None,
        total_steps: int | None = None,
        accumulate: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        student = object_of("student", student, Student, 'dt.Student(module, "layer")')
        teacher = object_of("teacher", teacher, AbstractTeacher, "dt.Teacher([dt.Loss()])")
        if adjoint is not None:
            adjoint = object_of("adjoint", adjoint, AbstractAdjoint, "dt.Stored()")
        interval, window = whole_number("interval", interval), whole_number("window", window, 0)
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, 0)
        if not 1 <= window <= interval:
            raise ConfigError(
                f"window must be between 1 and interval, got window={window}, "
                f"interval={interval}: lower the window or raise the interval"
            )
        if clip_norm is not None:
            clip_norm = positive("clip_norm", clip_norm, "give None where nothing is clipped")
            clip_norm = None if math.isinf(clip_norm) else clip_norm
        ranks = here() if ranks is None else ranks
        student.split(ranks)
        self.student, self.teacher = student, teacher
        self.optimizer = unwrapped(optimizer)
        self.interval, self.window = interval, window
        self.adjoint: AbstractAdjoint = (
            adjoint or teacher.default_adjoint() or Reversed(fallback=True)
        )
        self.validation_loss = validation_loss_of(validation_loss, loss)
        size = self.adjoint.micro_batch
        self.objective = (
            Objective(student, teacher, loss, through_weights, ranks=ranks)
            if size is None
            else MicroBatched(student, teacher, loss, through_weights, ranks=ranks, size=size)
        )
        known = rule or rule_for(self.optimizer)
        self.rule = known if clip_norm is None else Clipped(known, clip_norm)
        taught = [leaf for leaf in teacher.parameters() if leaf.requires_grad]
        self._learns = bool(taught)
        if teacher_optimizer is None and taught:
            teacher_optimizer = torch.optim.Adam(taught, lr=1e-2)
        refuse_unable(taught, teacher_optimizer)
        self.teacher_optimizer = teacher_optimizer
        self.last_record: UpdateRecord | None = None
        self._trusted = TrustedBatches()
        self._fitted = not (taught and teacher.reads_trusted)
        self._proved = False
        self.ledger = Ledger(teacher, ranks)
        mixed = self.adjoint.mixed_precision
        self.recorder = Recorder(
            student,
            self.optimizer,
            self.rule,
            GradientAudit(scaled=mixed, changed=mixed or clip_norm is not None),
            self.objective,
            length=window + self.adjoint.spare(window),
            clock=Clock(total=total_steps),
            ranks=ranks,
            observed=Observations(teacher, ranks, at_once=not taught),
            ledger=self.ledger,
            accumulates=accumulate,
            looks=self._learns and not self.adjoint.before_step,
            guarded=self._learns and self.adjoint.crosses,
            anchored=self.adjoint.anchored,
        )
        self._training_pass = TrainingPass(student, self.recorder, self.adjoint, self.objective)
        self._look_back = LookBack(self.objective, self.recorder, self.adjoint)
        self._check()

    def _check(self) -> None:
        named = self.recorder.parameters()
        refuse_batchwise(self.ranks, self.teacher)
        if len({leaf.device for leaf in named.values()}) > 1:
            raise ConfigError("the student's parameters must be on one device")
        own = next(iter(named.values())).device
        for leaf in (*self.teacher.parameters(), *self.teacher.buffers()):
            if leaf.device != own:
                raise ConfigError(
                    f"the teacher is on {leaf.device} and the student on {own}: call "
                    f"teacher.to({str(own)!r}) before the Coach is made"
                )
        if self.recorder.accumulates:
            refuse_accumulation(self.objective, self.adjoint)
        self._training_pass.refuse_graphs()
        hyper = list(self.recorder.hyper(named).values())
        if self._learns:  # else no window is ever crossed
            self._look_back.check(hyper, self.window, {leaf.dtype for leaf in named.values()})

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.objective.ranks

    @property
    def clock(self) -> Clock:
        """Where training stands."""
        return self.recorder.clock

    @property
    def steps(self) -> int:
        """Taught optimizer steps so far."""
        return self.clock.step

    @property
    def last_weights(self) -> Tensor:
        """`(batch,)` weights of the last step taken, as the loss used them."""
        return torch.zeros(0) if (s := self.recorder.last_step) is None else s.weights

    @property
    def last_loss(self) -> float:
        """sum(w l) / sum(w) of the last step taken, over all its parts; NaN before the first."""
        return math.nan if (s := self.recorder.last_step) is None else float(s.value)

    @property
    def last_trust(self) -> Tensor:
        """`(batch,)` what the samples of the last step are ranked by, mostly `last_weights`."""
        step = self.recorder.last_step
        if step is None:
            return self.last_weights
        return trust_of(self.teacher, step, self.recorder.totals)

    @property
    def omega(self) -> Params:
        """The teacher's parameters by name, detached."""
        return self.objective.omega

    @as_written
    def loss(
        self,
        inputs: Inputs,
        labels: Tensor,
        *,
        index: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """sum(w l) / sum(w) of one pass, a scalar; remembers the batch for the window.

        On several ranks the value is that of the whole batch, and backward() sums. Without
        gradients (`torch.no_grad()`) nothing is remembered.

        Args:
            inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
            labels: what the losses take.
            index: `(batch,)` int64, which samples these are, for `ledger` and for features that
                remember them.
            group: `(batch,)` int64, the source of each, for features that tell sources apart.

        Raises:
            NumericError: a loss is not finite; nothing was changed.
            ConfigError: gradients of an earlier call that were not stepped on, autocast, or an
                index that is not a whole number a sample.
            DataError: the batch holds no sample, or what `trust` was given is no trusted data.
        """
        labels = widened(labels)
        recording, device = torch.is_grad_enabled(), device_of_batch(labels)
        self.recorder.learn_names()
        if recording:
            self._fit_first()
            self.recorder.begin()
            if not self.adjoint.before_step:
                self.recorder.pass_on(self.interval)
            self._training_pass.refuse_autocast(device)
        if self.ranks.count > 1:
            refuse_empty(size_of(labels), self.ranks.count)
            if not self._proved:
                self.prove_equal("at the start")
                self._proved = True
        buffers = self.student.buffers()
        drawn = generator_states(device)
        shares = recording and self._learns and not self.recorder.accumulates
        theta = self._training_pass.shared_theta(self.interval, self.window) if shares else None
        try:
            watched = recording and self._learns
            outputs, theta = self._training_pass(inputs, theta, drawn, watched=watched)
            x, y = without_graph((inputs, labels))
            modes, half = self.student.modes(), self.student.under_autocast
            with self._training_pass.full_precision(device):
                snapshot = self.objective.snapshot(outputs, labels, self.clock, index, group)
                drew = not same_states(drawn, generator_states(device))
                seen = Pass(x, y, buffers, modes, drawn if drew else None, half)
                if isinstance(self.objective, MicroBatched) and watched:
                    self.objective.refuse_ties(drew)
                refuse_empty(len(snapshot.losses), self.ranks.count)
                if not recording:
                    return self._shown(snapshot)
                return self._recorded(seen, snapshot, theta)
        except BaseException:
            self.student.restore_buffers(buffers)
            raise

    def _shown(self, snapshot: Snapshot) -> Tensor:
        """The loss of a pass that is not remembered."""
        if self.ranks.count == 1:
            refuse_bad_losses(snapshot)
        value = self.ranks.add(self.objective.value(self.omega, snapshot), "scalars")
        if self.ranks.count > 1 and not all_finite([value]):
            raise NumericError("a loss is not finite: lower the learning rate")
        return value

    def _recorded(self, seen: Pass, snapshot: Snapshot, theta: Params | None) -> Tensor:
        """The loss of a pass, remembered until the optimizer steps."""
        recorder, omega = self.recorder, self.omega
        step, value = recorder.weighed(self.objective, omega, seen, snapshot)
        if self.adjoint.before_step and self._teach_before(step):
            omega = self.omega
            step, value = recorder.weighed(self.objective, omega, seen, snapshot)
        since = recorder.since_update if recorder.steps else self.interval - self.window
        position = since - (self.interval - self.window)
        if self.adjoint.keeps(position, self.window):
            step = replace(step, state=self.adjoint.keep(recorder.state(), position, self.window))
        graph = None
        if theta is not None:
            graph = self._training_pass.linearised(value, theta, snapshot, omega, step)
        if graph is not None:
            value = deliver(graph, recorder.parameters(), self.student.shards)
        if recorder.totals is not None:
            value = shown(value, recorder.totals.value)
        parts = recorder.accumulates
        log_mass = self.objective.log_mass(omega, step.snapshot) if parts else 0.0
        recorder.expect(step, value, graph, log_mass)
        return value

    @as_written
    def discard(self) -> None:
        """Drop the last batch: its pass is undone in the buffers, its gradients are cleared."""
        self.recorder.discard()
        self.optimizer.zero_grad()

    @as_written
    def trust(self, valid: Trusted) -> None:
        """Name the trusted data without teaching, before the first step.

        Features that read trusted samples (`TrustedProbe`) are then fitted before the first
        window; otherwise the first update fits them and does not step the teacher. A lookahead
        teaches inside `loss` from the data that `update` was last given.
        """
        self._trusted.source = valid

    def _fit_first(self) -> None:
        """Features see trusted samples before the first window that the teacher learns from."""
        seen = self.recorder.pending or self.recorder.steps or self.recorder.since_update
        if not (seen or self._fitted or self._trusted.source is None):
            kept = all_or_nothing(self.teacher, None, self.recorder, self._trusted)
            with self._training_pass.looking_back(), kept:
                validation = self._validation(*self._trusted.next())
                validation.gradient(self.recorder.state().theta)
                self.teacher.fit(validation.snapshot(self.clock))
            self._fitted = True

    @as_written
    def update(self, valid: Trusted) -> UpdateRecord | None:
        """Teach the teacher if `interval` steps have passed since it was last taught.

        Args:
            valid: `(x_valid, y_valid)`, or an iterable of such batches (a DataLoader), which is
                read one batch per update, again and again, or a function without arguments that
                returns one, called where an update is due. `x_valid` is what `loss` takes as
                inputs, of any number of samples; `y_valid` what the validation loss takes, for
                classes `(samples,)` int64.

        Raises:
            NumericError: the validation loss or the teacher's gradient is not finite, or ranks
                differ; as ReplayError, a recorded step could not be replayed. Nothing was changed.
            ConfigError: something found since the Coach was made cannot be done exactly.
            DataError: `valid` is no trusted data, or has no batch left.
        """
        self.trust(valid)
        self._training_pass.refuse_inference()
        self.recorder.expect_updates(self.interval)
        if self.recorder.since_update and self.steps % PERIOD == 0:
            self.prove_equal(f"after step {self.steps}")
        if self.adjoint.before_step or self.recorder.since_update < self.interval:
            return None
        if not self._learns and not self.teacher.reads_trusted:
            self.recorder.since_update = 0
            return None
        steps = self.recorder.recorded()
        if not steps:
            return self.recorder.standstill.postpone()
        self.recorder.standstill.tell(len(steps), self.window)
        with self._training_pass.looking_back():
            return self._teach(steps)

    @as_written
    def meta_gradient(
        self,
        x_valid: Inputs,
        y_valid: Tensor,
        *,
        window: int | None = None,
        adjoint: AbstractAdjoint | None = None,
    ) -> Params:
        """Gradient of the validation loss w.r.t. the teacher, by parameter name.

        Over the last `window` recorded steps (fewer where fewer were taken since the teacher
        last changed, or something else than a step moved the student), at the student's present
        parameters. Changes nothing. A shorter window, or another adjoint that reads what this
        coach's keeps, may be given.

        Args:
            x_valid: a trusted batch as `loss` takes inputs, of any number of samples.
            y_valid: what the validation loss takes, for classes `(samples,)` int64.
            window: the coach's unless given.
            adjoint: the coach's unless given.

        Raises:
            NumericError: the validation loss, its gradient or that of the teacher is not finite;
                as ReplayError, no step leads to where the student is, or one could not be replayed.
            ConfigError: no step was recorded, or this cannot be done exactly.
        """
        if adjoint is not None and adjoint.crosses and not self.adjoint.crosses:
            raise ConfigError(
                f"{type(self.adjoint).__name__} watches no path of several steps that "
                f"{type(adjoint).__name__} could go back: make the Coach with that adjoint"
            )
        looking_back = self._training_pass.looking_back()
        steps = self.recorder.recorded()
        if not steps:
            self.recorder.standstill.refuse_none()
        validation = self._validation(x_valid, y_valid)
        size = self.window if window is None else window
        self.recorder.standstill.tell(len(steps), size)
        with looking_back, untouched():
            found = self._look_back(steps, validation, size, adjoint)
        if found.skipped:
            raise ReplayError(found.skipped)
        self._refuse_not_finite(found)
        return found.gradient

    def _refuse_not_finite(self, found: MetaGradient) -> None:
        if self.ranks.any(not all_finite(found.gradient.values())):
            raise NumericError(
                "the teacher's gradient is not finite; nothing was changed: lower the student's "
                "learning rate, shorten the window, or keep operations away from where they have "
                "no second derivative (a root, power or sinc of exactly 0)"
            )

    def _validation(self, inputs: Inputs, labels: Tensor) -> Validation:
        inputs, labels = ordinary((inputs, widened(labels)))
        kind = Validation if self.adjoint.micro_batch is None else MicroValidation
        return kind(self.objective, self.validation_loss, inputs, labels)

    @as_written
    def weights(
        self,
        inputs: Inputs,
        labels: Tensor,
        *,
        index: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`(batch,)` non-negative weights that sum to the batch size; changes nothing.

        Of a teacher that distrusts a label otherwise than by its sample's weight, its trust.
        Arguments as in `loss`.

        Raises:
            ConfigError: losses, the index, the group or the teacher's answer are not one number a
                sample.
        """
        seen = self.look(inputs, labels, index=index, group=group)
        with torch.no_grad(), untouched(), buffers_kept(self.teacher):
            trust = self.teacher.log_trust(seen)
            refuse_log_weights(trust, self.teacher, len(seen.losses))
            trust = counted(trust, seen.ignored())
        return normalise(trust) * len(trust)

    @as_written
    @torch.no_grad()
    def look(
        self,
        inputs: Inputs,
        labels: Tensor,
        *,
        index: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Snapshot:
        """A batch as the teacher sees it now, on cloned buffers; arguments as in `loss`.

        Raises:
            ConfigError: losses, the index or the group are not one number a sample.
        """
        with untouched():
            theta, buffers = self.student.trained(), self.student.buffers()
            outputs = self.student.functional(theta, buffers, inputs)
            found = self.objective.snapshot(outputs, widened(labels), self.clock, index, group)
        return found.detach()

    def _teach_before(self, step: Step) -> bool:
        """The lookahead's update, on the batch about to be used, where one is due."""
        if self._trusted.source is None or self.recorder.since_update % self.interval != 0:
            return False
        hyper = self.recorder.hyper(self.recorder.parameters())
        with self._training_pass.looking_back():
            self._teach([replace(step, hyper=hyper)])
        return True

    def _teach(self, steps: list[Step]) -> UpdateRecord:
        with all_or_nothing(self.teacher, self.teacher_optimizer, self.recorder, self._trusted):
            x_valid, y_valid = self._trusted.next()
            validation = self._validation(x_valid, y_valid)
            if self._fitted:
                result = self._look_back(steps, validation, self.window)
            else:
                validation.gradient(self.recorder.state().theta)
                result = MetaGradient(zeros_like(self.omega), None, skipped=UNFITTED)
            self._refuse_not_finite(result)
            size, skipped = norm(result.gradient), result.skipped
            if skipped is None and self._learns and size == 0:
                skipped = ROUNDING
            if skipped is None:
                descend(self.teacher, self.teacher_optimizer, result.gradient)
            accuracy = validation.accuracy()
            self.recorder.clock = self.clock.measured(accuracy)
            self.recorder.observed.deliver()  # the window is crossed; what is fitted may read them
            if self.teacher.reads_trusted:
                self.teacher.fit(validation.snapshot(self.clock))
            effective, taken = self.recorder.effective(), self.recorder.since_update
            record = UpdateRecord(
                step=self.clock.step,
                validation_loss=validation.loss,
                validation_accuracy=accuracy,
                gradient_norm=size,
                effective_sample_size=effective,
                drift=result.drift,
                skipped=skipped,
            )
            self.recorder.restart()
            warn_of_collapse(effective, taken)
            self.adjoint.learn(result)
        self._fitted, self.last_record = True, record
        return record

    def prove_equal(self, where: str) -> None:
        """Compare the bits of student and teacher over ranks. Raises NumericError."""
        prove_equal(self.ranks, self.student.module, self.teacher, where)

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact resume needs besides the student and its optimizer.

        `steps` are those of this rank; the rest is equal on all ranks.
        """
        optimizer = self.teacher_optimizer
        return {
            "teacher": self.teacher.state_dict(),
            "teacher_optimizer": None if optimizer is None else optimizer.state_dict(),
            "trusted": self._trusted.state_dict(),
            "adjoint": self.adjoint.state_dict(),
            "fitted": self._fitted,
            **self.ledger.state_dict(),
            **self.recorder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; load the student and its optimizer first.

        What was saved, on whatever device, goes to where the student is. Raises ConfigError, or
        DataError where it is of another number of ranks.
        """
        state = moved(state, next(iter(self.recorder.parameters().values())).device)
        try:
            self.teacher.load_state_dict(state["teacher"])
            if self.teacher_optimizer is not None:
                self.teacher_optimizer.load_state_dict(state["teacher_optimizer"])
            self._trusted.load_state_dict(state["trusted"])
            self.adjoint.load_state_dict(state.get("adjoint", {}))
            self._fitted = state.get("fitted", True)
            self.ledger.load_state_dict(state)
            self.recorder.load_state_dict(state)
        except DeepTeachError:  # some are ValueErrors, too, and have a remedy of their own
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"this is no state of a Coach with this teacher ({brief(error)}): load what "
                "state_dict() of one made alike gave"
            ) from error
