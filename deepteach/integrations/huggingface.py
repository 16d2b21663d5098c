"""`TeachTrainer`: taught training behind the Trainer of Hugging Face transformers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from deepteach.core.batches.ignored import integral
from deepteach.core.coach import Coach
from deepteach.core.logits import logits_of
from deepteach.core.losses import SampleLoss
from deepteach.core.optim import unwrapped
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError, DataError
from deepteach.integrations.own_loss import matching
from deepteach.integrations.sequence_losses import are_tokens, masked_mean, sample_losses
from deepteach.integrations.teaching import OnDevice, Teaching, load_coach, needed, save_coach
from deepteach.integrations.wrong_labels import WrongLabels
from deepteach.rng import untouched
from deepteach.teachers.features import Loss
from deepteach.teachers.linear import Teacher
from deepteach.teachers.trusted_regression import TrustedRegression

needed("transformers", "huggingface")
needed("accelerate", "huggingface")

from accelerate.utils import convert_to_fp32  # noqa: E402
from transformers import Trainer, TrainerCallback  # noqa: E402

COACH_FILE = "deepteach.safetensors"
"""The coach's file in a checkpoint of the Trainer."""

SAMPLE_COLUMNS = ("index", "group", "clean_labels")
"""What a batch may say of its samples beside the model's own inputs."""


DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
"""What a model of sequences to sequences makes of its labels unless it is given one of them."""


class TeachTrainer(Trainer):
    """A `transformers.Trainer` whose samples are weighed by a teacher.

    All arguments of the Trainer stand; each step's loss is the weighted mean of its samples'
    losses. A batch may have the columns `index` and `group` (see `Coach.loss`), and `clean_labels`
    where the truth is known: the logs then say how well low weights find wrong labels. The logs
    also say `effective_sample_size`, `trusted_loss` and `trusted_accuracy`. Checkpoints hold the
    coach, and `resume_from_checkpoint` goes on with it to the same bits.

    Args:
        arguments, settings: of the Trainer.
        trusted_dataset: as `train_dataset`, with labels that are right.
        teacher: copied; see `Teaching` for this and the next three. For the labels of tokens
            it reads the loss unless given, for real-valued ones `TrustedRegression`.
        interval: optimizer steps between updates of the teacher.
        window: steps that the meta-gradient looks back through.
        student: a layer's name, or a function of the module to a `dt.Student`. States
            `(batch, tokens, hidden)` are averaged over `attention_mask`.
        trusted_batch_size: trusted samples of an update.
        coach_options: further arguments of `dt.Coach`: `loss`, `adjoint`, ...

    Raises:
        ConfigError: what cannot be taught exactly (fp16, torch_compile, DataParallel, sharded
            models, a `compute_loss_func`, a loss of the model's own that is not the mean over
            its samples or tokens), with the remedy.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *arguments: Any,
        trusted_dataset: Any = None,
        teacher: AbstractTeacher | None = None,
        interval: int | None = None,
        window: int | None = None,
        student: str | Callable[[nn.Module], Student] | None = None,
        trusted_batch_size: int = 64,
        coach_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if trusted_dataset is None:
            raise ConfigError("TeachTrainer needs trusted samples: give trusted_dataset=...")
        super().__init__(*arguments, **settings)
        self._refuse()
        self.trusted_dataset = trusted_dataset
        self.teaching = Teaching(teacher, interval, window, student, coach_options or {})
        self.coach: Coach | None = None
        """Made when training starts: what is taught is `trainer.coach.teacher`."""
        # All of it on every process, in an order of its own.
        loader = DataLoader(
            trusted_dataset,
            batch_size=trusted_batch_size,
            shuffle=not isinstance(trusted_dataset, IterableDataset),
            collate_fn=self._get_collator_with_removed_columns(self.data_collator),
        )
        self._trusted = OnDevice(loader, self._pair)
        self._found, self._taken = WrongLabels(), 0
        self.add_callback(_AfterStep(self))

    def _refuse(self) -> None:
        """Raises ConfigError."""
        args = self.args
        features = getattr(self.train_dataset, "features", None) or {}
        for name in SAMPLE_COLUMNS:
            if "string" in str(getattr(features.get(name), "dtype", "")):
                raise ConfigError(
                    f"TeachTrainer: column {name!r} holds text, which no batch would have: make "
                    "whole numbers of it, by map or class_encode_column"
                )
        said = {
            "fp16 scales gradients: use bf16=True": args.fp16,
            "torch_compile would be passed over: set torch_compile=False": args.torch_compile,
            "DataParallel splits a batch whose weights belong together: start one process a GPU "
            "by torchrun, or show one GPU in CUDA_VISIBLE_DEVICES": args.n_gpu > 1,
            "sharded parameters (FSDP, DeepSpeed) cannot be looked back through: leave the "
            "model whole on every process": self.is_fsdp_enabled or self.is_deepspeed_enabled,
            "compute_loss_func gives one number for a batch: give "
            "coach_options={'loss': ...}, a function (logits, labels) -> (batch,)": (
                self.compute_loss_func is not None
            ),
        }
        for text, holds in said.items():
            if holds:
                raise ConfigError(f"TeachTrainer: {text}")

    # What the Trainer asks for.

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, and a coach around it unless it has one."""
        optimizer = super().create_optimizer(model)
        if self.coach is None or self.coach.optimizer is not unwrapped(optimizer):
            self.coach = self._coach(optimizer)
            self.coach.trust(self._trusted)
        else:
            self.coach.recorder.restart()  # what came since its last step is not known
        return optimizer

    def _coach(self, optimizer: torch.optim.Optimizer) -> Coach:
        args, module = self.args, self.model
        assert module is not None
        config = getattr(module, "config", None)
        with untouched():
            x, labels = next(iter(self._trusted))
        problem, count = (getattr(config, name, None) for name in ("problem_type", "num_labels"))
        regression = problem == "regression" or (problem is None and count == 1)
        teaching = self.teaching
        if teaching.teacher is None and (own := _other_teacher(labels, regression)):
            teaching = replace(teaching, teacher=own)
        taken = self._labels_of(module)
        losses: Any = None
        if "loss" not in teaching.options:
            losses = self._losses(module, x, labels, taken, regression)
        return teaching.coach(
            module,
            optimizer,
            steps=self.state.max_steps if self.state.max_steps > 0 else None,
            half=args.bf16,
            pool=masked_mean,
            clip_norm=args.max_grad_norm if 0 < args.max_grad_norm < math.inf else None,
            accumulate=args.gradient_accumulation_steps > 1,
            **({} if losses is None else {"loss": losses}),
        )

    def _losses(
        self, module: nn.Module, x: dict[str, Any], labels: Any, taken: list[str], regression: bool
    ) -> SampleLoss:
        """One number a sample, whose mean is the Trainer's loss. Raises ConfigError: none is."""
        smoothing = 0.0 if self.label_smoother is None else self.label_smoother.epsilon
        likely = getattr(self, "_loss_shifts_labels", False)
        shapes = [(False, False)]
        if not regression and are_tokens(labels):
            shapes += [(True, False), (True, True)]  # of the latter the Trainer counts all labels
        candidates = [
            sample_losses(regression=regression, smoothing=s, shifted=shifts, first_counts=first)
            for s in dict.fromkeys([smoothing, 0.0])
            for shifts, first in sorted(shapes, key=lambda shape: shape[0] != likely)
        ]
        if len(taken) != 1 or not isinstance(labels, Tensor):
            return candidates[0]

        def own(labels: Tensor) -> tuple[Tensor, Tensor] | None:
            return self._own_loss(module, {**x, taken[0]: labels})

        _bare(module)
        return matching(type(module).__name__, candidates, own, module, labels)

    def _own_loss(self, module: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """The Trainer's loss of a batch and the logits; None where it has none."""
        args = self.args
        averages, args.average_tokens_across_devices = args.average_tokens_across_devices, False
        try:
            _, items = self.get_batch_samples(iter([inputs]), 1, args.device)
            loss, outputs = super().compute_loss(module, {**inputs}, True, items)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, LookupError, RuntimeError):
            return None  # nor could the Trainer train it; a fault of the pass shows in training
        finally:
            args.average_tokens_across_devices = averages
        if isinstance(outputs, Tensor) or not isinstance(loss, Tensor) or loss.numel() != 1:
            return None
        first = isinstance(outputs, tuple | list) and outputs[0] is loss
        return loss.reshape(()), logits_of(outputs[1:] if first else outputs)

    def _labels_of(self, module: nn.Module) -> list[str]:
        """The labels that the model takes. Raises ConfigError: it cannot do without."""
        given = inspect.signature(module.forward).parameters
        needed = [n for n in self.label_names if n in given and given[n].default is given[n].empty]
        if needed:
            raise ConfigError(
                "TeachTrainer takes the loss of each sample from the logits, so it calls the model "
                f"without {needed[0]!r}, which {type(module).__name__}.forward requires: give it "
                "the default None there"
            )
        takes_any = any(p.kind is p.VAR_KEYWORD for p in given.values())
        return [name for name in self.label_names if takes_any or name in given]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The coach's loss where a gradient is taken; the Trainer's own in evaluation."""
        if return_outputs or not torch.is_grad_enabled() or self.coach is None:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return (loss, convert_to_fp32(outputs)) if return_outputs else loss
        assert self.model is not None
        _bare(self.model)
        x, y, told = self.parted(inputs)
        self._found.expect(y, told.pop("clean_labels", None))
        with self.accelerator.autocast():
            return self.coach.loss(x, y, **told)

    def prediction_step(self, model: nn.Module, inputs: Any, *rest: Any, **more: Any) -> Any:
        """The Trainer's, on the model's own inputs."""
        own = {key: value for key, value in inputs.items() if key not in SAMPLE_COLUMNS}
        return super().prediction_step(model, own, *rest, **more)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Of evaluation; a pass that is taught has its own."""
        evaluates = not torch.is_grad_enabled()
        return (
            self.accelerator.autocast()
            if evaluates
            else super().autocast_smart_context_manager(cache_enabled)
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, and what the teacher's last update and the weights say."""
        record = None if self.coach is None else self.coach.last_record
        if "loss" in logs and record is not None:
            logs["effective_sample_size"] = record.effective_sample_size
            logs["trusted_loss"] = record.validation_loss
            if record.validation_accuracy is not None:
                logs["trusted_accuracy"] = record.validation_accuracy
        if "loss" in logs and (auroc := self._found.auroc()) is not None:
            logs["wrong_label_auroc"] = auroc
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns += [c for c in SAMPLE_COLUMNS if c not in self._signature_columns]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        assert self.coach is not None
        save_coach(Path(output_dir) / COACH_FILE, self.coach)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.coach is not None:
            load_coach(Path(checkpoint) / COACH_FILE, self.coach)

    # What the coach asks for.

    def parted(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Any, dict[str, Tensor]]:
        """A batch as the module's inputs, its labels, and what is said of its samples.

        Raises:
            DataError: it has no labels.
        """
        named = [name for name in self.label_names if name in inputs]
        if not named:
            raise DataError(
                f"a batch has no {' or '.join(self.label_names) or 'labels'} among "
                f"{', '.join(inputs)}: name its labels with TrainingArguments(label_names=[...])"
            )
        labels = {name: inputs[name] for name in named}
        x = {k: v for k, v in inputs.items() if k not in labels and k not in SAMPLE_COLUMNS}
        told = {name: inputs[name] for name in SAMPLE_COLUMNS if name in inputs}
        if len(labels) > 1:
            return x, labels, told
        y = labels[named[0]]
        shifted = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shifted is not None and not any(name in x for name in DECODER_INPUTS):
            x["decoder_input_ids"] = shifted(labels=y)  # as the model itself does of its labels
        return x, y, told

    def _pair(self, batch: Any) -> tuple[dict[str, Any], Any]:
        x, y, _ = self.parted(self._prepare_inputs(batch))
        return x, y

    def before_step(self) -> None:
        """Remember how many steps were taught."""
        assert self.coach is not None
        self._taken = self.coach.steps

    def after_step(self) -> None:
        """Teach where an update is due; the optimizer has stepped."""
        assert self.coach is not None
        if self.coach.steps == self._taken:
            raise ConfigError(
                "TeachTrainer: a step was not taken on the coach's loss: a compute_loss of your "
                "own must return that of TeachTrainer"
            )
        self._found.weighed(self.coach.last_trust)
        self.coach.update(self._trusted)


class _AfterStep(TrainerCallback):
    """Updates come before the Trainer logs, evaluates or saves."""

    def __init__(self, trainer: TeachTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._trainer.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._trainer.after_step()


def _other_teacher(labels: Any, regression: bool) -> AbstractTeacher | None:
    """What teaches where labels are no classes of samples."""
    if regression:
        return Teacher([TrustedRegression()])
    tokens = isinstance(labels, Tensor) and labels.dim() > 1 and integral(labels)
    return Teacher([Loss()]) if tokens else None


def _bare(model: nn.Module) -> None:
    """Take accelerate's autocast out of a module's forward.

    Inside it no replay could run in full precision; passes are run under autocast from outside.
    (accelerate's own way back takes the model's decorators off as well.)
    """
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        del model.forward
        if getattr(original, "__func__", None) is not type(model).forward:
            model.forward = original
