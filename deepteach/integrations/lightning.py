"""`Teach`: a callback that teaches what a Lightning Trainer trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from deepteach.core.coach import Coach
from deepteach.core.optim import unwrapped
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import CheckpointError, ConfigError
from deepteach.integrations.teaching import OnDevice, Teaching, needed, take_state, whole_state

needed("lightning", "lightning")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy  # noqa: E402

PRECISIONS = {"32-true": False, "64-true": False, "bf16-mixed": True}
"""Precisions that can be taught in, and whether passes run under autocast."""


class Teach(Callback):
    """Weighs the samples of a LightningModule's training by a teacher.

    The module's `training_step` returns `self.coach.loss(x, y)`; everything else, automatic
    optimisation too, stays as it is. Clipping, accumulation and precision are read from the
    Trainer. `effective_sample_size`, `trusted_loss` and `trusted_accuracy` are logged after every
    update. Checkpoints hold the coach, and `fit(ckpt_path=...)` goes on with it.

    Args:
        trusted: `(x, y)` or a loader of such batches, whose labels are right.
        teacher: copied; see `Teaching` for this and the next three.
        interval: optimizer steps between updates of the teacher.
        window: steps that the meta-gradient looks back through.
        student: a layer's name in the LightningModule, or a function of it to a `dt.Student`.
        options: further arguments of `dt.Coach`: `loss`, `adjoint`, ...

    Attributes:
        coach: made when `fit` begins; the module has it as `coach` too.

    Raises:
        ConfigError: when `fit` begins: what cannot be taught exactly (fp16, sharded strategies,
            clipping by value, several optimizers), with the remedy.
    """

    def __init__(
        self,
        trusted: Iterable[Any] | tuple[Any, Any],
        teacher: AbstractTeacher | None = None,
        *,
        interval: int | None = None,
        window: int | None = None,
        student: str | Callable[[nn.Module], Student] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.trusted = trusted
        self.teaching = Teaching(teacher, interval, window, student, options)
        self.coach: Coach | None = None
        self._source: Any = None
        self._global, self._taken = 0, 0
        self._state: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizer is there, its state and that of the coach are not yet restored."""
        _refuse(trainer)
        if self.trusted is None:
            raise ConfigError(
                "Teach needs trusted samples: give (x, y), or a loader of such batches"
            )
        ddp = trainer.strategy.model
        if isinstance(ddp, nn.parallel.DistributedDataParallel):
            ddp.require_backward_grad_sync = False  # the coach sums the gradients
        steps = trainer.estimated_stepping_batches
        self.coach = self.teaching.coach(
            pl_module,
            unwrapped(trainer.optimizers[0]),
            steps=int(steps) if 0 < steps < float("inf") else None,
            half=PRECISIONS[str(trainer.precision)],
            clip_norm=_clips_to(trainer),
            accumulate=trainer.accumulate_grad_batches > 1,
        )
        device, precision = trainer.strategy.batch_to_device, trainer.precision_plugin

        def moved(batch: Any) -> Any:
            return precision.convert_input(device(batch))  # as batches that train are

        is_batch = isinstance(self.trusted, tuple)
        self._source = moved(self.trusted) if is_batch else OnDevice(self.trusted, moved)
        self.coach.trust(self._source)
        object.__setattr__(pl_module, "coach", self.coach)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Module and optimizer are restored: the coach goes on where it was saved."""
        assert self.coach is not None
        state, self._state = self._state, None
        self._global = trainer.global_step
        if state is not None:
            take_state(self.coach, state, str(trainer.ckpt_path))
        elif trainer.ckpt_path is not None:
            raise CheckpointError(
                f"{trainer.ckpt_path} holds no state of Teach: go on from a checkpoint that was "
                "written with it, or start a training of its own from that model's weights"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any, **more: Any
    ) -> None:
        """Teach where an update is due; before checkpoints are written."""
        assert self.coach is not None
        if trainer.fit_loop._skip_backward:
            return  # weight averaging's last epoch: passes for running statistics, without steps
        if outputs and trainer.global_step > self._global and self.coach.steps == self._taken:
            raise ConfigError(
                "Teach: a step was not taken on the coach's loss: let training_step return "
                "self.coach.loss(x, y)"
            )
        self._global, self._taken = trainer.global_step, self.coach.steps
        record = self.coach.update(self._source)
        if record is not None:
            found = {
                "effective_sample_size": record.effective_sample_size,
                "trusted_loss": record.validation_loss,
                "trusted_accuracy": record.validation_accuracy,
            }
            pl_module.log_dict({k: v for k, v in found.items() if v is not None}, on_epoch=False)

    def state_dict(self) -> dict[str, Any]:
        """The coach's, for the Trainer's checkpoint; all processes ask for it.

        Raises:
            ConfigError: between the accumulated batches of a step.
        """
        if self.coach is None:
            return {}
        try:
            return whole_state(self.coach)
        except ConfigError:
            raise ConfigError(
                "Teach: a checkpoint between the batches of an accumulated step would lose them: "
                "let val_check_interval be a multiple of accumulate_grad_batches"
            ) from None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """The batch at hand is dropped, so that a checkpoint can still be written."""
        if self.coach is not None:
            self.coach.discard()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until module and optimizer are restored."""
        self._state = state_dict


def _clips_to(trainer: Trainer) -> float | None:
    """The norm that gradients are clipped to; None where the Trainer leaves them alone."""
    given = trainer.gradient_clip_val
    return None if given is None or given <= 0 else float(given)


def _refuse(trainer: Trainer) -> None:
    """Raises ConfigError."""
    strategy, algorithm = trainer.strategy, trainer.gradient_clip_algorithm
    by_value = getattr(algorithm, "value", "norm") != "norm"
    clips_values = by_value and _clips_to(trainer) not in (None, float("inf"))
    said = {
        f"precision {trainer.precision!r} cannot be looked back through: use one of "
        f"{', '.join(PRECISIONS)}": str(trainer.precision) not in PRECISIONS,
        f"{type(strategy).__name__} splits the module over processes: use strategy='ddp' or one "
        "device": not isinstance(strategy, SingleDeviceStrategy | DDPStrategy),
        "gradient_clip_algorithm='value' is not known to the teacher: use 'norm'": clips_values,
        f"it takes one optimizer, and configure_optimizers gave {len(trainer.optimizers)}: train "
        "what the teacher weighs by one of them": len(trainer.optimizers) != 1,
    }
    for text, holds in said.items():
        if holds:
            raise ConfigError(f"Teach: {text}")
