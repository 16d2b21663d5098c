"""A forward that takes gradients itself (forces, an inner step), run by who needs no gradient.

Examinations, forward mode and looks at a batch run without graphs, where `torch.autograd.grad`
inside of a forward ends in an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepteach.rng import generator_states, set_generator_states
from deepteach.tree import Params, clone


class OwnGradients:
    """Whether a module takes gradients in its forward; known once a pass has ended for that."""

    def __init__(self) -> None:
        self.taken = False

    def allowed(
        self,
        run: Callable[[Params], tuple[Tensor, ...]],
        params: Params,
        written: Params,
    ) -> tuple[Tensor, ...]:
        """What `run` returns for `params`; without a graph where the caller keeps none.

        `written` is what the pass writes to.
        """
        leaves = params.values()
        if not params or (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)):
            return run(params)
        if not self.taken:
            drawn = generator_states(next(iter(leaves)).device)
            before = clone(written)
            try:
                return run(params)
            except RuntimeError as error:
                if _NONE not in str(error):
                    raise
            self.taken = True
            set_generator_states(drawn)
            with torch.no_grad():
                for name, leaf in before.items():
                    written[name].copy_(leaf)
        keeps = torch.is_grad_enabled()
        with torch.enable_grad():
            found = run({name: leaf + _nothing(leaf) for name, leaf in params.items()})
        # Copies leave the graph, and keep a tangent of forward mode.
        return found if keeps else tuple(leaf.clone() for leaf in found)


def _nothing(leaf: Tensor) -> Tensor:
    """A zero that wants a gradient: what it is added to does, and keeps its tangent."""
    return torch.zeros((), dtype=leaf.dtype, device=leaf.device, requires_grad=True)


_NONE = "does not require grad and does not have a grad_fn"
"""What torch says where a gradient is asked for and there is no graph."""
