"""What a gain is compared with, at equal steps.

First what a user would try without any teacher; then a teacher with one part of its signal
taken away. Draws are named by (seed, step), so a resumed run repeats them.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from deepteach.baselines import log_probability
from deepteach.course import Course, Room
from deepteach.errors import ConfigError
from deepteach.evaluate import logits
from deepteach.features import Feature, Snapshot, TrustedProbe
from deepteach.rundir import Weights
from deepteach.streams import stream
from deepteach.teacher import AbstractTeacher


class FixedProbe(AbstractTeacher):
    """w = the trusted probe's probability of the given label, learned by no meta-gradient.

    The control of the default teacher, which reads the same probe: what is gained beyond it
    is due to teaching. Until the first fit all samples weigh alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.probe = TrustedProbe()

    def forward(self, snapshot: Snapshot) -> Tensor:
        return self.probe(snapshot)[:, 0]

    def fit(self, trusted: Snapshot) -> None:
        self.probe.fit(trusted)

    @property
    def reads_trusted(self) -> bool:
        return True


class GeneralisedCrossEntropy(AbstractTeacher):
    """The loss (1 - p_y^q) / q, as the weight p_y^q (Zhang & Sabuncu, NeurIPS 2018).

    Its gradient is p_y^q times that of -log p_y, so a constant weight p_y^q, not normalised,
    trains exactly as it does. q = 0.7 as published; the truncated variant is not here.
    """

    normalised = False

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        if not (math.isfinite(q) and 0 < q <= 1):
            raise ConfigError(f"q must be above 0 and at most 1, got {q}")
        self.q = q

    def forward(self, snapshot: Snapshot) -> Tensor:
        return self.q * log_probability(snapshot)


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


class Given(AbstractTeacher):
    """Weights that `Frozen` hands over before each step; elsewhere all samples weigh alike."""

    per_sample = False

    def __init__(self) -> None:
        super().__init__()
        self.log_weights: Tensor | None = None

    def forward(self, snapshot: Snapshot) -> Tensor:
        if self.log_weights is None or not torch.is_grad_enabled():
            return torch.zeros_like(snapshot.losses)
        return self.log_weights.to(snapshot.losses)


class Frozen(Course):
    """Every sample keeps the mean weight that it had in a finished run.

    Raises:
        ConfigError: at the first step, where that run had other samples or labels.
    """

    def __init__(self, teacher: Given, weights: Weights) -> None:
        self.teacher, self.weights = teacher, weights
        self.checked = False

    def choose(self, room: Room, rows: Tensor) -> Tensor:
        if not self.checked:
            given = [str(label) for label in room.y.tolist()]
            if given != self.weights.given.tolist():
                raise ConfigError(
                    "the weights are of a run with other training labels: name one with the same "
                    "data, noise and seed as teacher_from"
                )
            self.checked = True
        weights = torch.from_numpy(self.weights.weight)[rows.cpu()]
        self.teacher.log_weights = weights.log().to(room.x.device)
        return rows


class TrustedOnly(Course):
    """The trusted set alone."""

    def rows(self, room: Room) -> Tensor:
        return len(room.y) + torch.arange(len(room.y_valid))


class Merged(Course):
    """The training and the trusted set as one."""

    def rows(self, room: Room) -> Tensor:
        return torch.arange(len(room.y) + len(room.y_valid))


class FineTuned(Course):
    """The training set, then the trusted set for the last `share` of the epochs.

    With the default 1/3 the change falls on the default schedule's first rate drop.
    """

    def __init__(self, share: float = 1 / 3) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"the share of fine-tuning must lie within (0, 1), got {share}")
        self.share = share

    def rows(self, room: Room) -> Tensor:
        if room.progress < 1 - self.share - 1e-9:
            return torch.arange(len(room.y))
        return len(room.y) + torch.arange(len(room.y_valid))


class Pruned(Course):
    """cleanlab: find label issues by cross-validation, drop them, train on the rest.

    Northcutt et al., Confident Learning, JAIR 2021. Each of `folds` trainings of the same
    length predicts the part that it has not seen (stratified by given label); the reported
    training follows. Trusted samples are not used. The run costs `folds` + 1 trainings.

    Raises:
        ConfigError: cleanlab is not installed, or there are fewer than 2 folds.
    """

    def __init__(self, folds: int = 5) -> None:
        if importlib.util.find_spec("cleanlab") is None:
            raise ConfigError(
                "method cleanlab needs the package cleanlab: pip install 'deepteach[compare]'"
            )
        if folds < 2:
            raise ConfigError(f"cross-validation needs 2 folds or more, got {folds}")
        self.folds, self.episodes = folds, folds + 1
        self.probabilities: Tensor | None = None
        self.kept: Tensor | None = None

    def rows(self, room: Room) -> Tensor:
        if self.kept is not None:
            return self.kept
        return (self._fold(room) != room.episode).nonzero().squeeze(1)

    def episode_end(self, room: Room) -> None:
        if self.kept is not None:
            return
        held = self._fold(room) == room.episode
        scores = logits(room.module, room.x[held.to(room.x.device)]).softmax(1).double()
        if self.probabilities is None:
            self.probabilities = torch.zeros(len(held), scores.shape[1], dtype=torch.float64)
        self.probabilities[held] = scores
        if room.episode == self.folds - 1:
            wrong = torch.from_numpy(_issues(room.y.cpu(), self.probabilities))
            self.kept = (~wrong).nonzero().squeeze(1)
            room.weights.copy_((~wrong).to(room.weights))

    def _fold(self, room: Room) -> Tensor:
        """`(n,)` part of each training sample; every class is spread evenly."""
        labels = room.y.cpu()
        order = torch.randperm(len(labels), generator=stream(room.seed, "folds"))
        order = order[torch.argsort(labels[order], stable=True)]
        fold = torch.empty_like(labels)
        fold[order] = torch.arange(len(labels)) % self.folds
        return fold

    def state_dict(self) -> dict[str, Any]:
        return {"probabilities": self.probabilities, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.probabilities, self.kept = state["probabilities"], state["kept"]


def _issues(labels: Tensor, probabilities: Tensor) -> Any:
    from cleanlab.filter import find_label_issues

    classes = int(labels.max()) + 1  # cleanlab takes no column without a label
    seen = probabilities[:, :classes]
    seen = seen / seen.sum(1, keepdim=True)
    return find_label_issues(labels.numpy(), seen.numpy(), n_jobs=1)
