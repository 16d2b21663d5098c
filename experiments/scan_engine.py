"""One problem, trained twice: in plain torch with a moved teacher, and by a Coach."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from black_box import Difference, differences
from scan_recipe import BATCH, FEATURES, Loss, Net, Recipe
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import DeepTeachError

WINDOWS = (1, 2, 8)
EXACT, REFUSED, UNTRAINABLE, FAILED = "exact", "refused", "cannot be trained", "failed"
BOUND = 1e-6
"""Relative error up to which a meta-gradient is called exact."""

START = torch.tensor([0.4, -0.3], dtype=torch.float64)
ALONG = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
PLACES = torch.randn(32, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

Batch = tuple[Any, Any]
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


class ByPlace(dt.AbstractTeacher):
    """Two numbers that weigh a sample by its place in the step: no student moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(START.clone())

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        assert snapshot.index is not None
        return self.weigh(self.k, snapshot.internal, snapshot.index)

    def weigh(self, k: Tensor, internal: Tensor, places: Tensor) -> Tensor:
        """Log weights; the plain loop calls this as well."""
        return PLACES[places].to(internal) @ k.to(internal)

    def shape(self, k: Tensor, logits: Tensor) -> Tensor:
        """The logits that the loss is given."""
        return logits

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        return loss(self.shape(self.k, logits), snapshot.labels)


def momentum(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


@dataclass
class Problem:
    """A student, its steps (each of one or several parts), and the trusted batch."""

    build: Callable[[], Net]
    loss: Loss
    steps: Sequence[Sequence[Batch]]
    valid: Batch
    window: int
    teacher: Callable[[], ByPlace] = ByPlace
    optimizer: Optimizer = momentum
    evaluated: bool = True
    """The trusted batch is seen by the module in eval mode."""
    seed: int = 0
    axes: Tensor = field(default_factory=lambda: torch.eye(len(START), dtype=torch.float64))
    """Directions of the teacher along which the two are compared."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the Coach; `through_weights` and `clip_norm` are heeded by the plain loop."""

    def end(self, moved: Tensor) -> Tensor:
        """The trusted loss after plain training, the teacher moved where the window begins."""
        torch.manual_seed(self.seed)
        module, teacher = self.build(), self.teacher()
        optimizer, begin = self.optimizer(module), len(self.steps) - self.window
        for t, parts in enumerate(self.steps):
            k = START + moved if t >= begin else START
            optimizer.zero_grad()
            places = _places(parts)
            if len(parts) == 1:
                self._losses(module, teacher, k, parts[0], places[0])[0].backward()
            else:
                # Their weights are known beforehand, so each part can be passed back by itself.
                kept = torch.cat([_counted(y) for _, y in parts])
                mass = teacher.weigh(k, k.new_zeros(BATCH, 1), torch.cat(places))[kept].logsumexp(0)
                for part, own in zip(parts, places, strict=True):
                    value, log_weight = self._losses(module, teacher, k, part, own)
                    (value * (log_weight - mass).exp()).backward()
            self._clip(module)
            optimizer.step()
        module.train(not self.evaluated)
        with torch.no_grad():
            x, y = self.valid
            return self.loss(module(x), y)[_counted(y)].mean()

    def _losses(
        self, module: Net, teacher: ByPlace, k: Tensor, part: Batch, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum w l / sum w, log sum w) of a part."""
        x, y = part
        internal = module.internal(x)
        logits = module.head(internal)
        seen = internal if self.options.get("through_weights") else internal.detach()
        log_weights = teacher.weigh(k, seen, places)[_counted(y)]
        losses = self.loss(teacher.shape(k, logits), y)[_counted(y)]
        mass = log_weights.logsumexp(0)
        return ((log_weights - mass).exp() * losses).sum(), mass

    def meta_gradient(self) -> Tensor:
        """The same by a Coach."""
        torch.manual_seed(self.seed)
        module, teacher = self.build(), self.teacher()
        optimizer = self.optimizer(module)
        student = dt.Student(module, "head")
        coach = dt.Coach(
            student, optimizer, teacher, interval=len(self.steps), window=self.window,
            loss=self.loss, **self.options,
        )  # fmt: skip
        for parts in self.steps:
            optimizer.zero_grad()
            for (x, y), places in zip(parts, _places(parts), strict=True):
                coach.loss(x, y, index=places).backward()
            self._clip(module)
            optimizer.step()
        module.train(not self.evaluated)
        return coach.meta_gradient(*self.valid)["k"]

    def _clip(self, module: nn.Module) -> None:
        if "clip_norm" in self.options:
            nn.utils.clip_grad_norm_(module.parameters(), self.options["clip_norm"])

    def differences(self) -> Difference:
        return differences(self.end, self.axes)


def _counted(labels: Any) -> Tensor:
    """Samples that count: a negative class leaves one out (docs/objectives.md)."""
    kept = torch.ones(labels.shape, dtype=torch.bool) if labels.is_floating_point() else labels >= 0
    return kept.flatten(1).any(1) if kept.dim() > 1 else kept


def _places(parts: Sequence[Batch]) -> list[Tensor]:
    """Of each part's samples in the step."""
    count = len(parts[0][0])
    return [torch.arange(count * i, count * (i + 1)) for i in range(len(parts))]


@dataclass(frozen=True)
class Finding:
    """What became of one problem.

    `error` is relative to the gradient's norm, `doubt` how sure the differences are of theirs.
    """

    outcome: str
    error: float = float("nan")
    doubt: float = float("nan")
    size: float = float("nan")
    said: str = ""


def examine(problem: Problem) -> Finding:
    """The Coach's meta-gradient against black-box differences, or what was said instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem.end(torch.zeros_like(START))
        except (RuntimeError, ValueError, TypeError) as error:
            return Finding(UNTRAINABLE, said=one_line(error))
        try:
            found = problem.meta_gradient()
        except DeepTeachError as error:
            return Finding(REFUSED, said=one_line(error))
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            return Finding(FAILED, said=f"{type(error).__name__}: {one_line(error)}")
        true = problem.differences()
    error, size = (problem.axes @ found - true.gradient).norm(), true.gradient.norm()
    # What the teacher does not reach at all has no relative error: NaN, which nothing accepts.
    return Finding(EXACT, float(error / size), true.doubt / float(size or torch.nan), float(size))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def problem_of(recipe: Recipe, window: int, warm_up: int = 2, scale: float = 1.0) -> Problem:
    """A window of steps on a recipe's student, after two steps that fill the momentum."""
    g = torch.Generator().manual_seed(3)

    def batch() -> Batch:
        x = scale * torch.randn(BATCH, FEATURES, generator=g, dtype=torch.float64)
        return x, recipe.labels(BATCH, g)

    steps = [[batch()] for _ in range(warm_up + window)]
    return Problem(lambda: Net(recipe), recipe.loss, steps, batch(), window, axes=ALONG)
