"""An update of the teacher happens as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.trusted_batches import TrustedBatches
from deepteach.core.module_state import ModuleState
from deepteach.core.recorder import Recorder
from deepteach.core.teacher import AbstractTeacher
from deepteach.rng import untouched


@contextmanager
def all_or_nothing(
    teacher: AbstractTeacher,
    optimizer: torch.optim.Optimizer | None,
    recorder: Recorder,
    trusted: TrustedBatches,
) -> Iterator[None]:
    """Whatever is raised inside, an interrupt too, leaves all four as they were.

    The next update then reads the same trusted batch over the same steps. Random generators
    are put back in either case.
    """
    teaching, training = ModuleState(teacher, numbers=True), recorder.standing()
    reading = trusted.state_dict()
    stepping = None if optimizer is None else _OptimizerState(optimizer)
    with untouched():
        try:
            yield
        except BaseException:
            teaching.restore()
            if stepping is not None:
                stepping.restore()
            recorder.stand(training)
            trusted.take_back(reading)
            raise


class _OptimizerState:
    """The settings of an optimizer's groups, and copies of what it holds of each parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = [(group, _copied(group)) for group in optimizer.param_groups]
        self._held = {leaf: _copied(held) for leaf, held in optimizer.state.items()}

    def restore(self) -> None:
        for group, kept in self._groups:
            group.clear()
            group.update(kept)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._held)


def _copied(held: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in held.items()
    }
