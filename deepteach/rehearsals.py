"""Courses of the teachers that learn from whole trainings before the one reported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepteach.course import Course, Room
from deepteach.errors import ConfigError, NumericError
from deepteach.evaluate import accuracy, logits
from deepteach.l2t_data import L2TData
from deepteach.mentornet import PERCENTILES, MentorNet, fit_mentor, percentile
from deepteach.streams import stream

LONGEST_POOL = 50
"""Candidate batches per minibatch after which a policy keeps too little to train on."""


class Selection(Course):
    """L2T-data's: kept samples are pooled to full minibatches; each training is an episode.

    `episodes` trainings teach the policy before the reported one, in which it keeps
    learning, too late to matter. Candidates beyond an epoch's own are drawn at random. The
    policy reads them in a pass without augmentation.
    """

    def __init__(self, teacher: L2TData, episodes: int) -> None:
        if episodes < 0:
            raise ConfigError(f"episodes must be 0 or more, got {episodes}")
        self.teacher, self.episodes = teacher, episodes + 1

    def choose(self, room: Room, rows: Tensor) -> Tensor:
        candidates, size, kept = rows, len(rows), []
        for part in range(LONGEST_POOL):
            place = candidates.to(room.x.device)
            snapshot = room.coach.look(room.x[place], room.y[place])
            drawn = self.teacher.draw(snapshot, part).to(rows.device)
            needed = size - sum(map(len, kept))
            found = drawn.nonzero().squeeze(1)
            count = len(drawn) if len(found) < needed else int(found[needed - 1]) + 1
            self.teacher.commit(count)
            room.weights[place[:count]] = drawn[:count].to(room.weights)
            kept.append(candidates[:count][drawn[:count]])
            if len(found) >= needed:
                return torch.cat(kept)
            generator = stream(room.seed, f"candidates/{part}", room.step)
            more = torch.randperm(len(room.y), generator=generator)[:size]
            candidates = more.to(rows.device)
        raise NumericError(
            f"the policy kept fewer than {size} of {LONGEST_POOL * size} samples: lower its rate "
            "(teacher_lr)"
        )

    def epoch_end(self, room: Room) -> None:
        if room.progress < 1:  # the end itself is reported where the policy is taught
            self.teacher.report(accuracy(room.module, room.x_valid, room.y_valid))


class Flagged(Course):
    """MentorNet's data-driven curriculum: a first training teaches the network.

    It trains plainly on all samples, the trusted ones with a share `corrupted` of labels
    exchanged for random other ones, and notes every trusted sample's loss after each epoch:
    we know which of these labels are wrong. Then the network is fitted and frozen, and the
    reported training starts over on the training set.
    """

    episodes = 2

    def __init__(self, teacher: MentorNet, corrupted: float = 0.4) -> None:
        if not 0 < corrupted < 1:
            raise ConfigError(f"corrupted must lie within (0, 1), got {corrupted}")
        self.teacher, self.corrupted = teacher, corrupted
        self.losses: list[Tensor] = []
        self.thresholds: list[Tensor] = []

    def rows(self, room: Room) -> Tensor:
        flagged = len(room.y_valid) if room.episode == 0 else 0
        return torch.arange(len(room.y) + flagged)

    def trusted_labels(self, room: Room) -> Tensor:
        labels = room.y_valid.cpu()
        generator = stream(room.seed, "flags")
        count = max(1, min(len(labels) - 1, round(self.corrupted * len(labels))))
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        classes = int(max(room.y.max(), room.y_valid.max())) + 1
        shift = torch.randint(1, classes, (count,), generator=generator)
        labels = labels.clone()
        labels[chosen] = (labels[chosen] + shift) % classes
        return labels.to(room.y_valid.device)

    def epoch_end(self, room: Room) -> None:
        if room.episode == 0:
            flagged = _losses(room.module, room.x_valid, self.trusted_labels(room))
            pool = torch.cat([flagged, _losses(room.module, room.x, room.y)])
            self.losses.append(flagged)
            self.thresholds.append(torch.stack([percentile(pool, p) for p in PERCENTILES]))

    def episode_end(self, room: Room) -> None:
        if room.episode == 0:
            clean = (self.trusted_labels(room) == room.y_valid).cpu()
            losses, thresholds = torch.stack(self.losses), torch.stack(self.thresholds)
            network = fit_mentor(losses, clean, thresholds, seed=room.seed)
            self.teacher.adopt(network.to(room.x.device))
            self.teacher.restart()
            self.losses, self.thresholds = [], []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "thresholds": list(self.thresholds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.thresholds = list(state["losses"]), list(state["thresholds"])


def _losses(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`(n,)` cross-entropies in eval mode, on the CPU."""
    return nn.functional.cross_entropy(logits(module, x), y.cpu(), reduction="none")
