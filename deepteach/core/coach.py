"""The Coach: taught training for a loop, an optimizer and a schedule of the user's own."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepteach.core.adjoint.base import AbstractAdjoint, MetaGradient, Window
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.distributed_batch import (
    BAD_WEIGHTS,
    Totals,
    bad_losses,
    prove_equal,
    refuse_empty,
    sum_gradients,
    totals,
)
from deepteach.core.double_backward import TwiceDifferentiable
from deepteach.core.gradient_audit import GradientAudit, attach, weakly
from deepteach.core.linearised import deliver
from deepteach.core.losses import (
    VALIDATION_LOSSES,
    SampleLoss,
    ValidationLoss,
    cross_entropy,
    effective_fraction,
    normalise,
)
from deepteach.core.microbatch import MicroBatched, MicroValidation
from deepteach.core.objective import Objective, Validation
from deepteach.core.optim import Clipped, Hyper, Rule, read_state, rule_for
from deepteach.core.record import Step, pack_step, unpack_step
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs, Outputs, Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.core.trusted_batches import TrustedBatches
from deepteach.distributed.collectives import PERIOD, Ranks, here, refuse_sharded, shown
from deepteach.errors import CollapseWarning, ConfigError, NumericError
from deepteach.rng import States, generator_states, replayed, same_states
from deepteach.tree import Params, all_finite, clone, norm

COLLAPSED_FRACTION = 0.02
"""Below this effective sample fraction a batch teaches (almost) nothing."""

LEAST_MIXED_TOLERANCE = 0.01
"""Half precision is off by more than the replays' usual tolerance."""


@dataclass(frozen=True)
class UpdateRecord:
    """One update of the teacher.

    `effective_sample_size` is the mean over the steps since the last update, as a fraction
    of the batch (1 = equal weights). `drift` is the relative distance of the recovered from
    the true start of the window, None where the adjoint does not measure it.
    """

    step: int
    validation_loss: float
    validation_accuracy: float | None
    gradient_norm: float
    effective_sample_size: float
    drift: float | None


class Coach:
    """Weights the student's loss by the teacher and teaches the teacher by meta-gradients.

    Call `loss(x, y).backward()`, step your optimizer, then `update(valid)`. Every `interval`
    steps the validation loss is differentiated through the last `window` optimizer steps.
    The student's buffers, the optimizer and the random generators are never changed behind
    your back.

    Args:
        student: the module and the layer whose internal state the teacher reads.
        optimizer: your own; its parameter groups and learning rates are read at each step.
        teacher: any `AbstractTeacher`; baselines are teachers too.
        interval: optimizer steps between updates of the teacher (K).
        window: steps that the meta-gradient looks back through (B <= K).
        adjoint: how the meta-gradient is computed; `Reversed()` unless given.
        teacher_optimizer: Adam with rate 1e-2 on the teacher unless given.
        through_weights: let gradients reach the student through the weights.
        loss: `(logits, y) -> (batch,)`; cross-entropy unless given.
        validation_loss: "nll", "expected_accuracy" or `(logits, y) -> scalar`.
        total_steps: length of the training, for features that read its progress.
        clip_norm: the norm to which you clip the gradients yourself, by
            `torch.nn.utils.clip_grad_norm_`, between backward() and step().
        rule: how the optimizer steps, for one that deepteach does not know.
        mixed_precision: allow `torch.autocast` and a GradScaler around the training step.
            Replays run without them, so the meta-gradient is that of the full-precision
            step: needs an adjoint that keeps states, with a tolerance for the difference:
            `Stored(tolerance=0.1)`.
        micro_batch: compute meta-gradients (replays, their derivatives, the validation
            gradient) this many samples at a time. Exact; for models whose batch does not
            fit in memory with its second-order graph.

    Under an initialised process group each rank passes its own part of every batch, and all
    of the trusted one. Gradients are summed at the end of `backward()`; `loss`, `update` and
    `meta_gradient` must be called by all ranks. See docs/distributed.md.

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
        validation_loss: str | ValidationLoss = "nll",
        total_steps: int | None = None,
        clip_norm: float | None = None,
        rule: Rule | None = None,
        mixed_precision: bool = False,
        micro_batch: int | None = None,
    ) -> None:
        if not 1 <= window <= interval:
            raise ConfigError(
                f"window must be between 1 and interval, got window={window}, "
                f"interval={interval}: lower the window or raise the interval"
            )
        if isinstance(validation_loss, str) and validation_loss not in VALIDATION_LOSSES:
            raise ConfigError(
                f"validation_loss must be one of {sorted(VALIDATION_LOSSES)} or a callable, "
                f"got {validation_loss!r}"
            )
        self.student, self.optimizer, self.teacher = student, optimizer, teacher
        self.interval, self.window = interval, window
        self.adjoint: AbstractAdjoint = adjoint or teacher.default_adjoint() or Reversed()
        self.micro_batch = micro_batch
        self.objective = (
            Objective(student, teacher, loss, through_weights)
            if micro_batch is None
            else MicroBatched(student, teacher, loss, through_weights, size=micro_batch)
        )
        self.objective.ranks = here()
        self.validation_loss: ValidationLoss = (
            VALIDATION_LOSSES[validation_loss]
            if isinstance(validation_loss, str)
            else validation_loss
        )
        self.rule = rule or rule_for(optimizer)
        if clip_norm is not None:
            self.rule = Clipped(self.rule, clip_norm)
        self.mixed_precision = mixed_precision
        self.clock = Clock(total=total_steps)
        self.last_record: UpdateRecord | None = None
        self.last_weights = torch.zeros(0)
        """`(batch,)` weights of the last step taken, as the loss used them."""
        self.last_totals: Totals | None = None
        """Figures of the last batch over all ranks; None where there is one rank."""
        self._compared = False
        taught = [leaf for leaf in teacher.parameters() if leaf.requires_grad]
        self._learns = bool(taught)
        if teacher_optimizer is None and taught:
            teacher_optimizer = torch.optim.Adam(taught, lr=1e-2)
        self.teacher_optimizer = teacher_optimizer
        self._steps: deque[Step] = deque(maxlen=window + self.adjoint.spare(window))
        self._pending: Step | None = None
        self._since_update = 0
        self._effective = torch.zeros(())
        self._trusted = TrustedBatches()
        changed = mixed_precision or clip_norm is not None
        self._audit = GradientAudit(scaled=mixed_precision, changed=changed)
        self._learn_names()
        self._check()
        attach(
            self,
            optimizer,
            self._parameters(),
            before=weakly(self._before_step),
            after=weakly(self._after_step),
            accumulate=weakly(self._after_accumulate),
        )

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.objective.ranks

    def _check(self) -> None:
        named = self._parameters()
        refuse_sharded(named)
        groups = list(self._hyper(named).values())
        if not named:
            raise ConfigError("the optimizer holds no trainable parameter of the student")
        if self.ranks.count > 1 and not self.teacher.per_sample:
            raise ConfigError(
                f"{type(self.teacher).__name__} weighs a sample by the others of its batch, which "
                f"are spread over {self.ranks.count} processes: use one process"
            )
        if self.mixed_precision and self.adjoint.undoes:
            raise ConfigError(
                "undoing steps needs the gradients that were used, which replays in full "
                "precision are not: use adjoint=Stored() with mixed_precision"
            )
        if self.micro_batch is not None and self.adjoint.same_kernels:
            raise ConfigError(
                "a gradient summed over micro_batch chunks has other bits than the training "
                "step's: use adjoint=Checkpointed() or Stored()"
            )
        if self.mixed_precision and self.adjoint.tolerance < LEAST_MIXED_TOLERANCE:
            raise ConfigError(
                "replays in full precision repeat a mixed_precision step only roughly: allow that "
                "with adjoint=Stored(tolerance=0.1)"
            )
        if len({leaf.device for leaf in named.values()}) > 1:
            raise ConfigError("the student's parameters must be on one device")
        if not self._learns:
            return  # no window is ever crossed
        self.adjoint.derived(self.objective)  # refuses what it cannot do
        for dtype in {leaf.dtype for leaf in named.values()}:
            self.adjoint.check(self.rule, groups, self.window, dtype)

    def _parameters(self) -> Params:
        """The student's parameters that the optimizer trains, by name."""
        named: Params = {}
        for group in self.optimizer.param_groups:
            for leaf in group["params"]:
                if id(leaf) not in self._names:
                    raise ConfigError(
                        "the optimizer holds a parameter that is not the student's "
                        f"(shape {tuple(leaf.shape)}): give it an optimizer of its own"
                    )
                if leaf.requires_grad:
                    named[self._names[id(leaf)]] = leaf
        return named

    def _learn_names(self) -> None:
        """Once a step: walking through a deep module takes as long as weighing a batch."""
        self._names = {id(leaf): name for name, leaf in self.student.module.named_parameters()}

    def _hyper(self, active: Params) -> dict[str, Hyper]:
        names = {id(leaf): name for name, leaf in active.items()}
        return {
            names[id(leaf)]: self.rule.hyper(group, self.optimizer.state.get(leaf, {}))
            for group in self.optimizer.param_groups
            for leaf in group["params"]
            if id(leaf) in names
        }

    @property
    def steps(self) -> int:
        """Taught optimizer steps so far."""
        return self.clock.step

    @property
    def omega(self) -> Params:
        """The teacher's parameters, by name, without a graph."""
        return {name: leaf.detach() for name, leaf in self.teacher.named_parameters()}

    def loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """sum(w l) / sum(w) of one pass, a scalar; remembers the batch for the window.

        On several ranks the value is that of the whole batch, and backward() sums. Without
        gradients (`torch.no_grad()`) nothing is remembered.

        Raises:
            NumericError: a loss is not finite; nothing was changed.
            ConfigError: a second call before `optimizer.step()`, or autocast.
        """
        recording = torch.is_grad_enabled()
        self._learn_names()
        if recording:
            self._refuse_unfinished(labels)
        if self.ranks.count > 1:
            self._begin_together(labels)
        buffers = self.student.buffers()
        drawn = generator_states(labels.device)
        theta = self._shared_theta() if recording else None
        outputs = self._pass(inputs, theta)
        drew = not same_states(drawn, generator_states(labels.device))
        if isinstance(self.objective, MicroBatched) and self._learns and recording:
            try:
                self.objective.refuse_ties(drew)
            except ConfigError:
                self.student.restore_buffers(buffers)
                raise
        with self._full_precision(labels.device):
            return self._weighted(inputs, labels, outputs, buffers, drawn if drew else None, theta)

    def _weighted(
        self,
        inputs: Inputs,
        labels: Tensor,
        outputs: Outputs,
        buffers: Params,
        drawn: States | None,
        theta: Params | None,
    ) -> Tensor:
        """The loss of a pass, remembered where gradients are recorded."""
        snapshot = self.objective.snapshot(outputs, labels, self.clock)
        # On several ranks all must know before any may stop: `_weigh` tells them.
        if self.ranks.count == 1 and not all_finite([snapshot.losses]):
            self.student.restore_buffers(buffers)
            raise NumericError(bad_losses(snapshot))
        if not torch.is_grad_enabled():
            value = self.ranks.add(self.objective.value(self.omega, snapshot), "scalars")
            if self.ranks.count > 1 and not all_finite([value]):
                raise NumericError("a loss is not finite: lower the learning rate")
            return value
        step = Step(
            inputs=inputs,
            labels=labels,
            snapshot=snapshot.detach(),
            weights=torch.zeros(0),
            value=torch.zeros(()),
            buffers=buffers,
            modes=self.student.modes(),
            generators=drawn,
        )
        try:
            self._weigh(step)
            if self.adjoint.before_step:
                self._teach_before(step)
                self._weigh(step)
        except NumericError:
            self.student.restore_buffers(buffers)
            raise
        # On several ranks, spare an exchange where the weights are those at hand.
        known = self.ranks.count > 1 and self.objective.linear
        weights = step.weights if known else self.objective.weights(self.omega, snapshot)
        state = read_state(self.optimizer, self._parameters(), self.rule)
        position = self._since_update - (self.interval - self.window) if self._steps else 0
        step.state = self.adjoint.keep(state, position, self.window)
        self._pending = step
        self._audit.clear()
        if theta is None:
            value = self.objective.value(self.omega, snapshot, weights)
        else:
            derived = self.adjoint.derived(self.objective)
            step.shared = derived.linearise(theta, snapshot, self.omega, weights)
            value = deliver(step.shared, self._parameters())
        if self.last_totals is not None:
            value = shown(value, self.last_totals.value)
        value.register_hook(weakly(self._before_backward))
        return value

    def _shared_theta(self) -> Params | None:
        """Copies of theta as leaves, where this pass is the one a sweep starts from.

        The last step of a window longer than one is differentiated twice. Doing so from the
        training pass's own graph saves the sweep a replay.
        """
        last = self._since_update == self.interval - 1 and len(self._steps) >= 1
        swept = last and self.window > 1 and self._learns
        chunked = self.micro_batch is not None
        if not swept or chunked or self.mixed_precision or not self.adjoint.shares:
            return None
        return {name: leaf.requires_grad_() for name, leaf in clone(self._parameters()).items()}

    def _pass(self, inputs: Inputs, theta: Params | None) -> Outputs:
        """The training pass: the module's own, or one whose graph begins at `theta`."""
        if theta is None and not self.adjoint.same_kernels:
            outputs = self.student(inputs)
            if not self.mixed_precision:
                return outputs
            dtype = next(iter(self._parameters().values())).dtype
            return Outputs(outputs.logits.to(dtype), outputs.internal.to(dtype))
        # The graph must keep buffers of its own: later passes move the module's in place.
        buffers = self.student.buffers()
        with nullcontext() if theta is None else TwiceDifferentiable():
            outputs = self.student.functional(theta or {}, buffers, inputs, update=True)
        self.student.restore_buffers(buffers)
        return outputs

    def _full_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Losses and weights are those of the replays, whatever the student's pass ran in."""
        return torch.autocast(device.type, enabled=False) if self.mixed_precision else nullcontext()

    def trust(self, valid: Iterable | tuple) -> None:
        """Name the trusted data without teaching: for `Lookahead`, before the first step.

        A lookahead teaches inside `loss` from the data that `update` was last given.
        """
        self._trusted.source = valid

    def update(self, valid: Iterable | tuple) -> UpdateRecord | None:
        """Teach the teacher if `interval` steps have passed since it was last taught.

        `valid` is `(x_valid, y_valid)` or an iterable of such batches (a DataLoader), which
        is read one batch per update, again and again.
        """
        self.trust(valid)
        if self.adjoint.before_step or self._since_update < self.interval:
            return None
        if not self._learns and not self.teacher.reads_trusted:
            self._since_update = 0
            return None
        return self._teach(list(self._steps))

    def meta_gradient(self, x_valid: Inputs, y_valid: Tensor) -> Params:
        """Gradient of the validation loss w.r.t. the teacher, by parameter name.

        Over the last `window` recorded steps (fewer where fewer were taken since the teacher
        last changed), at the student's present parameters. Changes nothing.
        """
        if not self._steps:
            raise ConfigError(
                "no step was recorded since the teacher last changed: call coach.loss(x, y)"
                ".backward() and optimizer.step() first"
            )
        return self._differentiate(list(self._steps), self._validation(x_valid, y_valid)).gradient

    def _validation(self, inputs: Inputs, labels: Tensor) -> Validation:
        kind = Validation if self.micro_batch is None else MicroValidation
        return kind(self.objective, self.validation_loss, inputs, labels)

    def weights(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """`(batch,)` non-negative weights that sum to the batch size; changes nothing."""
        return normalise(self.log_weights(inputs, labels)) * len(labels)

    def log_weights(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """`(batch,)` log raw weights, comparable across batches; changes nothing."""
        with torch.no_grad():
            return self.log_weights_of(self.teacher, self.look(inputs, labels))

    def log_weights_of(self, teacher: AbstractTeacher, snapshot: Snapshot) -> Tensor:
        """As `log_weights`, for a teacher and a snapshot at hand."""
        return torch.zeros_like(snapshot.losses) if teacher.shapes_loss else teacher(snapshot)

    @torch.no_grad()
    def look(self, inputs: Inputs, labels: Tensor) -> Snapshot:
        """A batch as the teacher sees it now, on cloned buffers."""
        with replayed(None):
            outputs = self.student.functional({}, self.student.buffers(), inputs)
        return self.objective.snapshot(outputs, labels, self.clock).detach()

    def _differentiate(self, steps: list[Step], validation: Validation) -> MetaGradient:
        omega = self.omega
        for step in steps:
            if step.hyper:
                self._check_unchanged(omega, step)
        final = read_state(self.optimizer, self._parameters(), self.rule)
        start = max(0, len(steps) - self.window)
        held = {n: self.optimizer.state.get(p, {}) for n, p in self._parameters().items()}
        window = Window(steps, final, self.objective, self.rule, omega, start, held)
        return self.adjoint.gradient(window, validation)

    def _check_unchanged(self, omega: Params, step: Step) -> None:
        """omega is constant inside a window, so the recorded weights must come out again."""
        again = self.objective.weights(omega, step.snapshot)
        value = self.objective.value(omega, step.snapshot, again)
        slack = 1e-4 if again.dtype != torch.float64 else 1e-10
        same = torch.allclose(again, step.weights, rtol=slack, atol=0.01 * slack)
        if not (same and torch.allclose(value, step.value, rtol=slack, atol=slack)):
            raise ConfigError(
                "the teacher changed after a step of the window was recorded, so that step no "
                "longer belongs to it: change the teacher right after coach.update only"
            )

    def _teach_before(self, step: Step) -> None:
        """The lookahead's update, on the batch about to be used."""
        if self._trusted.source is None or self._since_update % self.interval != 0:
            return
        step.hyper = self._hyper(self._parameters())
        self._teach([step])
        step.hyper = {}

    def _teach(self, steps: list[Step]) -> UpdateRecord:
        x_valid, y_valid = self._trusted.next()
        validation = self._validation(x_valid, y_valid)
        result = self._differentiate(steps, validation)
        if self.ranks.any(not all_finite(result.gradient.values())):
            raise NumericError(
                "the teacher's gradient is not finite; nothing was changed: lower the "
                "student's learning rate, or shorten the window"
            )
        if self.teacher_optimizer is not None:
            for name, leaf in self.teacher.named_parameters():
                if not leaf.requires_grad:
                    continue
                leaf.grad = result.gradient[name].to(leaf.dtype)
            self.teacher_optimizer.step()
            self.teacher_optimizer.zero_grad()
        accuracy = validation.accuracy()
        if accuracy is not None:
            best = max(self.clock.best_accuracy, accuracy)
            self.clock = replace(self.clock, best_accuracy=best)
        self.teacher.fit(validation.snapshot(self.clock))
        effective = float(self._effective) / max(self._since_update, 1)
        self.last_record = UpdateRecord(
            step=self.clock.step,
            validation_loss=validation.loss,
            validation_accuracy=accuracy,
            gradient_norm=norm(result.gradient),
            effective_sample_size=effective,
            drift=result.drift,
        )
        collapsed = self._since_update > 0 and effective < COLLAPSED_FRACTION
        self._restart_window()
        if collapsed:
            warnings.warn(
                f"the weights rest on {effective:.1%} of a batch: the teacher has collapsed; "
                "lower its learning rate, or give its optimizer a weight decay",
                CollapseWarning,
                stacklevel=3,
            )
        return self.last_record

    def _restart_window(self) -> None:
        self._effective = torch.zeros(())
        self._since_update = 0
        self._steps.clear()

    def _weigh(self, step: Step) -> None:
        """Record the weights and the loss of a step as the teacher gives them now."""
        step.weights = self.objective.weights(self.omega, step.snapshot).detach()
        step.value = self.objective.value(self.omega, step.snapshot, step.weights).detach()
        if self.ranks.count > 1:
            self.last_totals = totals(self.ranks, step)
        elif not all_finite([step.weights, step.value]):
            raise NumericError(BAD_WEIGHTS)

    def _begin_together(self, labels: Tensor) -> None:
        refuse_empty(labels)
        if not self._compared:
            self.prove_equal("at the start")
            self._compared = True

    def prove_equal(self, where: str) -> None:
        """Compare the bits of student and teacher over ranks. Raises NumericError."""
        prove_equal(self.ranks, self.student.module, self.teacher, where)

    def _refuse_unfinished(self, labels: Tensor) -> None:
        if self._pending is not None:
            raise ConfigError(
                "coach.loss was called twice without optimizer.step(): gradient accumulation "
                "is not supported; step once per batch, or call it under torch.no_grad()"
            )
        if torch.is_autocast_enabled(labels.device.type) and not self.mixed_precision:
            raise ConfigError(
                "autocast inside the window makes the meta-gradient inexact: run coach.loss "
                "outside torch.autocast, or accept that with Coach(mixed_precision=True)"
            )

    def _before_backward(self, scale: Tensor) -> None:
        with self._abandoning():
            self._audit.at_backward(scale, self._parameters())
        if self.ranks.count > 1:
            # When the last gradient has arrived, before backward() returns.
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(weakly(self._after_backward))

    def _after_backward(self) -> None:
        """Several ranks: from here on gradients and statistics are those of the whole batch."""
        if self._pending is None:
            return
        assert self.last_totals is not None
        reached = sum_gradients(
            self.ranks, self.student.module, self._parameters(), self._pending,
            self.last_totals.count,
        )  # fmt: skip
        for name, leaf in reached.items():
            self._audit.at_accumulation(name, leaf)

    def _after_accumulate(self, name: str, leaf: Tensor) -> None:
        self._audit.at_accumulation(name, leaf)

    def _before_step(self) -> None:
        if self._pending is None:
            return
        active = {n: p for n, p in self._parameters().items() if p.grad is not None}
        with self._abandoning():
            self._audit.at_step(active)
            self._pending.hyper = self._hyper(active)

    @contextmanager
    def _abandoning(self) -> Iterator[None]:
        """An error forgets the pending batch, so that the loop can go on with another."""
        try:
            yield
        except NumericError:
            if self._pending is not None:
                self.student.restore_buffers(self._pending.buffers)
            self._pending = None
            raise
        except ConfigError:
            self._pending = None
            raise

    def _after_step(self) -> None:
        step, self._pending = self._pending, None
        self._audit.clear()
        if step is None:
            # A step without coach.loss cannot be replayed: the window starts afresh.
            self._restart_window()
            return
        if not step.hyper:
            self._restart_window()
            raise ConfigError(
                "coach.loss was called inside optimizer.step(closure): call "
                "coach.loss(x, y).backward() before a plain optimizer.step()"
            )
        self._steps.append(step)
        self.last_weights = step.weights
        self._since_update += 1
        whole = self.last_totals
        effective = effective_fraction(step.weights) if whole is None else whole.effective
        self._effective = self._effective.to(step.weights) + effective.to(step.weights)
        seen = self.clock.step
        loss = float(step.snapshot.losses.mean()) if whole is None else whole.mean_loss
        mean = (self.clock.mean_loss * seen + loss) / (seen + 1)
        self.clock = replace(self.clock, step=seen + 1, mean_loss=mean)
        if self.clock.step % PERIOD == 0:
            self.prove_equal(f"after step {self.clock.step}")

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact resume needs besides the student and its optimizer.

        `steps` are those of this rank; the rest is equal on all ranks.
        """
        if self._pending is not None:
            raise ConfigError("save between optimizer.step() and the next coach.loss")
        return {
            "teacher": self.teacher.state_dict(),
            "teacher_optimizer": self.teacher_optimizer.state_dict()
            if self.teacher_optimizer
            else None,
            "clock": asdict(self.clock),
            "since_update": self._since_update,
            "effective": self._effective,
            "trusted": self._trusted.state_dict(),
            "steps": [pack_step(step) for step in self._steps],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.teacher.load_state_dict(state["teacher"])
        if self.teacher_optimizer is not None:
            self.teacher_optimizer.load_state_dict(state["teacher_optimizer"])
        self.clock = Clock(**state["clock"])
        self._since_update = state["since_update"]
        self._effective = state["effective"]
        self._trusted.load_state_dict(state["trusted"])
        steps = (unpack_step(item) for item in state["steps"])
        self._steps = deque(steps, self._steps.maxlen)
        self._pending = None
