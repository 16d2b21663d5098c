"""JTT: a short first training says which samples are hard; the second one weighs them more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.predict import logits
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.curriculum import Curriculum, TrainingView
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.sample_index import sample_index


class Upweighted(AbstractTeacher):
    """The samples of a set weigh `weight`, all others 1; at first the set is empty.

    Args:
        samples: n, the number of training samples; others (indices from n on) weigh 1.
        weight: above 0.

    Raises:
        ConfigError: no samples, a weight out of range, or a batch without `index`.
    """

    hard: Tensor

    def __init__(self, samples: int, weight: float = 5.0) -> None:
        super().__init__()
        if samples < 1:
            raise ConfigError("jtt needs the number of training samples, 1 or more")
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"weight must be above 0 and finite, got {weight}")
        self.log_weight = math.log(weight)
        self.register_buffer("hard", torch.zeros(samples, dtype=torch.bool))

    def forward(self, snapshot: Snapshot) -> Tensor:
        index, count = sample_index(snapshot, "jtt"), len(self.hard)
        hard = self.hard[index.clamp(max=count - 1)] & (index < count)
        return self.log_weight * hard.to(snapshot.losses.dtype)


class TrainedTwice(Curriculum):
    """A first training of a few epochs, then the whole one; both draw from all samples.

    After the first one the training samples that the student gets wrong, in eval mode, become
    the set of the teacher. The first training follows the beginning of the whole one's schedule,
    and comes on top of it.
    """

    episodes = 2
    reads_classes = True

    def __init__(self, teacher: Upweighted, first: int = 1) -> None:
        if first < 1:
            raise ConfigError(f"first must be 1 epoch or more, got {first}")
        self.teacher, self.first = teacher, first

    def epochs_of(self, episode: int, epochs: int) -> int:
        return epochs if episode else min(self.first, epochs)

    def episode_end(self, training: TrainingView) -> None:
        if training.episode == 0:
            wrong = logits(training.module, training.x).argmax(1) != training.y.cpu()
            self.teacher.hard.copy_(wrong)


@recipe("jtt")
def jtt(context: MethodContext, first: int = 1, weight: float = 5.0) -> Method:
    """Just Train Twice: what a first training gets wrong weighs more in a second one."""
    teacher = Upweighted(context.samples, weight)
    return Method(teacher, curriculum=TrainedTwice(teacher, first))
