"""What features have in common that are fitted on trusted states; the base of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError


class Probe(Feature):
    """Says by trusted samples how well the given label of a sample fits its internal state."""

    width = 2
    reads_trusted = True

    tells_classes: bool = False
    """The second of its numbers is above 0 where the given class is the likeliest."""

    folds: int = 0
    """Parts of its own cross-fitting; 0 where there is none."""

    slope: Tensor
    """`(width of the states, ...)` what the fit found; empty before."""

    @property
    def fitted(self) -> bool:
        """Whether it has seen trusted samples."""
        return self.slope.numel() > 0

    def agreement(self, snapshot: Snapshot) -> Tensor:
        """`(batch,)` how well each label fits: its numbers, `joined`."""
        return self.joined(self(snapshot))

    def joined(self, told: Tensor) -> Tensor:
        """`(batch,)` how well labels fit, of the numbers `(batch, 2)` that it says of them."""
        raise NotImplementedError

    def cross_fit(self, trusted: Snapshot) -> Tensor | None:
        """Fit, and `(batch, 2)` the numbers of these samples by probes `refitted` without them.

        None where the fit does not give them by the way.
        """
        self.fit(trusted)
        return None

    def refitted(self, trusted: Snapshot) -> Probe:
        """A probe like this one, fitted on these samples alone."""
        raise NotImplementedError


def adopt_shapes(module: nn.Module, names: Sequence[str]) -> None:
    """Let loading a state change the shapes of these buffers: only the first fit knows them."""
    # A function of the module's own file, not a closure: estimators are pickled.
    module.register_load_state_dict_pre_hook(partial(_adopt, tuple(names)))


def _adopt(names: Sequence[str], module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    for name in names:
        if prefix + name in state:
            saved, present = state[prefix + name], getattr(module, name)
            setattr(module, name, torch.empty_like(saved, device=present.device))


def refuse_width(states: Tensor, slope: Tensor, reader: str) -> None:
    """Raises ConfigError: states `(batch, width)` of another width than those fitted on."""
    if states.shape[1] != len(slope):
        raise ConfigError(
            f"{reader} was fitted on internal states of width {len(slope)} and got "
            f"{states.shape[1]}: where their length varies with the batch, pool them with "
            "dt.Student(pool='tokens')"
        )
