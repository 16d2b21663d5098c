"""What is remembered of an optimizer step, so that it can be replayed exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.nested import given_inputs, plain_inputs
from deepteach.core.optim import Hyper, State
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs
from deepteach.rng import States
from deepteach.shards import is_shard, own
from deepteach.tree import Params


@dataclass(frozen=True)
class Pass:
    """One pass of the student: its batch, and all that decides what comes out.

    `buffers` are those before the pass, `modes` the `training` flags of the submodules,
    `generators` the states of the random generators that it drew from (None if it drew
    nothing), `half` the precision of the autocast that it ran under, if any.
    """

    inputs: Inputs
    labels: Tensor
    buffers: Params
    modes: tuple[bool, ...]
    generators: States | None
    half: torch.dtype | None = None


@dataclass(frozen=True)
class Apart:
    """Names of tensors that something may have moved.

    `flags` say of each entry whether it is another one, `sizes` entries to a name; None where all
    of them count as moved.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    flags: Tensor | None = None

    def moved(self) -> list[str]:
        """Those that were; waits for the device."""
        if self.flags is None:
            return list(self.names)
        parts = self.flags.split(self.sizes)
        return [name for name, part in zip(self.names, parts, strict=True) if bool(part.any())]


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw.

    `passes` are one, or several where gradients were accumulated; `snapshot` is what the
    teacher saw of them, without a graph. `weights` are the u of that step `(batch,)` and
    `value` its loss; `hyper` what the optimizer used, by parameter; `state` what the adjoint
    chose to keep. `wrong` says in what the step was not the one recorded here, as far as that was
    looked at. `norms` are those of the gradients that the optimizer stepped on, in the order of
    `hyper`, where its rule is not linear in them; `left` those of the parameters after the step
    and before the next, until they are compared. `apart` are names of what else the module holds
    that something moved after the step's passes, `beside` the same until it is looked at.
    """

    passes: tuple[Pass, ...]
    snapshot: Snapshot
    weights: Tensor
    value: Tensor
    hyper: dict[str, Hyper]
    state: State | None
    wrong: str | None = None
    norms: list[Tensor] | None = None
    left: tuple[list[Tensor], list[Tensor]] | None = None
    apart: tuple[str, ...] = ()
    beside: tuple[Apart, ...] = ()

    def taken(self, hyper: dict[str, Hyper], norms: list[Tensor] | None) -> Step:
        """The same, as the optimizer takes it."""
        seen = self.passes, self.snapshot, self.weights, self.value
        return Step(*seen, hyper, self.state, self.wrong, norms, self.left)

    def followed(self, left: tuple[list[Tensor], list[Tensor]] | None) -> Step:
        """The same, with the norms after it and before the next one."""
        seen = self.passes, self.snapshot, self.weights, self.value
        known = self.wrong, self.norms, left, self.apart, self.beside
        return Step(*seen, self.hyper, self.state, *known)


def pack_step(step: Step) -> dict[str, Any]:
    """A recorded step as nested plain containers of tensors."""
    return {
        "passes": [_pack_pass(seen) for seen in step.passes],
        "snapshot": pack_snapshot(step.snapshot),
        "weights": step.weights,
        "value": step.value,
        "hyper": {name: asdict(h) for name, h in step.hyper.items()},
        "state": None if step.state is None else step.state.mapped(_parts)._asdict(),
        "wrong": step.wrong,
        "norms": step.norms,
        "apart": list(step.apart),
    }


def unpack_step(
    item: dict[str, Any],
    kinds: Mapping[str, type[Hyper]],
    split: Callable[[Params], Params] = lambda tree: tree,
) -> Step:
    """The inverse of `pack_step`; `kinds` are the classes of `hyper`, by parameter.

    `split` makes of what this rank holds of them what parameters are that are split.
    """
    return Step(
        passes=tuple(map(_unpack_pass, item["passes"])),
        snapshot=unpack_snapshot(item["snapshot"]),
        weights=item["weights"],
        value=item["value"],
        hyper={name: kinds.get(name, Hyper)(**h) for name, h in item["hyper"].items()},
        state=None if item["state"] is None else State(**item["state"]).mapped(split),
        wrong=item.get("wrong"),
        norms=item.get("norms"),
        apart=tuple(item.get("apart", ())),
    )


def _pack_pass(seen: Pass) -> dict[str, Any]:
    half = None if seen.half is None else str(seen.half).removeprefix("torch.")
    return {**_fields(seen), "inputs": plain_inputs(seen.inputs), "half": half}


def _unpack_pass(item: dict[str, Any]) -> Pass:
    half = item.get("half")
    known = None if half is None else getattr(torch, half)
    inputs, modes = given_inputs(item["inputs"]), tuple(item["modes"])
    return Pass(**{**item, "inputs": inputs, "modes": modes, "half": known})


def _parts(tree: Params) -> Params:
    """Of parameters that are split, what this rank holds."""
    return {name: own(leaf) if is_shard(leaf) else leaf for name, leaf in tree.items()}


def pack_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """A batch as the teacher sees it, as nested plain containers of tensors."""
    return {**_fields(snapshot), "clock": asdict(snapshot.clock)}


def unpack_snapshot(item: dict[str, Any]) -> Snapshot:
    """The inverse of `pack_snapshot`."""
    return Snapshot(**{**item, "clock": Clock(**item["clock"])})


def _fields(item: Any) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in fields(item)}
