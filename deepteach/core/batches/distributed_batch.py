"""A batch of which every rank has a part: what the ranks know and sum together.

Called where there are several ranks; what is not finite is worded here for one, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepteach.core.losses import of_counted
from deepteach.core.record import Step
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.distributed.collectives import Ranks, digest
from deepteach.errors import ConfigError, DataError, NumericError
from deepteach.shards import any_shard
from deepteach.tree import Params, all_finite

BAD_WEIGHTS = (
    "the teacher's weights are not finite; nothing was changed: check the features' "
    "scale or lower the teacher's learning rate"
)


@dataclass(frozen=True)
class Totals:
    """A batch over all ranks: its size, mean loss, effective fraction, L and sum of masses."""

    count: int
    mean_loss: float
    effective: Tensor
    value: float
    mass: float


def bad_losses(snapshot: Snapshot, total: int | None = None, count: int | None = None) -> str:
    """The message on losses that are not finite: `total` of `count` on all ranks."""
    bad = (~torch.isfinite(snapshot.losses)).nonzero().flatten().tolist()
    where = f"first at batch positions {bad[:5]}" if bad else "on another rank"
    return (
        f"the loss of {len(bad) if total is None else total} of {count or len(snapshot.losses)} "
        f"samples is not finite ({where}); nothing was changed: lower the learning rate or check "
        "these samples"
    )


def refuse_bad_losses(snapshot: Snapshot) -> None:
    """Raises NumericError: a loss of the batch is not finite."""
    if not all_finite([snapshot.losses]):
        raise NumericError(bad_losses(snapshot))


def refuse_bad_masses(snapshot: Snapshot) -> None:
    """Raises DataError: a mass of the batch is below 0 or not finite."""
    if odd := int(_odd_masses(snapshot)):
        raise DataError(_bad_masses(odd, len(snapshot.losses)))


def _odd_masses(snapshot: Snapshot) -> int | Tensor:
    mass = snapshot.mass
    return 0 if mass is None else (~((mass >= 0) & mass.isfinite())).sum()


def _bad_masses(odd: int, count: int) -> str:
    return (
        f"the mass of {odd} of {count} samples is negative or not finite: let MassedLoss give a "
        "number of 0 or more for each"
    )


def refuse_empty(count: int, ranks: int) -> None:
    """Raises DataError: a batch, or a rank's part of one, without a sample."""
    if count == 0 and ranks == 1:
        raise DataError("the batch holds no sample: skip it")
    if count == 0:
        raise DataError(
            "this rank's part of the batch is empty: give every rank a sample in every step"
        )


def refuse_batchwise(ranks: Ranks, teacher: AbstractTeacher) -> None:
    """Raises ConfigError: a teacher of whole batches, which are spread over ranks."""
    if ranks.count > 1 and not teacher.per_sample:
        raise ConfigError(
            f"{type(teacher).__name__} weighs a sample by the others of its batch, which "
            f"are spread over {ranks.count} processes: use one process"
        )


def prove_equal(ranks: Ranks, module: nn.Module, teacher: AbstractTeacher, where: str) -> None:
    """Compare the bits of student and teacher over ranks. Raises NumericError."""
    if ranks.count > 1:
        owners = (module, teacher)
        states = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in owners]
        ranks.compare(digest(states), where)


def totals(ranks: Ranks, step: Step) -> Totals:
    """Of a weighted batch.

    Raises:
        NumericError, DataError: what is not finite, or a mass below 0; known to all ranks.
    """
    seen = step.snapshot
    losses, weights = seen.losses.double(), seen.unmassed(step.weights).double()
    bad = (~torch.isfinite(losses)).sum()
    own = [len(losses), bad, losses.sum(), step.value, weights.sum(), weights.square().sum()]
    left_out = seen.ignored()
    live = len(losses) if left_out is None else (~left_out).sum()
    table = ranks.table(*own, live, seen.total(), _odd_masses(seen))
    count, bad, total, value, sums, squares, live, mass, odd = table.sum(0)
    counted, live = live, live.clamp(min=1)
    if bad > 0:
        raise NumericError(bad_losses(seen, int(bad), int(count)))
    if odd > 0:
        raise DataError(_bad_masses(int(odd), int(count)))
    if not all_finite([value, sums, squares]):
        raise NumericError(BAD_WEIGHTS)
    effective = of_counted(sums.square() / (live * squares), counted)
    return Totals(int(count), float(total / live), effective, float(value), float(mass))


@torch.no_grad()
def sum_gradients(
    ranks: Ranks, module: nn.Module, named: Params, buffers: Params, *, share: float
) -> Params:
    """Sum the gradients of `named` over ranks, and bring running statistics together.

    `buffers` are the module's before the pass, `share` this rank's part of the batch. Returns
    the parameters that the loss reached on any rank.
    """
    # Those of parameters that are split were summed on their way back.
    split = any_shard(named.values())
    whole = {} if split else named
    zero_or_own = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in whole.items()}
    total = ranks.summed(zero_or_own, "gradient")
    # Passes on the ranks moved their buffers apart: the mean movement, by their samples.
    moved = {
        name: (leaf.double() - buffers[name].double()) * share
        for name, leaf in module.named_buffers()
        if leaf.is_floating_point()
    }
    used = torch.tensor([float(p.grad is not None) for p in named.values()]).double()
    device = next(iter(named.values())).device
    extra = ranks.summed({**moved, "": used.to(device)}, "buffers")
    counts = extra.pop("").tolist()
    reached = {n: p for (n, p), times in zip(named.items(), counts, strict=True) if times > 0}
    for name in total.keys() & reached.keys():
        reached[name].grad = total[name]
    for name, leaf in module.named_buffers():
        if name in extra:
            leaf.copy_(buffers[name].double() + extra[name])
    return reached
