"""`TeachClassifier` and `TeachRegressor`: taught training behind scikit-learn's interface."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from deepteach.core.predict import logits
from deepteach.core.teacher import AbstractTeacher
from deepteach.data.dataset import Data, from_arrays
from deepteach.data.inputs import RawInputs
from deepteach.data.ranges import one_is_standardised
from deepteach.data.splits import stratified_split
from deepteach.data.tables.frames import columns_of, index_elsewhere, refuse_other_columns
from deepteach.data.tasks.base import Task
from deepteach.data.tasks.binary import Binary
from deepteach.data.tasks.classification import Classification
from deepteach.data.tasks.multilabel import MultiLabel
from deepteach.data.tasks.registry import AUTO
from deepteach.data.tasks.regression import Regression
from deepteach.data.validation import as_text, as_whole, label_array
from deepteach.errors import ConfigError
from deepteach.integrations.estimator_checks import (
    refuse_missing,
    refuse_missing_cells,
    refuse_mixed,
    refuse_split,
    targets_of,
)
from deepteach.training.api import configured, run
from deepteach.training.input_forms import bytes_are_whole, form_for
from deepteach.training.result import Result


class TaughtEstimator(BaseEstimator):
    """What the two estimators have in common.

    Args:
        model: an `nn.Module` (copied, never changed), or the name of a student ("mlp",
            "cnn", "resnet8", ...); None takes "mlp" for tables and "cnn" for images. A student
            gets X normalised, and as images where it has three axes. A module that cannot take
            that gets X as it is, as from `train`: series `(n, c, t)`, or whole numbers (tokens,
            of bytes, too), which a module with an embedding gets first.
        teacher: the name of a method, or a teacher.
        internal: the layer whose input the teacher reads; the last linear layer unless given.
        epochs: passes through X.
        batch_size: samples of a step.
        lr: the student's learning rate at the start.
        momentum: of SGD.
        weight_decay: L2 regularisation of the student.
        interval: steps between updates of the teacher (20 or fewer unless given).
        window: steps that the meta-gradient looks back through.
        valid_fraction: the stratified part of X split off as trusted where `fit` gets no
            X_valid, with a warning.
        suspect_threshold: samples below this weight (1 is the mean) are suspects.
        device: "auto", "cpu", "cuda", ...
        random_state: of everything that is drawn; None draws it anew in every `fit`.
        settings: any other field of `deepteach.training.config.Config`.

    Attributes:
        n_features_in_: as in scikit-learn.
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

    @staticmethod
    def _look_at(X: Any, y: Any, X_valid: Any, y_valid: Any) -> None:
        """Raises ConfigError, or DataError for X with missing cells.

        Warns of rows that are another pair by place than by index.
        """
        for name, x, labels in (("", X, y), ("_valid", X_valid, y_valid)):
            if index_elsewhere(x, labels):
                warnings.warn(
                    f"X{name} and y{name} have the same index in another order; rows and labels go "
                    f"together by their place, as everywhere in scikit-learn: give y{name}.loc"
                    f"[X{name}.index] if they belong together by the index",
                    UserWarning,
                    stacklevel=3,
                )
        if (X_valid is None) != (y_valid is None):
            raise ConfigError("X_valid and y_valid go together: give both or neither")
        refuse_other_columns(columns_of(y), "y", y_valid, "y_valid")
        refuse_missing_cells(X, "X")
        refuse_missing_cells(X_valid, "X_valid")

    def _refuse_settings(self) -> None:
        """Raises ConfigError: what no training would look at before its end."""
        threshold = self.suspect_threshold
        if not isinstance(threshold, int | float | np.number) or not threshold >= 0:
            raise ConfigError(f"suspect_threshold must be a number of 0 or more, got {threshold!r}")

    classes_: NDArray[Any]

    def _taught(
        self,
        kind: type[Task],
        x: NDArray,
        encoded: NDArray,
        X_valid: Any,
        truth: NDArray | None,
        classes: int | None,
    ) -> None:
        """Train on checked rows and their labels, as `kind` reads them, and keep what came out."""
        self._refuse_settings()
        asked = (self.settings or {}).get("task")
        if asked == Binary.name and kind is Classification and classes == 2:
            kind = Binary
        if asked not in (None, AUTO, kind.name):
            raise ConfigError(f"settings say task={asked}, and y is of {kind.name}: leave it out")
        seed = self._seed()
        whole = bytes_are_whole(self.model, self.internal, x)
        x = as_whole(x) if whole else x
        rows, held = np.arange(len(x)), np.arange(0)
        if truth is None:
            rows, held = self._split(kind(), encoded, seed)
            trusted, truth = x[held], encoded[held]
        else:
            valid = validate_data(self, X_valid, allow_nd=True, dtype="numeric", reset=False)
            trusted = as_whole(np.asarray(valid)) if whole else np.asarray(valid)
            if one_is_standardised(x, trusted):
                warnings.warn(
                    "the columns of X have mean 0 and deviation 1, and those of X_valid have not: "
                    "in a Pipeline say transform_input=['X_valid'], so that it is scaled as X is",
                    UserWarning,
                    stacklevel=3,
                )
        made = partial(
            from_arrays,
            *(x[rows], encoded[rows], trusted, truth),
            rows_train=rows,
            rows_valid=held if X_valid is None else None,
            classes=classes,
            label_names=None if classes is None else [as_text(one) for one in self.classes_],
            seed=seed,
            task=kind.name,
        )
        data, as_given = form_for(self.model, self.internal, x, made)
        result = self._train(data, seed)
        self._inputs, self._task = RawInputs.of(data, as_given=as_given), result.task
        self.module_, self.teacher_ = result.model, result.coach.teacher
        self.history_, self.summary_ = result.metrics, result.summary
        self.sample_weights_ = np.full(len(x), np.nan)
        self.sample_weights_[result.trust.rows.numpy()] = result.trust.weight.numpy()
        order = np.argsort(self.sample_weights_, kind="stable")
        below = self.sample_weights_[order] < self.suspect_threshold
        self.suspect_indices_ = order[below]

    def _scores(self, X: Any) -> Tensor:
        """`(n, outputs)` what the student says of raw rows.

        On the CPU in float64: in float32 a prediction would depend, in its last digits, on the rows
        beside it.
        """
        check_is_fitted(self)
        checked = validate_data(self, X, allow_nd=True, dtype="numeric", reset=False)
        # As the training samples came to the student.
        inputs = self._inputs(checked)
        module = self.module_
        on_cpu = all(leaf.device.type == "cpu" for leaf in module.parameters())
        if on_cpu:
            wide = inputs.double() if inputs.is_floating_point() else inputs
            try:
                return logits(copy.deepcopy(module).double(), wide)
            except RuntimeError:
                pass  # a module of the user's own may make float32 numbers itself
        return logits(self.module_, inputs)

    def _split(self, task: Task, encoded: NDArray, seed: int) -> tuple[NDArray, NDArray]:
        """(rows to train on, trusted rows), each kind of label in its share."""
        fraction, count = self.valid_fraction, len(encoded)
        if not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
            raise ConfigError(
                f"valid_fraction must be a number within (0, 1), got {fraction!r}: the share of X "
                "that is trusted, or give X_valid and y_valid"
            )
        warnings.warn(
            "no X_valid: a part of X is taken as trusted; its labels are believed as they are",
            UserWarning,
            stacklevel=4,
        )
        size = min(max(1, round(fraction * count)), count - 1)
        rest, held = stratified_split(task.strata(encoded), size, seed, least=1)
        refuse_split(task, encoded, held, getattr(self, "classes_", None))
        return rest, held

    def _seed(self) -> int:
        seed = self.random_state
        if isinstance(seed, int | np.integer):
            return int(seed)
        return int(check_random_state(seed).randint(2**31 - 1))

    def _train(self, data: Data, seed: int) -> Result:
        model = copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self.model
        if model is None:
            model = "cnn" if data.is_image else "mlp"
        settings: dict[str, Any] = {
            "data": "arrays",
            "internal": self.internal,
            "epochs": self.epochs,
            "batch_size": min(self.batch_size, len(data.y_train)),
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "interval": self.interval,
            "window": self.window,
            "device": self.device,
            "seed": seed,
            "task": data.task.name,
            "baseline": False,
            **(self.settings or {}),
        }
        teacher = copy.deepcopy(self.teacher)
        config, own = configured(model, teacher, settings)
        return run(config, data, **own)


class TeachClassifier(ClassifierMixin, TaughtEstimator):
    """A classifier that learns from doubtful labels with the help of a trusted set.

    Classes of any kind, or several labels a sample as rows `(n, labels)` of 0 and 1. A module may
    give one logit for two classes. Arguments
    and attributes are those of `TaughtEstimator`, and `classes_`, as in scikit-learn.
    """

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        X_valid: Any = None,
        y_valid: Any = None,
    ) -> TeachClassifier:
        """Train on (X, y), teaching from the trusted (X_valid, y_valid).

        Args:
            X: `(n, d)` or with more axes, numbers.
            y: `(n,)` labels of any kind, or `(n, labels)` of 0 and 1, possibly wrong.
            X_valid: trusted samples, as X.
            y_valid: their labels, among those of y.

        Raises:
            ValueError: of scikit-learn's own checks.
            DataError: data that cannot be trained on.
            ConfigError: one trusted part without the other, or settings that do not go together.
        """
        self._look_at(X, y, X_valid, y_valid)
        y, y_valid = (v.toarray() if hasattr(v, "toarray") else v for v in (y, y_valid))
        given = label_array(y, "y")
        several = given.ndim == 2 and given.shape[1] > 1
        refuse_missing(given, "y")
        if not several:
            refuse_mixed(given, "y")
        checked, labels = validate_data(
            self, X, y, allow_nd=True, dtype="numeric", ensure_min_samples=2, multi_output=several
        )
        x, labels = np.asarray(checked), np.asarray(labels)
        check_classification_targets(labels)
        if several:
            if type_of_target(labels) != "multilabel-indicator":
                raise ValueError("y has several columns: expected rows of 0 and 1, a label each")
            self.classes_ = np.arange(labels.shape[1])
            self._held = -1 if (labels == -1).any() else 0
            truth = None if y_valid is None else label_array(y_valid, "y_valid")
            if truth is not None:
                refuse_missing(truth, "y_valid")
            self._taught(MultiLabel, x, labels.astype(np.float32), X_valid, truth, None)
            return self
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only ({self.classes_[0]!r}): give two or more")
        truth = None if y_valid is None else self._encode(label_array(y_valid, "y_valid"))
        self._taught(Classification, x, encoded, X_valid, truth, max(2, len(self.classes_)))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """`(n, classes)` probabilities in the order of `classes_`. Raises NotFittedError."""
        scores = self._scores(X)
        return self._task.probabilities(scores).numpy()

    def predict(self, X: Any) -> NDArray:
        """`(n,)` labels, of the kind of y, or `(n, labels)`. Raises NotFittedError."""
        check_is_fitted(self)
        found = self.predict_proba(X)
        if not self._task.exclusive:
            return np.where(found > 0.5, 1, self._held)
        return self.classes_[found.argmax(1)]

    def _encode(self, labels: NDArray) -> NDArray[np.int64]:
        refuse_missing(labels, "y_valid")
        refuse_mixed(labels, "y_valid")
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(f"y_valid holds labels that y does not: {unknown[:5].tolist()}")
        return np.searchsorted(self.classes_, labels)


class TeachRegressor(RegressorMixin, TaughtEstimator):
    """A regressor that learns from doubtful targets with the help of a trusted set.

    Targets are standardised for the student; predictions are in the unit of y. Arguments and
    attributes are those of `TaughtEstimator`.
    """

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        X_valid: Any = None,
        y_valid: Any = None,
    ) -> TeachRegressor:
        """Train on (X, y), teaching from the trusted (X_valid, y_valid).

        Args:
            X: `(n, d)` or with more axes, numbers.
            y: `(n,)` or `(n, targets)` numbers, some of them possibly wrong.
            X_valid: trusted samples, as X.
            y_valid: their targets.

        Raises:
            ValueError: of scikit-learn's own checks.
            DataError: data that cannot be trained on.
            ConfigError: one trusted part without the other, or settings that do not go together.
        """
        self._look_at(X, y, X_valid, y_valid)
        refuse_missing(label_array(y, "y"), "y", "target")
        checked, targets = validate_data(
            self, X, y, allow_nd=True, dtype="numeric", ensure_min_samples=2, y_numeric=True,
            multi_output=True,
        )  # fmt: skip
        rows = targets_of(targets, "y").reshape(len(targets), -1)
        truth = None if y_valid is None else targets_of(y_valid, "y_valid")
        self._taught(Regression, np.asarray(checked), rows, X_valid, truth, None)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """`(n,)` or `(n, targets)` in the unit of y. Raises NotFittedError."""
        scores = self._scores(X)
        return self._task.given_back(self._task.predicted(scores))
