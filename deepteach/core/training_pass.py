"""The pass of the student that is trained on: as the user's own, or one the sweep starts from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.double_backward import TwiceDifferentiable
from deepteach.core.recorder import Recorder
from deepteach.core.student import Inputs, Outputs, Student
from deepteach.errors import ConfigError
from deepteach.tree import Params, clone


@dataclass(frozen=True)
class TrainingPass:
    """How `coach.loss` runs the student, as the adjoint needs it."""

    student: Student
    recorder: Recorder
    adjoint: AbstractAdjoint

    def __call__(self, inputs: Inputs, theta: Params | None, *, watched: bool = False) -> Outputs:
        """The module's own pass, or one whose graph begins at `theta`.

        Raises:
            ConfigError: it is `watched`, and the module writes to its own parameters.
        """
        if theta is None and not self.adjoint.same_kernels:
            taken = [
                leaf for group in self.recorder.optimizer.param_groups for leaf in group["params"]
            ]
            versions = [leaf._version for leaf in taken]
            outputs = self.student(inputs)
            if watched and versions != [leaf._version for leaf in taken]:
                self._refuse_rewritten(taken, versions)
            if not self.adjoint.mixed_precision:
                if watched and self.student.under_autocast:
                    self._refuse_own_autocast()
                return outputs
            dtype = next(iter(self.recorder.parameters().values())).dtype
            return Outputs(outputs.logits.to(dtype), outputs.internal.to(dtype))
        # The graph must keep buffers of its own: later passes move the module's in place.
        buffers = self.student.buffers()
        with nullcontext() if theta is None else TwiceDifferentiable():
            outputs = self.student.functional(theta or {}, buffers, inputs, leaves=True)
        self.student.restore_buffers(buffers)
        return outputs

    def _refuse_own_autocast(self) -> None:
        raise ConfigError(
            "the student's own forward runs under autocast (as accelerate prepares it), which "
            "makes the meta-gradient inexact: give the module as it was before, or accept it by "
            "adjoint=Stored(mixed_precision=True, tolerance=0.1)"
        )

    def _refuse_rewritten(self, taken: list[Tensor], versions: list[int]) -> None:
        pairs = zip(taken, versions, strict=True)
        changed = next(leaf for leaf, version in pairs if leaf._version != version)
        named = self.recorder.parameters()
        name = next((name for name, leaf in named.items() if leaf is changed), "")
        raise ConfigError(
            f"the student's pass writes to its own parameter {name!r} (an embedding with "
            "max_norm?), which no derivative follows: normalise what is read from it instead "
            "(torch.nn.functional.normalize, or a parametrization)"
        )

    def shared_theta(self, interval: int, window: int) -> Params | None:
        """Copies of theta as leaves, where this pass is the one a sweep starts from.

        The last step of a window longer than one is differentiated twice. Doing so from the
        training pass's own graph saves the sweep a replay.
        """
        recorder, adjoint = self.recorder, self.adjoint
        last = recorder.since_update == interval - 1 and len(recorder.steps) >= 1
        own = adjoint.micro_batch is None and not adjoint.mixed_precision
        if not (last and window > 1 and own and adjoint.shares):
            return None
        return {n: leaf.requires_grad_() for n, leaf in clone(recorder.parameters()).items()}

    def full_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Losses and weights are those of the replays, whatever the student's pass ran in."""
        if not self.adjoint.mixed_precision:
            return nullcontext()
        return torch.autocast(device.type, enabled=False)

    def refuse_autocast(self, device: torch.device) -> None:
        """Raises ConfigError: autocast where the adjoint does not allow it."""
        if torch.is_autocast_enabled(device.type) and not self.adjoint.mixed_precision:
            raise ConfigError(
                "autocast inside the window makes the meta-gradient inexact: run coach.loss "
                "outside torch.autocast, or accept that with "
                "adjoint=Stored(mixed_precision=True, tolerance=0.1)"
            )
