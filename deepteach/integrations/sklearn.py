"""`TeachClassifier`: taught training behind scikit-learn's interface."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from deepteach.core.predict import logits
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.training.api import Result, train


class TeachClassifier(ClassifierMixin, BaseEstimator):
    """A classifier that learns from doubtful labels with the help of a trusted set.

    Args:
        model: an `nn.Module` (copied, never changed), or the name of a student ("mlp",
            "cnn", "resnet8", ...); None takes "mlp" for tables and "cnn" for images.
        teacher: the name of a method, or a teacher.
        internal: the layer whose input the teacher reads; the last linear layer unless given.
        valid_fraction: the stratified part of X split off as trusted where `fit` gets no
            X_valid, with a warning.
        suspect_threshold: samples below this weight (1 is the mean) are suspects.
        settings: any other field of `deepteach.config.Config`.

    Attributes:
        classes_, n_features_in_: as in scikit-learn.
        module_, teacher_: the trained student and teacher.
        sample_weights_: `(n,)` final weight of each row of X, mean 1; NaN for rows that
            were split off as trusted.
        suspect_indices_: rows of X that the teacher does not trust, the least trusted first.
        history_: a dict per epoch.
    """

    def __init__(
        self,
        model: nn.Module | str | None = None,
        *,
        teacher: str | AbstractTeacher = "deep",
        internal: str | None = None,
        epochs: int = 60,
        batch_size: int = 64,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        interval: int | None = None,
        window: int | None = None,
        valid_fraction: float = 0.1,
        suspect_threshold: float = 0.5,
        device: str = "auto",
        random_state: int | None = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.teacher = teacher
        self.internal = internal
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.interval = interval
        self.window = window
        self.valid_fraction = valid_fraction
        self.suspect_threshold = suspect_threshold
        self.device = device
        self.random_state = random_state
        self.settings = settings

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        X_valid: Any = None,
        y_valid: Any = None,
    ) -> TeachClassifier:
        """Train on (X, y), teaching from the trusted (X_valid, y_valid)."""
        if (X_valid is None) != (y_valid is None):
            raise ConfigError("X_valid and y_valid go together: give both or neither")
        checked, labels = validate_data(
            self, X, y, allow_nd=True, dtype="numeric", ensure_min_samples=2
        )
        x = np.asarray(checked)
        check_classification_targets(labels)
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only ({self.classes_[0]!r}): give two or more")
        rows = np.arange(len(x))
        if X_valid is None:
            rows, held = self._split(encoded)
            trusted, truth = x[held], encoded[held]
        else:
            valid = validate_data(self, X_valid, allow_nd=True, dtype="numeric", reset=False)
            trusted = np.asarray(valid)
            truth = self._encode(np.asarray(y_valid))
        result = self._train(x[rows], encoded[rows], trusted, truth)
        self.module_, self.teacher_ = result.model, result.coach.teacher
        self.history_, self.summary_ = result.metrics, result.summary
        self.sample_weights_ = np.full(len(x), np.nan)
        self.sample_weights_[rows] = result.trust.weight.numpy()
        order = np.argsort(self.sample_weights_, kind="stable")
        below = self.sample_weights_[order] < self.suspect_threshold
        self.suspect_indices_ = order[below]
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """`(n, classes)` probabilities in the order of `classes_`."""
        check_is_fitted(self)
        x = validate_data(self, X, allow_nd=True, dtype="numeric", reset=False)
        inputs = torch.as_tensor((x - self._mean) / self._scale, dtype=torch.float32)
        scores = logits(self.module_, inputs)[:, : len(self.classes_)]
        return scores.double().softmax(1).numpy()

    def predict(self, X: Any) -> NDArray:
        """`(n,)` labels."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _encode(self, labels: NDArray) -> NDArray[np.int64]:
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(f"y_valid holds labels that y does not: {unknown[:5].tolist()}")
        return np.searchsorted(self.classes_, labels)

    def _split(self, encoded: NDArray) -> tuple[NDArray, NDArray]:
        """Every k-th row of each class is trusted; needs no more than one row a class."""
        warnings.warn(
            "no X_valid: a part of X is taken as trusted; its labels are believed as they are",
            UserWarning,
            stacklevel=3,
        )
        stride = max(2, round(1 / self.valid_fraction))
        order = check_random_state(self.random_state).permutation(len(encoded))
        held = np.concatenate(
            [order[encoded[order] == c][::stride] for c in range(len(self.classes_))]
        )
        rest = np.setdiff1d(np.arange(len(encoded)), held)
        return (rest if len(rest) else held), np.sort(held)

    def _train(self, x: NDArray, y: NDArray, trusted: NDArray, truth: NDArray) -> Result:
        x, trusted = np.asarray(x, np.float64), np.asarray(trusted, np.float64)
        axes = (0,) if x.ndim == 2 else (0, *range(2, x.ndim))
        self._mean = x.mean(axes, keepdims=True)
        self._scale = x.std(axes, keepdims=True)
        self._scale[self._scale == 0] = 1.0
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        model = self.model
        if model is None:
            model = "mlp" if x.ndim == 2 else "cnn"
        return train(
            copy.deepcopy(model) if isinstance(model, nn.Module) else model,
            ((x - self._mean) / self._scale, y),
            ((trusted - self._mean) / self._scale, truth),
            teacher=copy.deepcopy(self.teacher),
            classes=max(2, len(self.classes_)),
            internal=self.internal,
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(y)),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            interval=self.interval,
            window=self.window,
            device=self.device,
            seed=int(seed),
            baseline=False,
            **(self.settings or {}),
        )
