"""MentorNet's data-driven network in our loop: taught by a first training, then frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.losses import cross_entropy
from deepteach.core.predict import logits
from deepteach.data.rows import Samples
from deepteach.errors import ConfigError
from deepteach.rng import stream
from deepteach.teachers.curriculum import Curriculum, TrainingView
from deepteach.teachers.mentor_network import fit_mentor, percentile
from deepteach.teachers.mentornet import MentorNet
from deepteach.teachers.method import Method, recipe

PERCENTILES = (0.4, 0.5, 0.6, 0.75, 0.8, 0.9)
"""Percentiles at which the data-driven network sees each flagged sample."""


class Flagged(Curriculum):
    """The data-driven kind: a first training teaches the network.

    It trains plainly on all samples, the trusted ones with a share `corrupted` of labels
    exchanged for random other ones, and notes every trusted sample's loss after each epoch:
    we know which of these labels are wrong. Then the network is fitted and frozen, and the
    reported training starts over on the training set.
    """

    episodes = 2
    reads_classes = True

    def __init__(self, teacher: MentorNet, corrupted: float = 0.4) -> None:
        if not 0 < corrupted < 1:
            raise ConfigError(f"corrupted must lie within (0, 1), got {corrupted}")
        self.teacher, self.corrupted = teacher, corrupted
        self.losses: list[Tensor] = []
        self.thresholds: list[Tensor] = []

    def rows(self, training: TrainingView) -> Tensor:
        flagged = len(training.y_valid) if training.episode == 0 else 0
        return torch.arange(len(training.y) + flagged)

    def trusted_labels(self, training: TrainingView) -> Tensor:
        labels = training.y_valid.cpu()
        generator = stream(training.seed, "flags")
        count = max(1, min(len(labels) - 1, round(self.corrupted * len(labels))))
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        classes = int(max(training.y.max(), training.y_valid.max())) + 1
        shift = torch.randint(1, classes, (count,), generator=generator)
        labels = labels.clone()
        labels[chosen] = (labels[chosen] + shift) % classes
        return labels.to(training.y_valid.device)

    def epoch_end(self, training: TrainingView) -> None:
        if training.episode == 0:
            flagged = _losses(training.module, training.x_valid, self.trusted_labels(training))
            pool = torch.cat([flagged, _losses(training.module, training.x, training.y)])
            self.losses.append(flagged)
            self.thresholds.append(torch.stack([percentile(pool, p) for p in PERCENTILES]))

    def episode_end(self, training: TrainingView) -> None:
        if training.episode == 0:
            clean = (self.trusted_labels(training) == training.y_valid).cpu()
            losses, thresholds = torch.stack(self.losses), torch.stack(self.thresholds)
            network = fit_mentor(losses, clean, thresholds, seed=training.seed)
            self.teacher.adopt(network.to(training.x.device))
            self.teacher.restart()
            self.losses, self.thresholds = [], []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "thresholds": list(self.thresholds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.thresholds = list(state["losses"]), list(state["thresholds"])


def _losses(module: nn.Module, x: Samples, y: Tensor) -> Tensor:
    """`(n,)` cross-entropies in eval mode, on the CPU."""
    return cross_entropy(logits(module, x), y.cpu())


@recipe("mentornet-dd")
def mentornet_data_driven(
    seed: int, percentile: float = 0.7, decay: float = 0.9, corrupted: float = 0.4
) -> Method:
    """MentorNet's data-driven network, learned in a first training from the trusted set."""
    teacher = MentorNet("data-driven", percentile=percentile, decay=decay, seed=seed)
    return Method(teacher, curriculum=Flagged(teacher, corrupted))
