"""What is remembered of an optimizer step, so that it can be replayed exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from deepteach.core.linearised import Linearised
from deepteach.core.optim import Hyper, State
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs
from deepteach.rng import States
from deepteach.tree import Params


@dataclass
class Step:
    """What one optimizer step saw, so that it can be replayed exactly.

    `weights` are the u of that step and `value` its loss; `generators` the state of every random
    generator that the pass consumed (None if it consumed nothing); `hyper` is filled in
    when the optimizer has stepped; `state` is what the adjoint chose to keep.
    """

    inputs: Inputs
    labels: Tensor
    snapshot: Snapshot
    weights: Tensor
    value: Tensor
    buffers: Params
    modes: tuple[bool, ...]
    generators: States | None
    hyper: dict[str, Hyper] = field(default_factory=dict)
    state: State | None = None
    shared: Linearised | None = None
    """The training pass itself, with its graph, where the sweep can start from it."""


def pack_step(step: Step) -> dict[str, Any]:
    """A recorded step as nested plain containers of tensors."""
    # A shared pass is only a short cut: without it the sweep replays the step.
    step.shared = None
    fields = {name: getattr(step, name) for name in Step.__dataclass_fields__}
    snapshot = {name: getattr(step.snapshot, name) for name in Snapshot.__dataclass_fields__}
    state = None if step.state is None else step.state._asdict()
    hyper = {name: asdict(h) for name, h in step.hyper.items()}
    snapshot["clock"] = asdict(step.snapshot.clock)
    return {**fields, "snapshot": snapshot, "hyper": hyper, "state": state}


def unpack_step(item: dict[str, Any]) -> Step:
    """The inverse of `pack_step`."""
    snapshot = Snapshot(**{**item["snapshot"], "clock": Clock(**item["snapshot"]["clock"])})
    hyper = {name: Hyper(**h) for name, h in item["hyper"].items()}
    state = None if item["state"] is None else State(**item["state"])
    return Step(**{**item, "snapshot": snapshot, "hyper": hyper, "state": state})
