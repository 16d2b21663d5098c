"""Whether a host's own loss is the mean of what the coach is given, so that none is replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepteach.core.batches.ignored import IGNORED, integral
from deepteach.core.losses import MeanOf, SampleLoss
from deepteach.core.module_state import buffers_kept
from deepteach.core.predict import whole_mode
from deepteach.errors import ConfigError
from deepteach.rng import untouched

OwnLoss = Callable[[Tensor], tuple[Tensor, Tensor] | None]
"""From labels to the loss that a host takes of them and the logits; None where it takes none."""

ROUNDINGS, HALF_ROUNDINGS = 100, 4
"""Units in the last place in which two ways to the same loss may differ."""


def matching(
    name: str, candidates: Sequence[SampleLoss], own: OwnLoss, module: nn.Module, labels: Tensor
) -> SampleLoss:
    """The first of the candidates whose mean is the host's loss.

    They are compared on the given labels, and on drawn ones with the parameters moved a little:
    a class that has a weight may be rare, and a further term may be 0 where training starts. The
    module runs in train mode, as it is trained; it is left as it was.

    Raises:
        ConfigError: there is none.
    """
    left = list(candidates)
    in_training = whole_mode(module, training=True)
    with untouched(), buffers_kept(module), in_training, torch.enable_grad():
        found = own(labels)
        if found is None:
            return left[0]
        left = [each for each in left if agrees(each, *found, labels)]
        if left:
            drawn = another(labels, found[1].shape[-1])
            with _moved(module):
                found = own(drawn)
            if found is not None and math.isfinite(float(found[0].detach())):
                left = [each for each in left if agrees(each, *found, drawn)]
    if not left:
        raise another_loss(name)
    return left[0]


def another_loss(name: str) -> ConfigError:
    """What is raised where a host's loss is not the mean of what the coach is given."""
    return ConfigError(
        f"{name} has a loss of its own, which is not the mean over its samples or tokens and gives "
        "one number for a batch: give coach_options={'loss': ...}, a function (logits, labels) -> "
        "(batch,), or a dt.MassedLoss"
    )


def agrees(losses: SampleLoss, own: Tensor, logits: Tensor, labels: Tensor) -> bool:
    """Whether `own` is the mean of `losses`: its value, and its gradient to the logits.

    Losses of another kind may have one value where all logits are about alike, as those of a
    module that is not trained are; their gradients differ. A further term of the loss that does
    not come from the logits differs in the value.
    """
    ours = MeanOf(losses)(logits.to(own.dtype), labels)
    pull, same = (
        torch.autograd.grad(value, logits, retain_graph=True, allow_unused=True)[0]
        if value.requires_grad
        else None
        for value in (own, ours)
    )
    said, mean = float(own.detach()), float(ours.detach())
    if pull is None or same is None:
        return False
    if not abs(said - mean) <= _slack(own.dtype) * max(abs(said), abs(mean)):
        return False
    return float((pull - same).abs().max()) <= _slack(logits.dtype) * float(same.abs().max())


def _slack(kind: torch.dtype) -> float:
    units = HALF_ROUNDINGS if kind.itemsize < 4 else ROUNDINGS
    return units * torch.finfo(kind).eps


def another(labels: Tensor, classes: int, ignored: int = IGNORED) -> Tensor:
    """Labels of every class alike often; those that are left out, or are no classes, stay."""
    if not integral(labels):
        return labels
    drawn = torch.randint_like(labels, classes)
    return torch.where(labels == ignored, labels, drawn)


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    """What is trained is a little elsewhere inside."""
    kept = [(leaf, leaf.detach().clone()) for leaf in module.parameters() if leaf.requires_grad]
    try:
        with torch.no_grad():
            for leaf, before in kept:
                size = 0.05 * before.float().square().mean().sqrt() + 0.01
                leaf.add_((torch.randn_like(leaf) * size).to(leaf.dtype))
        yield
    finally:
        with torch.no_grad():
            for leaf, before in kept:
                leaf.copy_(before)
