"""Train a student and its teacher: the run's folder, its checkpoints, the runs beside it."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from deepteach.adjoint import AbstractAdjoint, Reversed, Stored, Unrolled
from deepteach.augment import Augment, identity
from deepteach.checkpoint import RunLock, Store, probe_writable, write_atomic
from deepteach.checks import as_array
from deepteach.coach import Coach
from deepteach.config import RUNTIME_KEYS, Config, dump, make, read
from deepteach.data import Data, from_arrays
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.evaluate import Trust, logits, noise_auroc, trust
from deepteach.fit import EpochEnd, Schedule, Training, steps_per_epoch
from deepteach.generators import generator_states, set_generator_states
from deepteach.interrupts import Interrupted, Interrupts, interrupts
from deepteach.lookahead import FirstOrder, Lookahead
from deepteach.methods import Method, Problem, method
from deepteach.nets import build
from deepteach.progress import Silent, Watcher
from deepteach.student import Student
from deepteach.teacher import AbstractTeacher

ADJOINTS: dict[str, Callable[[], AbstractAdjoint]] = {
    "reversed": Reversed,
    "stored": Stored,
    "unrolled": Unrolled,
    "lookahead": Lookahead,
    "first-order": FirstOrder,
}
WANTED_UPDATES = 200
"""Teacher updates that a run should have; the paper's K = 20 where it is long enough."""
SUSPECTS_SHOWN = 48
STATES_SHOWN = 1000

Watch = Callable[[str, int, int], AbstractContextManager[Watcher]]
"""(name, epochs, steps) -> the watcher of one run."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    `summary` holds the fields of summary.json; `trust` the training samples as the teacher
    sees them at the end; `beside` the runs trained on the same schedule, "uniform" among
    them unless `baseline` was off.
    """

    model: nn.Module
    coach: Coach
    config: Config
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    trust: Trust
    path: Path | None
    beside: dict[str, dict[str, Any]]


def train(
    model: nn.Module | str,
    train_data: Any,
    valid_data: Any = None,
    test_data: Any = None,
    teacher: str | AbstractTeacher = "deep",
    *,
    y_clean: Any = None,
    classes: int | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    **settings: Any,
) -> Result:
    """Train `model` (in place) with a teacher that learns from the trusted `valid_data`.

    Each of the data sets is a pair `(x, y)` of arrays or tensors, or a map-style Dataset.
    Without `valid_data` a stratified part of the training data is split off. Floating inputs
    reach the model as they are; whole-numbered ones (pixels) are normalised per channel by
    the training samples. `settings` are the fields of `deepteach.config.Config` (epochs,
    batch_size, lr, out, seed, ...).

    Raises:
        DataError, ConfigError: before anything is trained; one line with the remedy.
    """
    splits = [_arrays(item) for item in (train_data, valid_data, test_data)]
    pairs = [item if item is not None else (None, None) for item in splits]
    if "noise" in settings:
        raise ConfigError(
            "train takes labels as they are, so it has no setting noise: change the labels with "
            "deepteach.noise and pass y_clean"
        )
    name = settings.setdefault("data", "arrays")
    settings["noise"] = {"kind": "none", "rate": 0.0}
    settings["method"] = teacher if isinstance(teacher, str) else type(teacher).__name__
    if settings.get("out") is not None:
        settings["out"] = os.fspath(settings["out"])
    config = make({**settings, "student": model if isinstance(model, str) else "custom"})
    data = from_arrays(
        *pairs[0],
        *pairs[1],
        *pairs[2],
        y_clean,
        name=name,
        seed=config.seed,
        classes=classes,
        valid_size=config.valid_size,
        normalise=as_array(pairs[0][0]).dtype.kind != "f",
    )
    for note in data.notes:
        if note.startswith("no x_valid"):
            warnings.warn(note, UserWarning, stacklevel=2)
    return run(
        config,
        data,
        module=None if isinstance(model, str) else model,
        teacher=None if isinstance(teacher, str) else teacher,
        resume=resume,
        watch=watch,
    )


def run(
    config: Config,
    data: Data,
    *,
    module: nn.Module | None = None,
    teacher: AbstractTeacher | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> Result:
    """One run and those beside it. `config.out` None writes nothing."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    watch = watch or (lambda name, epochs, steps: nullcontext(Silent()))
    module, internal = resolve_student(config, data, module)
    device = _device(config.device)
    folder = None if config.out is None else Path(config.out)
    if folder is not None:
        _claim(folder, config, resume)
    lock = nullcontext() if folder is None else RunLock(folder)
    with lock, interrupts() as signals:
        fresh = copy.deepcopy(module)
        others: dict[str, _Run] = {}
        names = ["uniform"] if config.baseline and config.method != "uniform" else []
        for name in [*names, *(name for name in config.beside if name != config.method)]:
            place = "baseline" if name == "uniform" else name
            settings = {"method": name, "baseline": False, "beside": (), "adjoint": "method"}
            out = None if folder is None else str(folder / place)
            others[name] = _Run(
                config.model_copy(update={**settings, "teacher_lr": None, "out": out}),
                data,
                copy.deepcopy(fresh).to(device),
                internal,
                None,
                None if out is None else Path(out),
                signals,
                leads=False,
            )
        # All are made before any is trained: a setting that one cannot do is told at once.
        main = _Run(config, data, module.to(device), internal, teacher, folder, signals, leads=True)
        main.go(watch, resume)
        beside: dict[str, dict[str, Any]] = {}
        for name, other in others.items():
            other.go(watch, resume)
            beside[name] = other.finish({})
        summary = main.finish(beside)
    return Result(module, main.coach, config, summary, main.metrics, main.trust, folder, beside)


class _Run:
    """One method's run: trains, records, commits."""

    def __init__(
        self,
        config: Config,
        data: Data,
        module: nn.Module,
        internal: str,
        teacher: AbstractTeacher | None,
        folder: Path | None,
        signals: Interrupts,
        *,
        leads: bool,
    ) -> None:
        """A run that `leads` takes its interval and window from the settings first; one beside
        it, where its method has no own."""
        self.config, self.data, self.folder, self.signals = config, data, folder, signals
        self.device = next(module.parameters()).device
        self.wrong = None if data.y_clean is None else data.y_clean != data.y_train
        torch.manual_seed(config.seed)
        student = Student(module, internal)
        per_epoch = steps_per_epoch(len(data.y_train), config.batch_size)
        steps = per_epoch * config.epochs
        chosen = _method(config, data, student, teacher, steps)
        interval, window = config.interval, config.window
        if not leads or interval is None:
            interval = chosen.interval or interval or max(1, min(20, steps // WANTED_UPDATES))
        if not leads or window is None:
            window = chosen.window or window or 2
            window = min(window, interval)
        schedule = Schedule(
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            milestones=config.decay_epochs,
            interval=interval,
            window=window,
            valid_batch=config.valid_batch,
        )
        self.training = Training(
            data,
            student,
            chosen,
            schedule,
            seed=config.seed,
            augment=Augment() if config.augment else identity,
            device=self.device,
            through_weights=config.through_weights,
            validation_loss=config.validation_loss,
        )
        self.coach = self.training.coach
        self.metrics: list[dict[str, Any]] = []
        self.history: list[Tensor] = []
        self.seconds = 0.0

    def go(self, watch: Watch, resume: bool) -> None:
        """Train to the end, from the newest verified checkpoint where there is one."""
        store = None if self.folder is None else Store(self.folder / "checkpoints")
        training, config = self.training, self.config
        torch.manual_seed(config.seed)
        with watch(config.method, config.epochs, training.total) as watcher:
            if self.folder is not None:
                self._open_folder()
            if store is not None and resume:
                self._restore(store, watcher)
            started = time.monotonic() - self.seconds
            for end in training.epoch_steps():
                self.seconds = time.monotonic() - started
                watcher.step(training.step)
                if end is not None and not end.rehearsal:
                    line = self._line(end)
                    self.metrics.append(line)
                    self.history.append(end.weights.half())
                    watcher.epoch(line)
                    self._write_metrics()
                if store is not None and (end is not None or self.signals.received):
                    store.commit(training.step, self._state(), meta=self._meta())
                if self.signals.received:
                    raise Interrupted(self.signals.received)
            data = self.data
            last = trust(self.coach, data.x_train, data.y_train, data.x_valid, data.y_valid)
            # A student that has memorised a wrong label makes it look right in the end, so
            # samples are ranked by their mean weight over the epochs.
            mean = torch.stack(self.history).float().mean(0)
            self.trust = replace(last, weight=mean / mean.mean().clamp(min=1e-30))

    def finish(self, beside: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The summary; written, with the samples' weights, where there is a folder."""
        summary = self._summary(beside)
        if self.folder is not None:
            self._write_results(summary)
        return summary

    def _line(self, end: EpochEnd) -> dict[str, Any]:
        data, module = self.data, self.training.module
        tested = data.x_test is not None and data.y_test is not None
        values = {
            "epoch": end.epoch,
            "step": end.step,
            "seconds": round(self.seconds, 3),
            "lr": self.training.optimizer.param_groups[0]["lr"],
            "train_loss": end.train_loss,
            "valid_loss": end.valid_loss,
            "valid_accuracy": _accuracy(module, data.x_valid, data.y_valid),
            "test_accuracy": _accuracy(module, data.x_test, data.y_test) if tested else None,
            "effective_sample_size": end.effective_sample_size,
            "updates": end.updates,
            "drift": end.drift,
            "meta_gradient_norm": end.meta_gradient_norm,
            "noise_auroc": noise_auroc(end.weights, self.wrong),
        }
        return values

    def _summary(self, beside: dict[str, dict[str, Any]]) -> dict[str, Any]:
        config, metrics = self.config, self.metrics
        best = max(range(len(metrics)), key=lambda i: metrics[i]["valid_accuracy"])
        tests = [line["test_accuracy"] for line in metrics]
        known = tests[0] is not None
        schedule = self.training.schedule
        plain = beside.get("uniform")
        return {
            "method": config.method,
            "data": config.data,
            "noise": config.noise.model_dump(),
            "student": config.student,
            "seed": config.seed,
            "epochs": config.epochs,
            "steps": self.training.step,
            "interval": schedule.interval,
            "window": schedule.window,
            "seconds": round(self.seconds, 2),
            "test_accuracy_last": tests[-1],
            "test_accuracy_best": max(tests) if known else None,
            "test_accuracy_selected": tests[best],
            "valid_accuracy_best": metrics[best]["valid_accuracy"],
            "valid_accuracy_last": metrics[-1]["valid_accuracy"],
            "noise_auroc": noise_auroc(self.trust.weight, self.wrong),
            "teacher_parameters": sum(p.numel() for p in self.coach.teacher.parameters()),
            "baseline": plain,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "training": self.training.state_dict(),
            "metrics": self.metrics,
            "history": torch.stack(self.history) if self.history else None,
            "generators": generator_states(self.device),
        }

    def _meta(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "threads": torch.get_num_threads(), **_versions()}

    def _restore(self, store: Store, watcher: Watcher) -> None:
        found = store.newest()
        if found is None:
            return
        for skipped in found.skipped:
            watcher.say(f"damaged checkpoint passed over: {skipped}")
        here = {"threads": torch.get_num_threads(), **_versions()}
        changed = [key for key, value in here.items() if found.meta.get(key) != value]
        if changed:
            watcher.say(f"not bit-reproducible: {', '.join(changed)} changed since the checkpoint")
        tree = found.tree
        self.training.load_state_dict(tree["training"])
        self.metrics = tree["metrics"]
        self.history = [] if tree["history"] is None else list(tree["history"])
        self.seconds = float(found.meta["seconds"])
        set_generator_states(tree["generators"])
        self._write_metrics()
        watcher.say(f"resumed at step {found.step} of {self.training.total}")

    def _open_folder(self) -> None:
        assert self.folder is not None
        probe_writable(self.folder)
        write_atomic(self.folder / "config.yaml", dump(self.config).encode())
        environment = {
            **_versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }
        write_atomic(self.folder / "environment.json", _json(environment))

    def _write_metrics(self) -> None:
        if self.folder is not None:
            text = "".join(json.dumps(line) + "\n" for line in self.metrics)
            write_atomic(self.folder / "metrics.jsonl", text.encode())

    def _write_results(self, summary: dict[str, Any]) -> None:
        assert self.folder is not None
        module, teacher = self.training.module, self.coach.teacher
        for name, part in (("student", module), ("teacher", teacher)):
            tensors = {k: v.detach().cpu().contiguous() for k, v in part.state_dict().items()}
            encoded = safetensors.torch.save(_unshared(tensors))
            write_atomic(self.folder / f"{name}.safetensors", encoded)
        write_atomic(self.folder / "weights.csv", self._weights_csv())
        write_atomic(self.folder / "samples.safetensors", self._samples())
        write_atomic(self.folder / "summary.json", _json(summary))

    def _weights_csv(self) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["index", "given_label", "predicted_label", "weight", "loss", "true_label"])
        clean = self.data.y_clean
        columns = [
            self.data.y_train.tolist(),
            self.trust.predicted.tolist(),
            [f"{value:.6g}" for value in self.trust.weight.tolist()],
            [f"{value:.6g}" for value in self.trust.loss.tolist()],
            [""] * len(self.data.y_train) if clean is None else clean.tolist(),
        ]
        writer.writerows([i, *row] for i, row in enumerate(zip(*columns, strict=True)))
        return out.getvalue().encode()

    def _samples(self) -> bytes:
        """What the report shows of single samples."""
        data, count = self.data, len(self.data.y_train)
        suspects = torch.argsort(self.trust.weight, stable=True)[:SUSPECTS_SHOWN]
        shown = torch.linspace(0, count - 1, min(STATES_SHOWN, count)).long()
        return safetensors.torch.save(
            {
                "internal": self.trust.internal[shown].contiguous(),
                "internal_index": shown,
                "history": torch.stack(self.history).contiguous(),
                "suspects": (data.x_train[suspects] * data.scale + data.mean).contiguous(),
                "suspect_index": suspects,
            }
        )


def _accuracy(module: nn.Module, x: Tensor | None, y: Tensor | None) -> float:
    assert x is not None and y is not None
    return float((logits(module, x).argmax(1) == y).float().mean())


def _method(
    config: Config, data: Data, student: Student, teacher: AbstractTeacher | None, steps: int
) -> Method:
    width = state_width(student, data, config.student)
    if teacher is not None:
        chosen = Method(teacher)
    else:
        chosen = method(config.method, Problem(data.classes, width, steps, config.seed))
    if config.adjoint != "method":
        chosen = replace(chosen, adjoint=ADJOINTS[config.adjoint]())
    if config.teacher_lr is not None:
        chosen = replace(chosen, teacher_rate=config.teacher_lr)
    return chosen


def state_width(student: Student, data: Data, name: str = "custom") -> int:
    """Width of the internal state, by a pass of two samples that changes nothing."""
    device = next(student.module.parameters()).device
    try:
        with torch.no_grad():
            outputs = student.functional({}, student.buffers(), data.x_train[:2].to(device))
    except DeepTeachError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"student {name!r} failed on samples of shape {data.input_shape} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): make its forward "
            "pass take a batch of them"
        ) from error
    if outputs.logits.dim() != 2 or outputs.logits.shape[1] < data.classes:
        raise ConfigError(
            f"the student returns logits of shape {tuple(outputs.logits.shape)} for 2 samples of "
            f"{data.classes} classes: expected (2, {data.classes})"
        )
    return outputs.internal.shape[1]


def resolve_student(
    config: Config, data: Data, module: nn.Module | None = None
) -> tuple[nn.Module, str]:
    """The module (built by name unless given) and the layer whose input the teacher reads."""
    if module is None:
        name = config.student
        if name == "auto":
            name = "cnn" if data.is_image else "mlp"
        module, internal = build(name, data.input_shape, data.classes, config.seed)
    else:
        internal = None
    chosen = config.internal or internal or _last_linear(module)
    return module, chosen


def _last_linear(module: nn.Module) -> str:
    """The last linear layer, whose input is the paper's I0."""
    found = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not found or not found[-1]:
        raise ConfigError(
            "the student has no named linear layer to read the internal state from: name a "
            "submodule with internal=..."
        )
    return found[-1]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # the meta device holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"device {name!r} is not available here: use auto or cpu") from None
    return device


def _claim(folder: Path, config: Config, resume: bool) -> None:
    """Refuse a folder that holds something else; nothing is ever overwritten."""
    settings = folder / "config.yaml"
    if resume and settings.exists():
        saved, present = make(read(settings)), config
        differing = [
            key
            for key in Config.model_fields
            if key not in RUNTIME_KEYS and getattr(saved, key) != getattr(present, key)
        ]
        if differing:
            raise ConfigError(
                f"cannot resume {folder}: it was started with other settings "
                f"({', '.join(differing)}): use the same ones, or another --out"
            )
        return
    if folder.exists() and (not folder.is_dir() or _contents(folder)):
        raise ConfigError(
            f"the output folder {folder} exists: choose another --out, or --resume to go on"
        )


def _contents(folder: Path) -> list[str]:
    """What is in a folder besides what a killed start leaves behind."""
    return [name for name in os.listdir(folder) if name != ".lock" and not name.startswith(".tmp-")]


def _arrays(source: Any) -> tuple[Any, Any] | None:
    if source is None:
        return None
    if isinstance(source, tuple | list) and len(source) == 2:
        return source[0], source[1]
    pairs = [source[i] for i in range(len(source))]
    return (
        torch.stack([torch.as_tensor(np.asarray(x)) for x, _ in pairs]),
        torch.tensor([int(y) for _, y in pairs]),
    )


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors stores no two names for one memory."""
    return {name: leaf.clone() for name, leaf in tensors.items()}


def _versions() -> dict[str, str]:
    from deepteach import __version__

    return {"deepteach": __version__, "torch": str(torch.__version__)}


def _json(value: Any) -> bytes:
    return (json.dumps(_strict(value), indent=2, allow_nan=False) + "\n").encode()


def _strict(value: Any) -> Any:
    """JSON has no NaN: unknown figures are null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
