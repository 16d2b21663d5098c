"""Did the optimizer step on exactly the gradient of coach.loss? If not, say so and refuse.

What happens to a gradient between backward() and step() is not in the recorded step, so the
meta-gradient would silently miss it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepteach.errors import ConfigError, NumericError
from deepteach.tree import Params, all_finite


class GradientAudit:
    """Watches the gradients of one step.

    `scaled`: a GradScaler may scale the loss. `changed`: gradients may be changed in place,
    as by a clipping that the rule models; whether that explains the step is checked later,
    when the recorded step must lead to the next state.
    """

    def __init__(self, *, scaled: bool, changed: bool) -> None:
        self.scaled, self.changed = scaled, changed
        self._accumulated: dict[str, tuple[Tensor, int]] = {}

    def clear(self) -> None:
        self._accumulated.clear()

    def at_backward(self, scale: Tensor, parameters: Params) -> None:
        """When backward() begins. Raises ConfigError."""
        if float(scale) != 1.0 and not self.scaled:
            raise ConfigError(
                f"the loss was scaled by {float(scale):g} before backward(): call "
                "coach.loss(x, y).backward() as it is (no GradScaler, no accumulation)"
            )
        if any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in parameters.values()):
            raise ConfigError(
                "gradients are left over from before coach.loss: call optimizer.zero_grad() "
                "before each backward()"
            )

    def at_accumulation(self, name: str, leaf: Tensor) -> None:
        """When a parameter's gradient has arrived."""
        assert leaf.grad is not None
        self._accumulated[name] = (leaf.grad, leaf.grad._version)

    def at_step(self, active: Params) -> None:
        """Before optimizer.step(), for the parameters that have a gradient.

        Raises:
            ConfigError: a gradient is not the one that arrived.
            NumericError: a gradient is not finite.
        """
        for name, leaf in active.items():
            grad, seen = leaf.grad, self._accumulated.get(name)
            if self.changed and seen is not None:
                continue
            if seen is None and grad is not None and not grad.any():
                continue  # zeroed and not reached by this loss: torch steps on the zeros
            if grad is None or seen is None or seen[0] is not grad or seen[1] != grad._version:
                raise ConfigError(
                    f"the gradient of {name!r} was changed between backward() and "
                    "optimizer.step() (clipping, unscaling, a second loss?), which the "
                    "meta-gradient would not see: remove it; clipping is Coach(clip_norm=...), "
                    "and a parameter unfrozen since needs a new Coach"
                )
        if not all_finite(leaf.grad for leaf in active.values() if leaf.grad is not None):
            raise NumericError(
                "a gradient of the student is not finite; the step was not taken: lower the "
                "learning rate or check the batch"
            )


def weakly(method: Callable) -> Callable:
    """A bound method that does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        target = reference()
        if target is not None:
            target(*args)

    return call


def attach(
    owner: object,
    optimizer: torch.optim.Optimizer,
    parameters: Params,
    *,
    before: Callable[[], None],
    after: Callable[[], None],
    accumulate: Callable[[str, Tensor], None],
) -> None:
    """Hooks around optimizer.step() and at each gradient; they vanish with `owner`."""
    handles: list[Any] = [
        optimizer.register_step_pre_hook(lambda *_: before()),
        optimizer.register_step_post_hook(lambda *_: after()),
    ]
    for name, leaf in parameters.items():
        handles.append(
            leaf.register_post_accumulate_grad_hook(lambda leaf, name=name: accumulate(name, leaf))
        )
    weakref.finalize(owner, _detach, handles)


def _detach(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
