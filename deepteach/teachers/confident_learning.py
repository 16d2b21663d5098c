"""cleanlab: find label issues by cross-validation, prune, retrain."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from deepteach.core.predict import logits
from deepteach.data.rows import select
from deepteach.errors import ConfigError
from deepteach.teachers.curriculum import Curriculum, TrainingView
from deepteach.teachers.folds import folds_of
from deepteach.teachers.method import Method, recipe
from deepteach.teachers.uniform import Uniform


class Pruned(Curriculum):
    """cleanlab: find label issues by cross-validation, drop them, train on the rest.

    Northcutt et al., Confident Learning, JAIR 2021. Each of `folds` trainings of the same
    length predicts the part that it has not seen; the reported training follows. Trusted
    samples are not used. The run costs `folds` + 1 trainings.

    The parts are those of scikit-learn's `StratifiedKFold`, by given label. The tables of
    docs/methods.md and docs/results.md were made with parts drawn by hand: as even, but others.

    Raises:
        ConfigError: cleanlab is not installed, there are fewer than 2 folds, or, when the
            training begins, more folds than any class has samples.
    """

    reads_classes = True

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
        self._parts: Tensor | None = None

    def rows(self, training: TrainingView) -> Tensor:
        if self.kept is not None:
            return self.kept
        return (self._fold(training) != training.episode).nonzero().squeeze(1)

    def episode_end(self, training: TrainingView) -> None:
        if self.kept is not None:
            return
        held = self._fold(training) == training.episode
        scores = logits(training.module, select(training.x, held)).softmax(1).double()
        if self.probabilities is None:
            self.probabilities = torch.zeros(len(held), scores.shape[1], dtype=torch.float64)
        self.probabilities[held] = scores
        if training.episode == self.folds - 1:
            wrong = torch.from_numpy(_issues(training.y.cpu(), self.probabilities))
            self.kept = (~wrong).nonzero().squeeze(1)
            training.weights.copy_((~wrong).to(training.weights))

    def ranking(self, training: TrainingView) -> Tensor | None:
        """cleanlab's label quality: the out-of-fold probability of the given label."""
        if self.probabilities is None:
            return None
        return self.probabilities.gather(1, training.y.cpu()[:, None]).squeeze(1)

    def _fold(self, training: TrainingView) -> Tensor:
        """`(n,)` part of each training sample; every class is spread evenly."""
        if self._parts is None:
            self._parts = folds_of(training.y.cpu(), self.folds, training.seed)
        return self._parts

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


@recipe("cleanlab")
def cleanlab(folds: int = 5) -> Method:
    """Find label issues by cross-validation, prune, retrain."""
    return Method(Uniform(), curriculum=Pruned(folds))
