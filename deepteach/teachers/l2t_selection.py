"""L2T-data in our loop: kept samples are pooled, and each training is an episode."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.predict import accuracy
from deepteach.errors import ConfigError, NumericError
from deepteach.rng import stream
from deepteach.teachers.curriculum import Curriculum, TrainingView
from deepteach.teachers.l2t_data import L2TData
from deepteach.teachers.method import Method, recipe

LONGEST_POOL = 50
"""Candidate batches per minibatch after which a policy keeps too little to train on."""


class Selection(Curriculum):
    """L2T-data's: kept samples are pooled to full minibatches; each training is an episode.

    `episodes` trainings teach the policy before the reported one, in which it keeps
    learning, too late to matter. Candidates beyond an epoch's own are drawn at random. The
    policy reads them in a pass without augmentation.
    """

    reads_classes = True

    def __init__(self, teacher: L2TData, episodes: int) -> None:
        if episodes < 0:
            raise ConfigError(f"episodes must be 0 or more, got {episodes}")
        self.teacher, self.episodes = teacher, episodes + 1

    def choose(self, training: TrainingView, rows: Tensor) -> Tensor:
        candidates, size, kept = rows, len(rows), []
        for part in range(LONGEST_POOL):
            place = candidates.to(training.x.device)
            snapshot = training.coach.look(training.x[place], training.y[place])
            drawn = self.teacher.draw(snapshot, part).to(rows.device)
            needed = size - sum(map(len, kept))
            found = drawn.nonzero().squeeze(1)
            count = len(drawn) if len(found) < needed else int(found[needed - 1]) + 1
            self.teacher.commit(count)
            training.weights[place[:count]] = drawn[:count].to(training.weights)
            kept.append(candidates[:count][drawn[:count]])
            if len(found) >= needed:
                return torch.cat(kept)
            generator = stream(training.seed, f"candidates/{part}", training.step)
            more = torch.randperm(len(training.y), generator=generator)[:size]
            candidates = more.to(rows.device)
        raise NumericError(
            f"the policy kept fewer than {size} of {LONGEST_POOL * size} samples: lower its rate "
            "(teacher_lr)"
        )

    def epoch_end(self, training: TrainingView) -> None:
        if training.progress < 1:  # the end itself is reported where the policy is taught
            self.teacher.report(accuracy(training.module, training.x_valid, training.y_valid))


@recipe("l2t-data")
def l2t_data(classes: int, steps: int, seed: int, episodes: int = 10, hidden: int = 0) -> Method:
    """REINFORCE over `episodes` trainings. The published rates are for hundreds of them."""
    teacher = L2TData(classes, hidden=hidden, pooled=True, seed=seed)
    return Method(
        teacher,
        interval=steps,
        window=1,
        follows_schedule=False,
        curriculum=Selection(teacher, episodes),
    )
