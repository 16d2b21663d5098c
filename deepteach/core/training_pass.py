"""The pass of the student that is trained on: as the user's own, or one the sweep starts from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.derivatives.double_backward import TwiceDifferentiable
from deepteach.core.derivatives.linearised import Linearised, is_of_alone
from deepteach.core.derivatives.moved_again import MovedAgain
from deepteach.core.layout import ModuleLayout
from deepteach.core.module_state import ModuleState
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.core.recorder import Recorder
from deepteach.core.snapshot import Snapshot
from deepteach.core.student import Inputs, Outputs, Student
from deepteach.errors import ConfigError
from deepteach.rng import States, set_generator_states
from deepteach.tree import Params


@dataclass
class TrainingPass:
    """How `coach.loss` runs the student, as the adjoint needs it."""

    student: Student
    recorder: Recorder
    adjoint: AbstractAdjoint
    objective: Objective
    recomputing_layout: ModuleLayout | None = None
    """That of the student, where its activation checkpoints move buffers once more."""

    def __call__(
        self, inputs: Inputs, theta: Params | None, drawn: States, *, watched: bool = False
    ) -> tuple[Outputs, Params | None]:
        """The module's own pass, or one whose graph begins at `theta`; and that theta, if it does.

        The generators' states before it are `drawn`.

        Raises:
            ConfigError: it is `watched`, and the module writes to its own parameters; or the
                adjoint takes other kernels, and activation checkpoints would not move buffers.
        """
        if theta is not None or self.adjoint.same_kernels:
            outputs = self._replayable(inputs, theta, drawn)
            if outputs is not None:
                return outputs, theta
        return self._own(inputs, watched=watched), None

    def _own(self, inputs: Inputs, *, watched: bool) -> Outputs:
        taken = list(self.student.layout.parameters.values())
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

    def _replayable(self, inputs: Inputs, theta: Params | None, drawn: States) -> Outputs | None:
        """A pass as replays run it; None, and nothing is changed, where training is another one.

        Activation checkpoints are not recomputed in it, which would move buffers once more.
        """
        student = self.student
        before = None if theta is None else ModuleState(student.module, layers=student.layers)
        # The graph must keep buffers of its own: later passes move the module's in place.
        buffers = student.buffers()
        moved_again = MovedAgain(student.layout)
        memory = self.adjoint.graph_memory.counting(theta is not None)
        twice = nullcontext() if theta is None else TwiceDifferentiable()
        with memory, twice, moved_again.looking():
            outputs = student.functional(theta or {}, buffers, inputs, leaves=True)
        if moved_again.found:
            if before is None:
                raise ConfigError(
                    f"activation checkpoints move running statistics once more on the way back, "
                    f"which passes for {type(self.adjoint).__name__} do not repeat: use "
                    "adjoint=Stored(), or normalise outside of torch.utils.checkpoint"
                )
            before.restore()
            set_generator_states(drawn)
            self.adjoint.graph_memory.dropped()
            self.recomputing_layout = student.layout
            return None
        student.restore_buffers(buffers)
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
        named = self.student.layout.parameters
        name = next((name for name, leaf in named.items() if leaf is changed), "")
        raise ConfigError(
            f"the student's pass writes to its own parameter {name!r} (an embedding with "
            "max_norm?), which no derivative follows: normalise what is read from it instead "
            "(torch.nn.functional.normalize, or a parametrization), and let the loop move a target "
            "network, after coach.update"
        )

    def shared_theta(self, interval: int, window: int) -> Params | None:
        """Copies of theta, linked to it, where the sweep may take this pass's own graph.

        A step of a window but its earliest is differentiated twice. Doing so from the
        training pass's own graph saves the sweep a replay. The earliest one is, too, where
        forward mode is not enough.
        """
        recorder, adjoint, objective = self.recorder, self.adjoint, self.objective
        first = bool(adjoint.graphs) and not (recorder.rule.linear and objective.held)
        useful = window if first else window - 1
        left = interval - recorder.since_update
        last = 1 <= left <= min(adjoint.graph_memory.of(window), useful)
        own = adjoint.micro_batch is None and not adjoint.mixed_precision
        if not (last and (first or recorder.steps) and own and adjoint.shares):
            return None
        if self.recomputing_layout is self.student.layout:
            return None
        return self.student.shards.linked(recorder.parameters())

    def linearised(
        self, value: Tensor, theta: Params, snapshot: Snapshot, omega: Params, step: Step
    ) -> Linearised | None:
        """The gradient of this pass, with the graph that the sweep will take.

        None where its loss, `value`, is also one of other tensors (inputs or labels that a net
        made, a loss with parameters). Their gradients are asked for by whoever calls backward(),
        which then runs through this graph and uses it up; the sweep repeats the pass.
        """
        memory = self.adjoint.graph_memory
        if self.recorder.ranks.any(not is_of_alone(value, theta)):
            memory.dropped()
            return None
        with memory.counting(True):
            found = self.adjoint.derived(self.objective).linearise(theta, snapshot, omega, step)
        memory.counted(self.recorder.ranks)
        return found

    def refuse_graphs(self) -> None:
        """Raises ConfigError: graphs were asked for of passes that have none for the sweep."""
        if not self.adjoint.graphs:
            return
        asked = f"drop graphs={self.adjoint.graphs!r}"
        if self.recorder.accumulates:
            raise ConfigError(f"a step of several passes hands over no graph: {asked}")
        if self.student.compiled:
            raise ConfigError(
                f"a compiled pass cannot be differentiated twice, so that those with graphs would "
                f"run uncompiled: {asked}, or torch.compile"
            )

    def full_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Losses and weights are those of the replays, whatever the student's pass ran in."""
        if not self.adjoint.mixed_precision:
            return nullcontext()
        return torch.autocast(device.type, enabled=False)

    @staticmethod
    def refuse_inference() -> None:
        """Raises ConfigError: in inference mode, which knows no derivatives."""
        if torch.is_inference_mode_enabled():
            raise ConfigError(
                "the teacher is taught by derivatives, which torch.inference_mode() does without: "
                "call coach.update and coach.meta_gradient outside of it"
            )

    def looking_back(self) -> AbstractContextManager[object]:
        """What an update runs in: without autocast, as replays do, wherever it is called.

        Raises:
            ConfigError: in inference mode.
        """
        self.refuse_inference()
        device = next(iter(self.recorder.parameters().values())).device
        running = torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, enabled=False) if running else nullcontext()

    def refuse_autocast(self, device: torch.device) -> None:
        """Raises ConfigError: autocast where the adjoint does not allow it."""
        if torch.is_autocast_enabled(device.type) and not self.adjoint.mixed_precision:
            raise ConfigError(
                "autocast inside the window makes the meta-gradient inexact: run coach.loss "
                "outside torch.autocast, or accept that with "
                "adjoint=Stored(mixed_precision=True, tolerance=0.1)"
            )
