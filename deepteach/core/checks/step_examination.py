"""Does a step follow from its recorded batch, as the rule says? Looked at now and then.

The batch's gradient is computed once more, as replays compute it, and the step is taken again
from a copy of the state before it. What reaches a gradient, a parameter or a slot otherwise (a
hook of a parameter or of the optimizer, a second loss, a projection) makes them differ. It is
done at the first step, whenever hooks came or went, and ever more rarely in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepteach.core.checks.examination import looks_again
from deepteach.core.derivatives.linearised import Linearised
from deepteach.core.optim import Clipped, Hyper, Rule, State
from deepteach.core.record import Step
from deepteach.distributed.collectives import Ranks
from deepteach.tree import Params, clone, norm, repeat_slack, tree_map

STEPPED_OTHERWISE = (
    "the student's optimizer did not step as its rule does on the gradient of coach.loss (off by "
    "{error:.1e} of the {what}): something besides changed it ({others}a hook of a parameter or of "
    "the optimizer, a second loss, parameters written outside optimizer.step()); remove it"
)
CLIPPED_OTHERWISE = (
    "clipping otherwise than to the norm clip_norm={norm:g} of all that the optimizer trains, as "
    "of a part or by another norm, "
)

NOT_REPEATED = (
    "a repeated pass gave slightly other losses and a {what} that is off by {error:.1e}: the "
    "student is not deterministic (randomness outside torch's generators?), or was changed after "
    "its pass (a rate of dropout, a temperature)"
)

READ_OUTSIDE = (
    "the loss or the forward reads {name!r}, or what follows from it, otherwise than as a part of "
    "the student in its pass (an attribute that forward sets, model.parameters() in the loss, a "
    "list or closure that holds it), which replays do not repeat: return that term with the "
    "logits, as a column of them"
)


class StepExamination:
    """Of one optimizer.

    Args:
        optimizer: whose steps are looked at.
        rule: how it steps.
        clips: what changes the gradients is a part of the rule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rule: Rule, *, clips: bool) -> None:
        self._optimizer, self._rule, self._clips = optimizer, rule, clips
        clipped = isinstance(rule, Clipped)
        self._others = CLIPPED_OTHERWISE.format(norm=rule.max_norm) if clipped else ""
        self._known: object = None
        self._taken: tuple[State, Params, dict[str, Hyper]] | None = None
        self._wrong: str | None = None
        self.open = False
        """A step was looked at before it was taken, and has been taken."""

    def after(self) -> None:
        """The step was taken."""
        self.open = self._taken is not None

    def forget(self) -> None:
        """What was begun is not gone on with."""
        self._taken, self.open = None, False

    def due(self, parameters: Params, count: int) -> bool:
        """Whether to look at the step that is the `count`-th."""
        return self._hooks(parameters) != self._known or looks_again(count)

    def _hooks(self, parameters: Params) -> object:
        optimizer = self._optimizer
        steps = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        leaves = (
            (*(leaf._backward_hooks or ()), *(leaf._post_accumulate_grad_hooks or ()))  # type: ignore[attr-defined]
            for leaf in parameters.values()
        )
        return (*map(tuple, steps), *leaves)

    def before(
        self,
        step: Step,
        parameters: Params,
        state: State,
        again: Linearised,
        ranks: Ranks,
        outside: Callable[[], str | None],
    ) -> None:
        """The step is about to be taken, on the gradients that are there.

        `again` is its pass once more; one that is not repeated is left to the replays. `outside`
        names a parameter that it reads from elsewhere.
        """
        losses, hyper = step.snapshot.losses, step.hyper
        slack = 1e-3 * float(1 + losses.abs().mean())
        if ranks.any(not torch.allclose(again.losses, losses, rtol=0, atol=slack)):
            return
        self._known, self._wrong = self._hooks(parameters), None
        present = {name: parameters[name].grad for name in hyper}
        given = {n: leaf.detach().clone() for n, leaf in present.items() if leaf is not None}
        fresh = {name: again.gradient[name] for name in given}
        if self._clips:
            given = fresh
        error, size = norm(tree_map(torch.sub, given, fresh)), norm(fresh)
        if not error <= _slack(fresh) * size + 1e-30:
            # Losses that are near but not the same say that the pass differed, not the step.
            words, name = NOT_REPEATED, None
            if not ranks.any(not _same(losses, again.losses)):
                name = outside()
                words = STEPPED_OTHERWISE if name is None else READ_OUTSIDE
            self._wrong = self._said(words, error, size, "gradient", name)
        full = {name: given.get(name, torch.zeros_like(leaf)) for name, leaf in parameters.items()}
        self._taken = (state.mapped(clone), full, hyper)

    def verdict(self, end: State, held: dict[str, dict[str, Any]]) -> str | None:
        """What was wrong with the step, by the state and the slots that it has led to."""
        assert self._taken is not None
        start, gradient, hyper = self._taken
        self.forget()
        wrong, self._wrong = self._wrong, None
        reached = self._rule.step(start, gradient, hyper)
        pairs = [("movement", start.theta, end.theta, reached.theta)]
        for slot in self._rule.slot_names:
            kept = [name for name in hyper if isinstance(held[name].get(slot), Tensor)]
            first, last, expected = (
                {name: state.slots[slot][name] for name in kept} for state in (start, end, reached)
            )
            pairs.append((slot, first, last, expected))
        for what, first, last, expected in pairs:
            if wrong is None and last:
                wrong = self._off(what, first, last, expected)
        if wrong is not None:
            self._known = None  # look at the next one, too
        return wrong

    def _said(
        self, words: str, error: float, size: float, what: str, name: str | None = None
    ) -> str:
        relative = error / max(size, 1e-300)
        return words.format(error=relative, what=what, others=self._others, name=name)

    def _off(self, what: str, start: Params, end: Params, reached: Params) -> str | None:
        movement = norm(tree_map(torch.sub, end, start))
        error = norm(tree_map(torch.sub, reached, end))
        eps = max(torch.finfo(leaf.dtype).eps for leaf in end.values())
        if error <= _slack(end) * movement + 100 * eps * norm(end):
            return None
        return self._said(STEPPED_OTHERWISE, error, movement, what)


def _same(losses: Tensor, again: Tensor) -> bool:
    """But for the rounding of a pass that is repeated on other kernels."""
    near = max(30 * torch.finfo(losses.dtype).eps, repeat_slack([losses]))
    return torch.allclose(again, losses, rtol=0, atol=near * float(1 + losses.abs().mean()))


def _slack(tree: Params) -> float:
    """Of gradients and steps that are computed twice."""
    eps = max((torch.finfo(leaf.dtype).eps for leaf in tree.values()), default=0.0)
    return 1e-7 if eps < 1e-12 else max(1e-3, 10 * eps, repeat_slack(tree.values()))
