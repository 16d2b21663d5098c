"""Controls of a teacher: one part of its signal taken away.

If a control does as well as the whole, that part did nothing. Draws are named by (seed,
step), so a resumed run repeats them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.feature import Feature
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.rng import stream


class Shuffled(AbstractTeacher):
    """The teacher's weights, handed to other samples of the same batch.

    The meta-gradient is that of the weights in their own places: the teacher learns what it
    would have learned, and only which sample gets which weight is lost.
    """

    per_sample = False

    def __init__(self, teacher: AbstractTeacher, seed: int) -> None:
        super().__init__()
        self.teacher, self.seed = teacher, seed

    def forward(self, snapshot: Snapshot) -> Tensor:
        log_weights = self.teacher(snapshot)
        generator = stream(self.seed, "shuffle", snapshot.clock.step)
        order = torch.randperm(len(log_weights), generator=generator).to(log_weights.device)
        held = log_weights.detach()
        return held[order] + (log_weights - held)

    def fit(self, trusted: Snapshot) -> None:
        self.teacher.fit(trusted)

    @property
    def reads_trusted(self) -> bool:
        return self.teacher.reads_trusted


class RandomNumbers(Feature):
    """Standard normal numbers, new ones in every step: a feature that says nothing."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.width, self.seed = width, seed

    def forward(self, snapshot: Snapshot) -> Tensor:
        generator = stream(self.seed, "random features", snapshot.clock.step)
        drawn = torch.randn(len(snapshot.losses), self.width, generator=generator)
        return drawn.to(snapshot.losses)


def noise_gradients(optimizer: torch.optim.Optimizer, seed: int) -> torch.optim.Optimizer:
    """Put normal noise of the same norm, over all parameters, in the place of each gradient.

    The draws are named by the optimizer's own count of steps, which its state holds.
    """

    def replace(stepping: torch.optim.Optimizer, _args: tuple, _kwargs: dict) -> None:
        leaves = [p for group in stepping.param_groups for p in group["params"]]
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        if not gradients:
            return
        count = int(stepping.state.get(leaves[0], {}).get("step", 0))
        generator = stream(seed, "random gradient", count)
        drawn = [torch.randn(g.shape, generator=generator).to(g) for g in gradients]
        scale = _norm(gradients) / _norm(drawn)
        for gradient, noise in zip(gradients, drawn, strict=True):
            gradient.copy_(noise * scale)

    optimizer.register_step_pre_hook(replace)
    return optimizer


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm().to(tensors[0].dtype)
