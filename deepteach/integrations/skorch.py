"""`TeachNet`: taught training behind skorch's NeuralNetClassifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deepteach.core.batches.ignored import IGNORED, integral
from deepteach.core.coach import Coach
from deepteach.core.losses import MassedLoss
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError, DataError
from deepteach.integrations.own_loss import agrees, another, another_loss
from deepteach.integrations.teaching import OnDevice, Teaching, needed
from deepteach.rng import untouched
from deepteach.runs.serialization import from_bytes, to_bytes

needed("skorch", "skorch")

from skorch import NeuralNetClassifier  # noqa: E402
from skorch.dataset import unpack_data  # noqa: E402
from skorch.utils import to_tensor  # noqa: E402


class TeachNet(NeuralNetClassifier):
    """A skorch `NeuralNetClassifier` whose samples are weighed by a teacher.

    All arguments of the classifier stand; each step's loss is the weighted mean of what
    `criterion` says of a sample. The history has `effective_sample_size`, `trusted_loss` and
    `trusted_accuracy` of an epoch's last update. In copies, pickles, `partial_fit` and grid
    searches the coach goes on or begins anew as the net itself does; `f_coach` of `save_params`,
    `load_params` and `Checkpoint` is the coach's file.

    Args:
        arguments, settings: of the classifier.
        trusted: `(X, y)` as `fit` takes them, or a Dataset; its labels are right.
        teacher: copied; see `Teaching` for this and the next three.
        interval: optimizer steps between updates of the teacher.
        window: steps that the meta-gradient looks back through.
        student: a layer's name, or a function of the module to a `dt.Student`.
        trusted_batch_size: trusted samples of an update.
        coach_options: further arguments of `dt.Coach`: `loss`, `adjoint`, ...

    Attributes:
        coach_: of the module and optimizer at hand.

    Raises:
        ConfigError: when the net is initialized: what cannot be taught exactly, with the remedy.
    """

    def __init__(
        self,
        *arguments: Any,
        trusted: Any = None,
        teacher: AbstractTeacher | None = None,
        interval: int | None = None,
        window: int | None = None,
        student: str | Callable[[nn.Module], Student] | None = None,
        trusted_batch_size: int = 256,
        coach_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.trusted = trusted
        self.teacher = teacher
        self.interval = interval
        self.window = window
        self.student = student
        self.trusted_batch_size = trusted_batch_size
        self.coach_options = coach_options
        super().__init__(*arguments, **settings)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":  # a setting, and no part of the net that skorch initializes
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def initialize_optimizer(self, *arguments: Any, **settings: Any) -> TeachNet:
        """The classifier's, and a coach around it."""
        super().initialize_optimizer(*arguments, **settings)
        self._attach()
        return self

    def _attach(self) -> None:
        if self.trusted is None:
            raise ConfigError("TeachNet needs trusted samples: give trusted=(X, y)")
        if isinstance(self.trusted, np.ndarray | Tensor | Mapping):
            raise ConfigError("trusted has no labels: give trusted=(X, y), or a Dataset of pairs")
        pair = isinstance(self.trusted, tuple | list)
        data: Any = self.get_dataset(*self.trusted) if pair else self.get_dataset(self.trusted)
        loader = DataLoader(data, self.trusted_batch_size, shuffle=True)
        self.trusted_ = OnDevice(loader, self._pair)
        options = self.coach_options or {}
        teaching = Teaching(self.teacher, self.interval, self.window, self.student, options)
        host: dict[str, Any] = {}
        if "loss" not in options:
            host["loss"] = sample_loss(self.criterion_)
        self.coach_: Coach = teaching.coach(self.module_, self.optimizer_, **host)
        self.coach_.trust(self.trusted_)
        self.compared_ = "loss" in options

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """The classifier's; its length tells how often the teacher is to be taught."""
        iterator = super().get_iterator(dataset, training=training)
        if training and self.interval is None and hasattr(iterator, "__len__"):
            steps = len(iterator) * self.max_epochs
            self.coach_.interval = max(self.coach_.window, Teaching().interval_of(steps))
            clock = self.coach_.recorder.clock
            if clock.total is None:
                self.coach_.recorder.clock = replace(clock, total=steps)
        return iterator

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """The coach's loss of a batch, and its gradients."""
        self._set_training(True)
        inputs, labels = self._pair(batch)
        if fit_params:
            if not isinstance(inputs, Mapping):
                raise ConfigError(
                    f"fit was given {', '.join(fit_params)} for the module: put them into X as a "
                    "mapping of its keyword arguments"
                )
            inputs = self._merge_x_and_fit_params(inputs, fit_params)
        loss = self.coach_.loss(inputs, labels)
        seen = self.coach_.recorder.pending
        assert seen is not None
        if not self.compared_:
            self._compare(seen.snapshot.logits, labels, inputs)
        loss.backward()
        return {"loss": loss, "y_pred": seen.snapshot.logits}

    def _compare(self, logits: Tensor, labels: Tensor, inputs: Any) -> None:
        """Raises ConfigError: what the coach is given is not the mean that `get_loss` takes."""
        used = self.criterion_
        self.criterion_ = criterion = getattr(used, "_orig_mod", used)  # as in `sample_loss`
        left_out = getattr(criterion, "ignore_index", IGNORED)
        losses, z = self.coach_.objective.loss, logits.detach().requires_grad_()
        try:
            with untouched():
                for given in (labels, another(labels, z.shape[-1 if z.dim() < 2 else 1], left_out)):
                    own = self.get_loss(z, given, X=inputs, training=True)
                    if not agrees(losses, own, z, given):
                        raise another_loss(type(self).__name__)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            raise another_loss(type(self).__name__) from error  # a get_loss that reads other things
        finally:
            self.criterion_ = used
        self.compared_ = True

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """A step of the optimizer, and an update of the teacher where one is due."""
        step: Any = super().train_step(batch, **fit_params)
        self.coach_.update(self.trusted_)
        return step

    def on_epoch_end(self, net: Any, *data: Any, **rest: Any) -> None:
        """Note what the teacher's last update said."""
        super().on_epoch_end(net, *data, **rest)
        record = self.coach_.last_record
        if record is not None:
            self.history.record("effective_sample_size", record.effective_sample_size)
            self.history.record("trusted_loss", record.validation_loss)
            if record.validation_accuracy is not None:
                self.history.record("trusted_accuracy", record.validation_accuracy)

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        inputs, labels = unpack_data(batch)
        return to_tensor(inputs, device=self.device), to_tensor(labels, device=self.device)

    def __getstate__(self) -> dict[str, Any]:
        """The coach's hooks are no state; what it knows is."""
        state = super().__getstate__()
        state.pop("trusted_", None)
        coach = state.pop("coach_", None)
        state["_coach"] = None if coach is None else to_bytes(coach.state_dict())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = state.pop("_coach")
        super().__setstate__(state)
        if known is not None:
            self._attach()
            self.coach_.load_state_dict(from_bytes(known))


def sample_loss(criterion: nn.Module) -> MassedLoss:
    """A criterion of torch's as `(logits, labels) -> (batch,)`, whose mean is the criterion.

    skorch's classifier gives `NLLLoss` the logarithms of what the module returns; so does this.
    Classes that have weights, and pixels of which some are ignored, count as in torch's mean.

    Raises:
        ConfigError: it has no `reduction`, or one that is no mean.
    """
    criterion = getattr(criterion, "_orig_mod", criterion)  # of skorch's compile=True
    each, name = copy.copy(criterion), type(criterion).__name__
    if not hasattr(each, "reduction"):
        raise ConfigError(
            f"the criterion {name} has no reduction, so it gives one number for a batch: "
            "give coach_options={'loss': ...}, (logits, labels) -> (batch,)"
        )
    if criterion.reduction != "mean":
        raise ConfigError(
            f"the criterion {name} has the reduction {criterion.reduction!r}, and what a teacher "
            "weighs is a mean: set criterion__reduction='mean' (and lr times the size of a batch, "
            "where it was 'sum')"
        )
    each.reduction = "none"  # type: ignore[assignment]
    probabilities = isinstance(criterion, nn.NLLLoss)
    classes = criterion if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) else None

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        if probabilities:
            logits = (logits + torch.finfo(logits.dtype).eps).log()
        try:
            found = each(logits, labels)
        except IndexError as error:  # of the CPU; a GPU has its own words
            raise DataError(
                f"labels go from {labels.min()} to {labels.max()}, and the module returns "
                f"{logits.shape[1]} classes: give it as many, or correct the labels"
            ) from error
        counts = mass(labels)
        if counts is None:
            return found if found.dim() == 1 else found.flatten(1).mean(1)
        return found.reshape(len(found), -1).sum(1) / torch.where(counts > 0, counts, 1)

    def mass(labels: Tensor) -> Tensor | None:
        if classes is None or not integral(labels):
            return None
        if classes.weight is None and labels.dim() == 1 and classes.ignore_index == IGNORED:
            return None
        kept = labels != classes.ignore_index
        weights = kept if classes.weight is None else classes.weight[labels.where(kept, 0)] * kept
        return weights.reshape(len(labels), -1).sum(1)

    return MassedLoss(losses, mass)
