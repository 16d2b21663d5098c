"""One weighted step of a student: the same in a training and where its cost is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepteach.core.coach import Coach

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class StepRule:
    """What happens around a pass.

    `clip_norm` is the norm to which gradients are clipped between backward and step; the
    coach must know it. In "bf16" the student's pass runs under autocast; its parameters, the
    losses and the weights stay in float32.
    """

    clip_norm: float | None = None
    precision: Precision = "float32"

    def take(
        self,
        coach: Coach,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        group: Tensor | None = None,
        parts: int = 1,
    ) -> float:
        """Step the student on one batch without an update of the teacher; the loss.

        The batch is passed in `parts`; of more than one the coach must accumulate gradients.
        """
        optimizer = coach.optimizer
        optimizer.zero_grad()
        half = self.precision == "bf16"
        parts, losses = min(parts, len(y)), []
        for part in zip(*(_in_parts(each, parts) for each in (x, y, index, group)), strict=True):
            own, labels, rows, sources = part
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                loss = coach.loss(own, labels, index=rows, group=sources)
            loss.backward()
            losses.append(loss)
        if self.clip_norm is not None:
            leaves = [leaf for owner in optimizer.param_groups for leaf in owner["params"]]
            torch.nn.utils.clip_grad_norm_(leaves, self.clip_norm)
        optimizer.step()
        # A part's loss is divided by its own weights, that of the step by those of all.
        return float(losses[0].detach()) if parts == 1 else coach.last_loss


def _in_parts(values: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if values is None else values.tensor_split(count)
