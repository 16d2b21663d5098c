"""What is remembered beside the Coach: hooks turn each batch that was stepped on into a Step.

`expect` says what the pass of `coach.loss` saw. When the optimizer has stepped, the record is
complete and joins the window; nobody changes it afterwards.

Long, because all hooks around one step share what is known of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.accumulation import Accumulation
from deepteach.core.batches.distributed_batch import (
    BAD_WEIGHTS,
    Totals,
    refuse_bad_losses,
    refuse_bad_masses,
    sum_gradients,
    totals,
)
from deepteach.core.checks.bystanders import Bystanders
from deepteach.core.checks.gradient_audit import GradientAudit, attach, has_gradient, weakly
from deepteach.core.checks.standstill import MOVED, NOT_ASKED, NOT_TAUGHT, REBUILT, Standstill
from deepteach.core.checks.step_examination import StepExamination
from deepteach.core.checks.trained import Trained
from deepteach.core.closures import closure_of, with_closure
from deepteach.core.derivatives.linearised import Linearised
from deepteach.core.graph_memory import HeldGraphs
from deepteach.core.layout import is_whole
from deepteach.core.ledger import Ledger
from deepteach.core.module_state import buffers_kept
from deepteach.core.objective import Objective
from deepteach.core.observation import Observations
from deepteach.core.optim import Rule
from deepteach.core.record import Pass, Step, pack_step, unpack_step
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Student
from deepteach.core.tally import Tally
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, NumericError
from deepteach.tree import Params, all_finite, finite_sum, norms


class Recorder(Trained):
    """The last steps of an optimizer, and the batch that it is about to step on.

    Args:
        student: whose parameters the optimizer trains.
        optimizer: gets hooks around `step`, which vanish with this object.
        rule: how it steps.
        audit: watches the gradients between `backward()` and `step()`.
        objective: gives a pending step's pass and gradient once more.
        length: steps to remember.
        clock: where training stands.
        ranks: the processes that train together.
        observed: shows the teacher what was trained on.
        ledger: is told the weights of what was trained on.
        accumulates: several batches may make one step.
        looks: steps are looked at whether they are what was recorded.
        guarded, anchored: see `Standstill`.

    Raises:
        ConfigError: the optimizer holds parameters that are not the student's, or none.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        rule: Rule,
        audit: GradientAudit,
        objective: Objective,
        *,
        length: int,
        clock: Clock,
        ranks: Ranks,
        observed: Observations,
        ledger: Ledger,
        accumulates: bool = False,
        looks: bool = True,
        guarded: bool = True,
        anchored: bool = False,
    ) -> None:
        self._attached = True  # that is, below
        super().__init__(student, optimizer, rule)
        self.observed, self._ledger = observed, ledger
        self.ranks, self.clock, self.accumulates = ranks, clock, accumulates
        self.steps: deque[Step] = deque(maxlen=length)
        self._unseen: int | None = None
        self.pending: Step | None = None
        """The batch of the last `coach.loss`, until the optimizer steps."""
        self.totals: Totals | None = None
        """Figures of that batch over all ranks; None where there is one rank."""
        self.since_update = 0
        self.last_step: Step | None = None
        self.graphs = HeldGraphs()
        self.standstill = Standstill(self, guarded=guarded, anchored=anchored)
        self._bystanders = Bystanders(self, objective, guarded=guarded)
        self._accumulation, self._log_mass = Accumulation(), 0.0
        self._batch, self._passed_back, self._skipped = 0, False, False
        self._layers: tuple[nn.Module, ...] | None = None
        """Those of the student when its last pass that was trained on had been made."""
        self._tally = Tally()
        self._audit, self._objective = audit, objective
        self._looks = looks and not audit.scaled
        self._examination = StepExamination(optimizer, rule, clips=audit.changed)
        self.refuse_strangers()
        self._attach()

    def _attach(self) -> None:
        self._attached = True
        self._arrange = attach(
            self,
            self.optimizer,
            before=weakly(self._before_step),
            after=weakly(self._after_step),
            accumulate=weakly(self._arrived),
            hooks=self._audit.hooks,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Of copies and pickles, which get hooks of their own."""
        self._rest()
        self.standstill.measure()
        kept = {name: value for name, value in vars(self).items() if name != "_arrange"}
        none = {"_layout": None, "_layers": None, "pending": None}
        return {**kept, **none, "_accumulation": Accumulation()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # A module that holds its coach is still empty while that is copied.
        self._attached = False
        if is_whole(self.student.module):
            self.learn_names()
            self.standstill.mark()

    def learn_names(self) -> None:
        super().learn_names()
        if not self._attached:
            self._attach()
            self.standstill.compare()

    def begin(self) -> None:
        """Make room for a new batch: one whose loss was dropped is forgotten.

        Raises:
            ConfigError: its gradients are still there, and would be added to.
        """
        self.settle()
        if not self._left():
            self._accumulation.clear()
        elif self.pending is not None and self._passed_back:
            if not self.accumulates:
                raise ConfigError(
                    "the gradients of the last coach.loss were not stepped on: call "
                    "optimizer.step() once per batch, drop that batch by optimizer.zero_grad() or "
                    "coach.discard(), or add them up on purpose with Coach(accumulate=True)"
                )
            self._accumulation.add(self.pending, self._log_mass)
            self._refuse_rebuilt()
        self.pending = self.graphs.pending = None
        if not self._accumulation.parts:
            self._audit.clear()

    @property
    def _unfinished(self) -> bool:
        return self.pending is not None or bool(self._accumulation.parts)

    def _left(self) -> bool:
        """Whether gradients of the pending batch, or of parts before it, may be there."""
        return self._unfinished and any(map(has_gradient, self.parameters().values()))

    def weighed(
        self, objective: Objective, omega: Params, seen: Pass, snapshot: Snapshot
    ) -> tuple[Step, Tensor]:
        """The step about to be taken, as the teacher weighs it now, and its L with its graph.

        On all ranks together.

        Raises:
            NumericError: losses or weights are not finite, on any rank.
        """
        held = snapshot.detach()
        one = self.ranks.count == 1
        # On several ranks all must know before any may stop: `totals` tells them.
        known = held.losses if held.mass is None else held.losses + held.mass.sqrt()  # NaN below 0
        if one and not finite_sum(known):
            refuse_bad_losses(held)
            refuse_bad_masses(held)
        weights = objective.weights(omega, snapshot)
        value = objective.value(omega, snapshot, weights, held)
        plain = weights.detach() if weights.requires_grad else weights
        if seen.labels is not snapshot.labels:  # a net made them
            held = replace(held, labels=seen.labels)
        step = Step((seen,), held, plain, value.detach(), {}, None)
        if not one:
            self.totals = totals(self.ranks, step)
        # What is not finite among the weights is so in the sum that they make.
        elif not finite_sum(step.value) and not all_finite([step.weights, step.value]):
            raise NumericError(BAD_WEIGHTS)
        return step, value

    def expect(
        self, step: Step, value: Tensor, graph: Linearised | None, log_mass: float = 0.0
    ) -> None:
        """The optimizer is about to step on this batch, after `value.backward()`.

        `log_mass` is that of the objective, where it is a part of the step.
        """
        self.pending, self.graphs.pending, self._log_mass = step, graph, log_mass
        self._layers = self.student.layers  # their modes were asked for after that pass
        self._passed_back = False
        if not self._accumulation.parts:
            self._audit.clear()
        self._batch += 1
        self._objective.leave()
        self._bystanders.passed(begins=not self._accumulation.parts, counts=self._counts(1))
        self._arrange(self.parameters())
        value.register_hook(partial(weakly(self._before_backward), self._batch))

    def discard(self) -> None:
        """Forget the pending batch, and undo what its pass did to the student's buffers."""
        first = self._accumulation.parts[0] if self._accumulation.parts else self.pending
        if first is not None:
            self.student.restore_buffers(first.passes[0].buffers)
            self._bystanders.passed(begins=True, counts=self._counts(1))
        self._forget()

    def restart(self) -> None:
        """Begin a new window: the steps so far belong to a teacher that has changed."""
        self._tally.total = torch.zeros(())
        self.since_update = 0
        self.standstill.begin()
        self._drop()

    def _drop(self) -> None:
        self.graphs.drop()
        self.steps.clear()
        self.observed.deliver()

    def pass_on(self, interval: int) -> None:
        """Where no update was asked for when one was due, what the teacher observes goes to it.

        Else it would wait, and take memory, until one is.
        """
        due = self.since_update >= interval and self.since_update % interval == 0
        if due and self.observed.waiting:
            self._cut(NOT_ASKED)

    def standing(self) -> tuple:
        """What an update changes here, for `stand`."""
        waiting = list(self.observed.waiting)
        return self.clock, self.since_update, self._tally.total, list(self.steps), waiting

    def stand(self, standing: tuple) -> None:
        """Where `standing` was taken; graphs, which may be used up, are let go."""
        self.clock, self.since_update, total, steps, self.observed.waiting = standing
        self._tally.total = total
        self.steps = deque(steps, self.steps.maxlen)
        self.graphs.drop()

    def effective(self) -> float:
        """Mean effective sample size since the window began, as a fraction of the batch."""
        return float(self._tally.total) / max(self.since_update, 1)

    def _rebuilt(self) -> bool:
        """Whether the student has other layers now than the recorded passes ran through."""
        now = self.student.layers
        if self._layers is not None:
            return self._layers != now
        return any(len(step.passes[-1].modes) != len(now) for step in self.steps)

    def _refuse_rebuilt(self) -> None:
        self.learn_names()
        if self._rebuilt():
            raise ConfigError(
                "layers of the student were added, removed or replaced between coach.loss and "
                "optimizer.step(): do that before coach.loss"
            )

    def _again(self, step: Step) -> Linearised:
        self._refuse_rebuilt()
        theta, objective = self.parameters(), self._objective
        with buffers_kept(objective.teacher):
            found = objective.linearised(theta, step, objective.omega, first_order=True)
        return replace(found, gradient=objective.total(found.gradient, "replays"))

    def _arrived(self, leaf: Tensor) -> None:
        name = self._names.get(id(leaf))
        if self.pending is not None and name is not None and leaf.grad is not None:
            # A second gradient that is not added to the first: those of this batch were cleared.
            self._passed_back &= not self._audit.at_accumulation(name, leaf)

    def _before_backward(self, batch: int, scale: Tensor) -> Tensor | None:
        if batch != self._batch or self.pending is None:
            raise ConfigError(
                "backward() of a loss that is not of the last coach.loss: call backward() and "
                "optimizer.step() before the next batch"
            )
        named, self._passed_back = self.parameters(), True
        if self.accumulates:
            return self._audit.at_part(
                scale, self._accumulation.make_room(self._log_mass, named), named
            )
        try:
            self._audit.at_backward(scale, named)
        except (NumericError, ConfigError) as error:
            self._abandon(error)
            raise
        if self.ranks.count > 1:
            # When the last gradient has arrived, before backward() returns.
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(weakly(self._after_backward))
        return None

    def _after_backward(self) -> None:
        """Several ranks: from here on gradients and statistics are those of the whole batch."""
        if self.pending is None:
            return
        assert self.totals is not None
        seen = self.pending.passes[0]
        reached = sum_gradients(
            self.ranks,
            self.student.module,
            self.parameters(),
            seen.buffers,
            share=len(self.pending.weights) / self.totals.count,
        )
        self._bystanders.passed(begins=False, counts=self._counts(1))
        for name, leaf in reached.items():
            self._audit.at_accumulation(name, leaf)

    def _before_step(self, _optimizer: Any, args: tuple, kwargs: dict) -> Any:
        """Complete the record; a closure is called here, for the step must know its batch."""
        if self.pending is None:
            self.settle()
        self._examination.forget()
        self._skipped = self._audit.overflowed(self.optimizer)
        if self._skipped:
            self._forget()
            return None
        given, closure = None, closure_of(args, kwargs)
        if closure is not None:
            with torch.enable_grad():
                value = closure()
            given = with_closure(args, kwargs, lambda: value)
        if self.pending is not None and not self._passed_back:
            # Its loss was dropped: what is stepped on is the parts before it, or something else.
            self.pending, self._log_mass = self._accumulation.last()
            self.graphs.pending = None
        if self.pending is None:
            return given
        named = self.parameters()
        active = {n: p for n, p in named.items() if p.grad is not None}
        try:
            self.pending = self._accumulation.whole(self.pending, self._log_mass, self._objective)
            self._accumulation.clear()
            self._complete(self.pending, named, active)
        except (NumericError, ConfigError) as error:
            self._abandon(error)
            raise
        return given

    def _complete(self, pending: Step, named: Params, active: Params) -> None:
        self._audit.at_step(active, lambda: self._again(pending).gradient)
        self.standstill.refuse_written()
        hyper, used = self.hyper(active), None
        if self._looks and not self.rule.linear:
            used = norms([leaf.grad for n in hyper if (leaf := active[n]).grad is not None])
        taken = self.pending = pending.taken(hyper, used)
        if self._looks and self._examination.due(named, self.clock.step + 1):
            again = self._again(taken)
            outside = partial(self._read_outside, taken)
            self._examination.before(taken, named, self.state(), again, self.ranks, outside)

    def _read_outside(self, step: Step) -> str | None:
        return self._objective.read_outside(self.student.trained(), step)

    def settle(self) -> None:
        """What happened since the newest step: was the student moved, was the step a wrong one?"""
        if self.standstill.left(self.steps):
            self._examination.forget()
            self._cut(MOVED)
        if self.steps and self._rebuilt():
            self._examination.forget()
            self._cut(REBUILT)
        self._bystanders.look(self.steps, counts=self._counts(1))
        if not self._examination.open:
            return
        wrong = self._examination.verdict(self.state(), self.held())
        if self.ranks.any(wrong is not None) and self.steps:
            self.steps[-1] = replace(self.steps[-1], wrong=wrong or "another rank tells")

    def _counts(self, more: int = 0) -> bool:
        """Whether a window may look back over the step that `more` steps from now are taken."""
        return self._unseen is None or self.since_update + more > self._unseen

    def expect_updates(self, interval: int) -> None:
        """Windows end at every `interval`-th step: no other one is looked back over."""
        self._unseen = interval - (self.steps.maxlen or 0)

    def recorded(self) -> list[Step]:
        """The steps since the teacher last changed, oldest first."""
        self.learn_names()
        if self._unseen is not None and self.since_update <= self._unseen:
            self.standstill.look_always()  # it is asked for between updates, and may be again
        self.settle()
        kept = self.standstill.sift(self.steps)
        if len(kept) < len(self.steps):
            self._cut(MOVED, keep=kept)
            self.graphs.keep(kept)
        kept, cause = self._bystanders.sift(kept)
        if cause is not None:
            kept = self.standstill.begun(kept)
            self._cut(cause, keep=kept)
            self.graphs.keep(kept)
        self.steps = deque(kept, self.steps.maxlen)
        return kept

    def _cut(self, cause: str, *, keep: Sequence[Step] = ()) -> None:
        """Steps do not lead to where the student is, but for the last ones."""
        if self.steps:
            self.standstill.cut(cause)
        if not keep:
            self._drop()

    def _abandon(self, error: Exception) -> None:
        """An error forgets the pending batch, so that the loop can go on with another."""
        if isinstance(error, NumericError):
            self.discard()
        else:
            self._forget()

    def _forget(self) -> None:
        self.pending = self.graphs.pending = None
        self._accumulation.clear()
        self._audit.clear()

    def _after_step(self) -> None:
        if self._skipped:
            return
        step, self.pending = self.pending, None
        self.graphs.stepped(step)
        self._audit.clear()
        self._bystanders.look(self.steps, counts=self._counts(1))
        if step is None:
            self._cut(NOT_TAUGHT)
            return
        step = self._bystanders.stepped(step)
        self.steps.append(step)
        self._examination.after()
        self.last_step = step
        self.since_update += 1
        whole = self.totals
        count = len(step.weights) if whole is None else whole.count
        self.observed.add(step.snapshot, count)
        self._ledger.note(step, whole)
        if whole is None:
            mean = self._tally.add(step.snapshot.unmassed(step.weights), step.snapshot)
        else:
            mean = self._tally.add_known(whole.mean_loss, whole.effective, step.weights)
        self.clock = self.clock.stepped(mean)
        self.standstill.mark(counts=self._counts())

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact resume needs. `steps` are those of this rank.

        Graphs, which no file holds, are let go: a replay may differ from them by a rounding, and
        what goes on from here must do what goes on from the file.
        """
        self._rest()
        return {
            "clock": asdict(self.clock),
            "since_update": self.since_update,
            "effective": self._tally.total,
            "steps": [pack_step(step) for step in self.steps],
            "observed": self.observed.state_dict(),
        }

    def _rest(self) -> None:
        waits = self._accumulation.parts or (self.pending is not None and self._passed_back)
        if waits and self._left():
            raise ConfigError(
                "gradients of coach.loss wait for a step: copy or save between optimizer.step() "
                "and the next coach.loss, or drop that batch before by coach.discard()"
            )
        self.graphs.drop()
        self._tally.read()
        self.recorded()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.clock = Clock(**state["clock"])
        self.since_update = state["since_update"]
        self._tally.start(self.clock.mean_loss, self.clock.step)
        self._tally.total = state["effective"]
        self.observed.load_state_dict(state.get("observed", ()))
        self.learn_names()
        kinds = {name: type(h) for name, h in self.hyper(self.parameters()).items()}
        kept = self.student.shards.kept
        steps = (unpack_step(item, kinds, kept) for item in state["steps"])
        self.steps = deque(steps, self.steps.maxlen)
        self._forget()
        self._layers = None
        self._examination.forget()
        self.standstill.forget()
        self._bystanders.forget()
