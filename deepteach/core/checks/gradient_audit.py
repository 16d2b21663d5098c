"""Did the optimizer step on exactly the gradient of coach.loss? If not, say so and refuse.

What happens to a gradient between backward() and step() is not in the recorded step, so the
meta-gradient would silently miss it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepteach.core.checks.parameter_hooks import ParameterHooks, put_first
from deepteach.core.derivatives.plain_kernels import as_written
from deepteach.core.record import Step
from deepteach.errors import ConfigError, NumericError, ReplayError
from deepteach.shards import anywhere, own
from deepteach.tree import Params, all_finite, norm, norms

_ROUNDINGS = 8
"""No gradient is known better than to this many units in the last place of the largest."""


class GradientAudit:
    """Watches the gradients of one step.

    `scaled`: a GradScaler may scale the loss. `changed`: gradients may be changed in place,
    as by a clipping that the rule models; whether that explains the step is checked later,
    when the recorded step must lead to the next state.

    Something that writes a gradient, or puts another tensor there, need not change it:
    `clip_grad_norm_(..., inf)` only measures. Once that has happened, gradients of the following
    steps are copied as they arrive, and must be those bits still when the optimizer steps.
    """

    def __init__(self, *, scaled: bool, changed: bool) -> None:
        self.scaled, self.changed = scaled, changed
        self.hooks = ParameterHooks()
        self._copies = False
        self._accumulated: dict[str, tuple[Tensor, int, Tensor | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have hooks of their own."""
        return {**vars(self), "hooks": ParameterHooks(), "_accumulated": {}}

    @property
    def arrived(self) -> bool:
        """Whether a gradient of the present batch has come."""
        return bool(self._accumulated)

    def clear(self) -> None:
        """Before a new batch."""
        self._accumulated.clear()

    def at_backward(self, scale: Tensor, parameters: Params) -> None:
        """When backward() begins. Raises ConfigError."""
        if float(scale) != 1.0 and not self.scaled:
            raise ConfigError(
                f"the loss was scaled by {float(scale):g} before backward(): call "
                "coach.loss(x, y).backward() as it is (no GradScaler, no accumulation)"
            )
        if any(has_gradient(leaf) for leaf in parameters.values()):
            raise ConfigError(
                "gradients are left over from before coach.loss: call optimizer.zero_grad() "
                "before each backward()"
            )

    def at_part(self, scale: Tensor, share: float, parameters: Params) -> Tensor:
        """When backward() of a part begins: the scale to go on with. Raises ConfigError.

        A constant factor on the loss, as the 1/parts that loops put there, is left out: the
        weights' normaliser spans the parts. What the earlier parts left was rescaled.
        """
        if not 0 < float(scale) <= 1:
            raise ConfigError(
                f"the loss of a part was scaled by {float(scale):g} before backward(): accumulate "
                "works without a GradScaler"
            )
        if not self.arrived and any(map(has_gradient, parameters.values())):
            raise ConfigError(
                "gradients are left over from before coach.loss: call optimizer.zero_grad() "
                "before the first part of a step"
            )
        for name in list(self._accumulated):
            self.at_accumulation(name, parameters[name])
        return torch.full_like(scale, share)

    def at_accumulation(self, name: str, leaf: Tensor) -> bool:
        """When a parameter's gradient has arrived. Raises ConfigError: it is sparse.

        Whether a gradient of this batch arrived before, and is there no more.
        """
        grad = leaf.grad
        assert grad is not None
        if grad.is_sparse:
            raise ConfigError(
                f"the gradient of {name!r} is sparse, which replays do not repeat: make the "
                "embedding with sparse=False"
            )
        seen = self._accumulated.get(name)
        self._accumulated[name] = (grad, grad._version, grad.clone() if self._copies else None)
        return seen is not None and seen[0] is not grad

    def overflowed(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a GradScaler has told the optimizer, a fused one, to leave this step out."""
        found = getattr(optimizer, "found_inf", None) if self.scaled else None
        return found is not None and bool(found)

    def at_step(self, active: Params, again: Callable[[], Params]) -> None:
        """Before optimizer.step(), for the parameters that have a gradient.

        `again` computes the gradients of the pending batch once more.

        Raises:
            ConfigError: a gradient is not the one that arrived.
            NumericError: a gradient is not finite.
        """
        written: Params = {}
        grads: list[Tensor] = []
        for name, leaf in active.items():
            grad, seen = leaf.grad, self._accumulated.get(name)
            if grad is not None:
                grads.append(grad)
            if self.changed and seen is not None:
                continue
            if seen is None and grad is not None and not has_gradient(leaf):
                continue  # zeroed and not reached by this loss: torch steps on the zeros
            if grad is None or seen is None:
                raise ConfigError(_changed(name))
            if seen[0] is not grad or seen[1] != grad._version:
                written[name] = grad
        if not all_finite(grads):
            raise NumericError(
                "a gradient of the student is not finite; the step was not taken: lower the "
                "learning rate or check the batch"
            )
        moved = self.hooks.written(active)
        if moved is not None:
            raise ConfigError(
                f"the parameter {moved!r} was written to between coach.loss and the optimizer's "
                "step, which the meta-gradient would not see: remove that"
            )
        hooked = self.hooks.changed()
        if hooked is not None:
            raise ConfigError(
                f"a hook of the parameter {hooked!r} changes its gradient, which the meta-gradient "
                "would not see: remove the hook, or let it read only"
            )
        if written:
            self._compare(written, again)

    def _compare(self, written: Params, again: Callable[[], Params]) -> None:
        """Were gradients only written, or changed? The first time by computing them again."""
        fresh = {} if self._copies else again()
        total = norm(written)
        for name, grad in written.items():
            copy = self._accumulated[name][2]
            if copy is not None:
                same = torch.equal(own(copy), own(grad))
            else:
                slack = 1e-3 if grad.dtype != torch.float64 else 1e-9
                error = norm({"": fresh[name] - grad})
                # A gradient that is 0 but for rounding (the bias of an attention's keys) is
                # another one each time.
                rounding = _ROUNDINGS * torch.finfo(grad.dtype).eps * total
                same = error <= slack * norm({"": grad}) + rounding
            if anywhere(not same, (grad,)):
                raise ConfigError(_changed(name))
        self._copies = True


def has_gradient(leaf: Tensor) -> bool:
    """Whether a parameter holds a gradient that is not 0."""
    return leaf.grad is not None and anywhere(bool(own(leaf.grad).any()), (leaf,))


def _changed(name: str) -> str:
    return (
        f"the gradient of {name!r} was changed between backward() and "
        "optimizer.step() (clipping, unscaling, a second loss?), which the "
        "meta-gradient would not see: remove it; clipping is Coach(clip_norm=...)"
    )


def compare_gradients(gradient: Params, step: Step, tolerance: float) -> None:
    """A replayed gradient must have the norms of the one that was stepped on.

    Raises:
        ReplayError: it has not: another loss was added, or a clipping is not as was said.
    """
    if not step.norms:
        return
    used = torch.stack(step.norms)
    found = torch.stack(norms([gradient[name] for name in step.hyper])).to(used)
    slack = min(tolerance, 1e-6) if used.dtype == torch.float64 else max(10 * tolerance, 0.01)
    error = (found - used).abs() - slack * (used + 0.1 * torch.linalg.vector_norm(used))
    worst = int(error.argmax())
    if anywhere(not error[worst] <= 0, gradient.values()):
        raise ReplayError(
            f"the optimizer stepped on another gradient than that of coach.loss (of "
            f"{list(step.hyper)[worst]!r}: norm {float(used[worst]):.3g}, not "
            f"{float(found[worst]):.3g}): an added loss term belongs into Coach(loss=...), and "
            "clip_norm must be what the loop clips to"
        )


def weakly(method: Callable) -> Callable:
    """A bound method that does not keep its object alive."""
    owner, function = weakref.ref(method.__self__), method.__func__  # type: ignore[attr-defined]
    return partial(_called, owner, function)


# Once, not for each of them: it is at its first call that such a function becomes what it is.
@as_written
def _called(owner: weakref.ref, function: Callable, *args: Any) -> Any:
    target = owner()
    return None if target is None else function(target, *args)


def attach(
    owner: object,
    optimizer: torch.optim.Optimizer,
    *,
    before: Callable[[Any, tuple, dict], Any],
    after: Callable[[], None],
    accumulate: Callable[[Tensor], None],
    hooks: ParameterHooks,
) -> Callable[[Params], None]:
    """Hooks around optimizer.step() and at each gradient; they vanish with `owner`.

    `before` is given the optimizer and the arguments of its step, and may answer with others.
    What is returned is called before each batch: it lets them see the gradients of the parameters
    that there are before the hooks of others, and again behind them.
    """
    handles: list[Any] = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(lambda *_: after()),
    ]
    steps: Any = optimizer._optimizer_step_pre_hooks
    first, watched = handles[0].id, {}
    weakref.finalize(owner, _detach, handles)
    weakref.finalize(owner, hooks.remove)

    def arrange(parameters: Params) -> None:
        if next(reversed(steps)) != first:
            steps.move_to_end(first)
        for leaf in parameters.values():
            known = watched.get(id(leaf))
            if known is None or known[0]() is not leaf:
                handles.append(leaf.register_post_accumulate_grad_hook(accumulate))
                known = watched[id(leaf)] = (weakref.ref(leaf), handles[-1].id)
            put_first(leaf._post_accumulate_grad_hooks, known[1])  # type: ignore[attr-defined]
        hooks.arrange(parameters)

    return arrange


def _detach(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
