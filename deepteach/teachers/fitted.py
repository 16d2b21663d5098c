"""What features have in common that are fitted on trusted states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from deepteach.errors import ConfigError


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
