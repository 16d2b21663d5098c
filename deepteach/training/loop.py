"""The training loop: a student, its teacher and their data, one epoch at a time.

Whatever is random is drawn from a stream named by (seed, purpose, step), and whatever
follows a schedule is a function of the step, so a run continues from any step exactly.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.coach import Coach
from deepteach.core.snapshot import Clock
from deepteach.data.augment import Augmentation, identity
from deepteach.data.rows import readable
from deepteach.errors import ConfigError, NumericError
from deepteach.rng import replayed, stream
from deepteach.teachers.curriculum import Curriculum
from deepteach.training.averaged import MovingAverage
from deepteach.training.device_data import DeviceData
from deepteach.training.schedule import (
    Rates,
    Schedule,
    batches,
    refuse_large_batches,
    steps_per_epoch,
)
from deepteach.training.step import StepRule
from deepteach.tree import all_finite, clone

SETTLING_SAMPLES = 2048
"""Samples by which the batch statistics of a moving average are found, at most."""


@dataclass(frozen=True)
class EpochEnd:
    """What happened in one epoch. Means are over its steps."""

    epoch: int
    warm_up: bool
    """It belongs to an episode before the one that is reported."""
    step: int
    train_loss: float
    effective_sample_size: float
    updates: int
    valid_loss: float | None
    drift: float | None
    meta_gradient_norm: float | None
    weights: Tensor
    """`(n,)` weight of each training sample when it was last seen; 1 where it never was."""


class TrainingLoop:
    """Everything that changes during a run, and how it changes.

    Args:
        coach: the student, its optimizer and its teacher, ready to step.
        data: the samples, on the student's device.
        schedule: length and batches; its interval and window are the coach's.
        rates: learning rates at their full height.
        curriculum: what each epoch draws from.
        augment: `(x, generator) -> x`, before every pass.
        step_rule: clipping and precision of a step.
        average: of the student, if one is kept.
        seed: names all random draws.

    Raises:
        ConfigError: a batch is larger than the data, or too small for the ranks.
    """

    def __init__(
        self,
        coach: Coach,
        data: DeviceData,
        schedule: Schedule,
        rates: Rates,
        *,
        curriculum: Curriculum,
        seed: int,
        augment: Augmentation = identity,
        step_rule: StepRule | None = None,
        average: MovingAverage | None = None,
    ) -> None:
        self.coach, self.data, self.schedule, self.rates = coach, data, schedule, rates
        self.curriculum, self.seed = curriculum, seed
        self.augment, self.step_rule = augment, step_rule or StepRule()
        self.average = average
        self.ranks, self.optimizer = coach.ranks, coach.optimizer
        self.module: nn.Module = coach.student.module
        self.x, self.y = data.x, data.y
        self.x_valid, self.y_valid = data.x_valid, data.y_valid
        self.device = data.y.device
        refuse_large_batches(len(self.y), schedule.batch_size)
        self._refuse_thin_batches()
        self._refuse_single_trusted()
        self.per_epoch = steps_per_epoch(len(self.y), schedule.step_size)
        episodes = range(curriculum.episodes)
        lengths = [curriculum.epochs_of(i, schedule.epochs) for i in episodes]
        self.begins = list(itertools.accumulate(lengths, initial=0))
        # Only a curriculum that starts over needs the student as it was at first.
        self.initial = clone(self.module.state_dict()) if curriculum.episodes > 1 else {}
        self.step, self.episode = 0, 0
        self._rows = torch.arange(len(self.y))
        self.weights = torch.ones(len(self.y), device=self.device)
        coach.ledger.close()  # `weights` are noted here, without those of trusted samples
        self._clear_epoch()

    def _refuse_thin_batches(self) -> None:
        """Every rank needs a sample in every step, and two where batches have statistics."""
        norms = nn.modules.batchnorm._BatchNorm
        each = 2 if any(isinstance(m, norms) for m in self.module.modules()) else 1
        parts = batches(len(self.y), self.schedule.batch_size, torch.Generator())
        least = min(map(len, parts))
        if self.ranks.count > 1 and least < each * self.ranks.count:
            raise ConfigError(
                f"the smallest batch of an epoch has {least} samples, but {self.ranks.count} ranks "
                f"need {each} each: choose a batch_size that leaves more, or fewer processes"
            )

    def _refuse_single_trusted(self) -> None:
        """One trusted sample at a time teaches nothing where a pass needs two."""
        taught = self.coach.teacher_optimizer is not None or self.coach.teacher.reads_trusted
        if min(self.schedule.valid_batch, len(self.y_valid)) > 1 or not taught:
            return
        try:
            with torch.no_grad(), replayed(None):
                copy.deepcopy(self.module).train()(self.x_valid[:1])
        except ValueError as error:
            raise ConfigError(
                f"the student cannot pass a single trusted sample in train mode ({error}): choose "
                "a valid_batch of 2 or more"
            ) from error

    def _clear_epoch(self) -> None:
        self._losses, self._effective = 0.0, 0.0
        self._updates, self._records = 0, [0.0, 0.0]
        self._drift: float | None = None

    @property
    def total(self) -> int:
        return self.per_epoch * self.begins[-1]

    @property
    def within(self) -> int:
        """Steps of the present episode done."""
        return self.step - self.per_epoch * self.begins[self.episode]

    @property
    def epoch(self) -> int:
        """Epochs done, over all episodes."""
        return self.step // self.per_epoch

    @property
    def epochs(self) -> int:
        """Epochs of the present episode."""
        return self.begins[self.episode + 1] - self.begins[self.episode]

    @property
    def progress(self) -> float:
        """Fraction of the present episode done."""
        return self.within / (self.per_epoch * self.epochs)

    def epoch_steps(self) -> Iterator[EpochEnd | None]:
        """Train from the present step on: `EpochEnd` after an epoch's last step, else None."""
        while self.step < self.total:
            epoch, start = self.epoch, self.step % self.per_epoch
            self.episode = bisect.bisect_right(self.begins, epoch) - 1
            if self.episode and self.within == 0:
                self.start_over()
            rows = self._rows = self.curriculum.rows(self)
            order = batches(
                len(rows),
                self.schedule.step_size,
                stream(self.seed, "order", epoch),
                len(self.y),
            )
            self._announce(epoch, [rows[positions] for positions in order[start:]])
            for positions in order[start:-1]:
                self.take_step(rows[positions])
                yield None
            self.take_step(rows[order[-1]])
            self.curriculum.epoch_end(self)
            if epoch + 1 == self.begins[self.episode + 1]:
                self.curriculum.episode_end(self)
            yield self._epoch_end(epoch + 1 - self.begins[self.episode])

    def start_over(self) -> None:
        """A new student, as at first, for the same teacher."""
        self.module.load_state_dict(self.initial)
        self.optimizer.state.clear()
        if self.average is not None:
            self.average.start_over()
        fresh = {"clock": asdict(Clock(total=self.coach.clock.total)), "since_update": 0}
        self.coach.load_state_dict({**self.coach.state_dict(), **fresh, "steps": []})

    def take_step(self, rows: Tensor) -> None:
        """One student step, and one teacher update where it is due."""
        self.module.train()
        factor = self.schedule.rate(self.within, self.per_epoch)
        parts = self.schedule.parts(len(rows))
        self.rates.apply(self.optimizer, self.coach.teacher_optimizer, factor)
        rows = self.curriculum.choose(self, rows)
        part, needed = self.ranks.part, self.ranks.part(torch.arange(len(rows)))
        x, y = self.samples(rows, needed)
        trusted = partial(self.trusted, self.step)  # made where an update needs it
        self.coach.trust(trusted)  # a teacher may be taught before its step
        # Every rank draws for the whole batch, so that a sample's augmentation is the same on any.
        x = self.augment(x, stream(self.seed, "augment", self.step))
        index = rows.to(self.device)
        group = self.data.groups(rows)
        loss = self.step_rule.take(
            *(self.coach, part(x), part(y), part(index)),
            None if group is None else part(group),
            parts=parts,
        )
        if self.average is not None:
            self.average.update(self.module)
        self._note(rows, loss)
        record = self.coach.update(trusted)
        if record is None:
            record = self.coach.last_record if self.coach.adjoint.before_step else None
        if record is not None:
            self._updates += 1
            self._records[0] += record.validation_loss
            self._records[1] += record.gradient_norm
            if record.drift is not None:
                self._drift = max(self._drift or 0.0, record.drift)
        self.step += 1

    def _announce(self, epoch: int, parts: list[Tensor]) -> None:
        """Let what this rank needs of the coming batches be read ahead, where it must be read."""
        lazy = readable(self.x)
        if lazy is None:
            return
        own = []
        for rows in parts:
            size = len(rows) + self.curriculum.added(self, len(rows))
            places = self.ranks.part(torch.arange(size))
            own.append(rows[places[places < len(rows)]])
        lazy.announce(epoch, own)

    def samples(self, rows: Tensor, needed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and labels; rows from n on are trusted samples. `needed` as in `inputs`."""
        count, trusted = len(self.y), bool((rows >= len(self.y)).any())
        inputs, rows = self.data.inputs(rows, needed), rows.to(self.device)
        if not trusted:
            return inputs, self.y[rows]
        own, others = rows.clamp(max=count - 1), (rows - count).clamp(min=0)
        labels = self.y[own]
        extra = rows >= count
        labels[extra] = self.curriculum.trusted_labels(self)[others[extra]]
        return inputs, labels

    def trusted(self, step: int) -> tuple[Tensor, Tensor]:
        """A step's trusted batch: a fresh sample of those that may teach, augmented."""
        teaching, size = self.curriculum.teaching(self), self.schedule.valid_batch
        count = len(self.y_valid) if teaching is None else len(teaching)
        x, y = self.x_valid, self.y_valid
        if size < count or teaching is not None:
            drawn = torch.randperm(count, generator=stream(self.seed, "trusted", step))[:size]
            chosen = (drawn if teaching is None else teaching[drawn]).to(self.device)
            x, y = x[chosen], y[chosen]
        # As training samples are: what tells the two apart must not be the augmentation.
        return self.augment(x, stream(self.seed, "augment trusted", step)), y

    def settle_average(self, average: MovingAverage) -> None:
        """Give the average batch statistics of its own, of samples that this epoch drew from.

        Up to `SETTLING_SAMPLES` of them, not augmented, in batches as in training; the same
        ones on every rank.
        """
        size, count = self.schedule.batch_size, len(self._rows)
        length = min(max(count, size), SETTLING_SAMPLES)
        generator = stream(self.seed, "settle", self.step)
        parts = [self._rows[part] for part in batches(count, size, generator, length)]
        if (lazy := readable(self.x)) is not None:
            lazy.announce(self.epoch, parts)
        average.settle((self.samples(rows)[0] for rows in parts), generator.initial_seed())

    def judging(self) -> Tensor:
        """Places `(any,)` in the trusted set, on the CPU, by which epochs are compared."""
        chosen = self.curriculum.judging(self)
        return torch.arange(len(self.y_valid)) if chosen is None else chosen

    def _note(self, rows: Tensor, loss: float) -> None:
        weights = self.ranks.whole(self.coach.last_weights, len(rows))
        trust = self.ranks.whole(self.coach.last_trust, len(rows))
        own = (rows < len(self.y)).to(self.device)
        largest = torch.finfo(self.weights.dtype).max
        scaled = (trust * len(trust)).to(self.weights.dtype).clamp(max=largest)
        self.weights[rows.to(self.device)[own]] = scaled[own]
        self._losses += loss
        # Not every teacher's weights sum to 1, and all of a batch's may be 0.
        squares = float(len(weights) * weights.square().sum())
        self._effective += float(weights.sum()) ** 2 / squares if squares > 0 else 0.0

    def _epoch_end(self, epoch: int) -> EpochEnd:
        steps, updates = self.per_epoch, self._updates
        end = EpochEnd(
            epoch=epoch,
            warm_up=self.episode + 1 < self.curriculum.episodes,
            step=self.step,
            train_loss=self._losses / steps,
            effective_sample_size=self._effective / steps,
            updates=updates,
            valid_loss=self._records[0] / updates if updates else None,
            meta_gradient_norm=self._records[1] / updates if updates else None,
            drift=self._drift,
            weights=self.weights.cpu().clone(),
        )
        self._clear_epoch()
        return end

    def refuse_non_finite(self) -> None:
        """Raise NumericError where a step overflowed, so that no such state is kept.

        A gradient may be finite and its step not; the next loss would tell, but there may be
        no next one.
        """
        teacher = self.coach.teacher
        # A teacher may mark what it cannot know by -inf: a class without trusted samples.
        marked = {n: b.masked_fill(b == -math.inf, 0) for n, b in teacher.named_buffers()}
        owned = {
            "student": self.module.state_dict(),
            "teacher": {**dict(teacher.named_parameters()), **marked},
            "samples": {"weights": self.weights},
        }
        bad = next(
            (
                f"{name!r} of the {owner}"
                for owner, tensors in owned.items()
                for name, leaf in tensors.items()
                if leaf.is_floating_point() and not all_finite([leaf])
            ),
            None,
        )
        if self.ranks.any(bad is not None):
            raise NumericError(
                f"{bad or 'a tensor of another rank'} is not finite after step {self.step}; it "
                "was not committed: lower the learning rate, or rescale the inputs"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that continues this run bit for bit, besides its settings."""
        return {
            "step": self.step,
            "student": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "coach": self.coach.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "initial": self.initial,
            "weights": self.weights,
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": [self._losses, self._effective, self._updates, *self._records, self._drift],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.module.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.coach.load_state_dict(state["coach"])
        self.curriculum.load_state_dict(state["curriculum"])
        self.initial = state["initial"]
        self.weights.copy_(state["weights"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._losses, self._effective, self._updates, *rest = state["epoch"]
        self._records, self._drift = list(rest[:2]), rest[2]
