"""Train a student and its teacher: the run's folder, its checkpoints, the runs beside it."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepteach import quality
from deepteach.augment import Augment, identity
from deepteach.checkpoint import RunLock, Store, from_bytes, to_bytes
from deepteach.checks import as_array
from deepteach.coach import Coach
from deepteach.config import RUNTIME_KEYS, Config, make
from deepteach.data import Data, from_arrays
from deepteach.errors import CheckpointError, ConfigError
from deepteach.evaluate import Trust, accuracy, noise_auroc, trust
from deepteach.fit import EpochEnd, Schedule, Training, steps_per_epoch
from deepteach.generators import generator_states, set_generator_states
from deepteach.interrupts import Interrupted, Interrupts, interrupts
from deepteach.progress import Silent, Watcher
from deepteach.ranks import Ranks, joined, refuse_other
from deepteach.recording import claim, open_folder, versions, write_metrics, write_results
from deepteach.resolve import resolve_device, resolve_method, resolve_student
from deepteach.streams import stream
from deepteach.student import Student
from deepteach.teacher import AbstractTeacher

MEASURED_STEPS = 500
"""Length from which on a run measures its own meta-gradients."""

WANTED_UPDATES = 200
"""Teacher updates that a run should have; the paper's K = 20 where it is long enough."""

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
    """One run and those beside it. `config.out` None writes nothing.

    Started by torchrun, or under a process group of the caller's, all its processes train
    together; rank 0 writes.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    watch = watch or (lambda name, epochs, steps: nullcontext(Silent()))
    module, internal = resolve_student(config, data, module)
    device = resolve_device(config.device)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(device))
        # A folder named by the time of day has another name on every rank.
        config = config.model_copy(update={"out": ranks.told(config.out)})
        settings = config.model_dump_json(exclude=set(RUNTIME_KEYS))
        parts = (data.x_train, data.y_train, data.x_valid, data.y_valid, data.x_test, data.y_test)
        refuse_other(ranks, settings, parts)
        folder = None if config.out is None else Path(config.out)
        if folder is not None:
            ranks.lead(lambda: _enter(stack, folder, config, resume))
        signals = stack.enter_context(interrupts(relays=ranks.count > 1))
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
                ranks,
                leads=False,
            )
        # All are made before any is trained: a setting that one cannot do is told at once.
        main = _Run(
            *(config, data, module.to(device), internal, teacher, folder, signals, ranks),
            leads=True,
        )
        main.go(watch, resume)
        beside: dict[str, dict[str, Any]] = {}
        for name, other in others.items():
            other.go(watch, resume)
            beside[name] = other.finish({})
        summary = main.finish(beside)
    return Result(module, main.coach, config, summary, main.metrics, main.trust, folder, beside)


def _enter(stack: ExitStack, folder: Path, config: Config, resume: bool) -> None:
    claim(folder, config, resume)
    stack.enter_context(RunLock(folder))
    claim(folder, config, resume)  # again: another run may have come and gone since


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
        ranks: Ranks,
        *,
        leads: bool,
    ) -> None:
        """A run that `leads` takes its interval and window from the settings first; one beside
        it, where its method has no own."""
        self.config, self.data, self.folder, self.signals = config, data, folder, signals
        self.ranks = ranks
        self.device = next(module.parameters()).device
        self.wrong = None if data.y_clean is None else data.y_clean != data.y_train
        torch.manual_seed(config.seed)
        student = Student(module, internal)
        per_epoch = steps_per_epoch(len(data.y_train), config.batch_size)
        steps = per_epoch * config.epochs
        chosen = resolve_method(config, data, student, teacher, steps)
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
            ranks=ranks,
        )
        self.coach = self.training.coach
        self.metrics: list[dict[str, Any]] = []
        self.history: list[Tensor] = []
        self.seconds = 0.0
        self.quality: dict[str, dict[str, Any]] = {}

    def go(self, watch: Watch, resume: bool) -> None:
        """Train to the end, from the newest verified checkpoint where there is one."""
        store = None if self.folder is None else Store(self.folder / "checkpoints")
        training, config, ranks = self.training, self.config, self.ranks
        self._seed()
        with watch(config.method, config.epochs, training.total) as watcher:
            if self.folder is not None:
                folder = self.folder
                ranks.lead(lambda: open_folder(folder, config, self.device, ranks.count))
            if store is not None and resume:
                self._restore(store, watcher)
            if "start" not in self.quality:
                self._measure("start", watcher)
            started = time.monotonic() - self.seconds
            for end in training.epoch_steps():
                self.seconds = time.monotonic() - started
                watcher.step(training.step)
                stopped = self._stopped()
                if end is not None or stopped:
                    training.refuse_non_finite()
                if end is not None and not end.rehearsal:
                    line = self._line(end)
                    self.metrics.append(line)
                    self.history.append(end.weights.half())
                    watcher.epoch(line)
                if end is not None or stopped:
                    self._commit(store, end)
                if stopped:
                    raise Interrupted(stopped)
            self._measure("end", watcher)
            data = self.data
            last = trust(self.coach, data.x_train, data.y_train, data.x_valid, data.y_valid)
            # A student that has memorised a wrong label makes it look right in the end, so
            # samples are ranked by their mean weight over the epochs.
            mean = torch.stack(self.history).float().mean(0)
            self.trust = replace(last, weight=mean / mean.mean().clamp(min=1e-30))

    def _measure(self, when: str, watcher: Watcher) -> None:
        """Note how good the window's meta-gradient is and what an update costs.

        By one process, and in runs that are long against the hundred steps that it takes.
        """
        if self.training.total < MEASURED_STEPS or self.ranks.count > 1:
            return
        found = quality.of(self.training)
        if found is None:
            return
        self.quality[when] = asdict(found)
        interval = self.training.schedule.interval
        if when == "start":
            more = found.overhead(interval)
            seconds = more * found.plain_seconds * self.training.total
            watcher.say(
                f"a teacher update costs {found.update_steps:.1f} training steps; every "
                f"{interval} steps, teaching takes {more:+.0%}, about {seconds:.0f} s"
            )

    def _seed(self) -> None:
        """Seed the global generators, from which dropout draws: each rank has a stream."""
        seed, rank = self.config.seed, self.ranks.rank
        torch.manual_seed(seed if rank == 0 else stream(seed, "rank", rank).initial_seed())

    def _stopped(self) -> int | None:
        """The number of the signal that ends this step on all ranks, if one has come."""
        if self.ranks.count == 1:
            return self.signals.received
        # The next step's exchange carries it to the others.
        self.ranks.signal = self.signals.received or 0
        return self.ranks.signalled or None

    def _commit(self, store: Store | None, end: EpochEnd | None) -> None:
        """Write the metrics after an epoch, and a checkpoint."""
        step = self.training.step
        self.coach.prove_equal(f"at the commit of step {step}")
        if store is None or self.folder is None:
            return
        folder, state = self.folder, self._state()

        def write() -> None:
            if end is not None and not end.rehearsal:
                write_metrics(folder, self.metrics)
            store.commit(step, state, meta=self._meta())

        self.ranks.lead(write)

    def finish(self, beside: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The summary; written, with the samples' weights, where there is a folder."""
        summary = self._summary(beside)
        if self.folder is not None:
            modules = {"student": self.training.module, "teacher": self.coach.teacher}
            folder = self.folder
            self.ranks.lead(
                lambda: write_results(folder, self.data, self.trust, self.history, modules, summary)
            )
        return summary

    def _line(self, end: EpochEnd) -> dict[str, Any]:
        data = self.data
        tested = None
        if data.x_test is not None and data.y_test is not None:
            tested = self._accuracy(data.x_test, data.y_test)
        return {
            "epoch": end.epoch,
            "step": end.step,
            "seconds": round(self.seconds, 3),
            "lr": self.training.optimizer.param_groups[0]["lr"],
            "train_loss": end.train_loss,
            "valid_loss": end.valid_loss,
            "valid_accuracy": self._accuracy(data.x_valid, data.y_valid),
            "test_accuracy": tested,
            "effective_sample_size": end.effective_sample_size,
            "updates": end.updates,
            "drift": end.drift,
            "meta_gradient_norm": end.meta_gradient_norm,
            "noise_auroc": noise_auroc(end.weights, self.wrong),
        }

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
            "gradient_quality": self.quality or None,
            "teacher_parameters": sum(p.numel() for p in self.coach.teacher.parameters()),
            "baseline": plain,
        }

    def _accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        """Each rank sees its part of the samples."""
        ranks, own = self.ranks, self.ranks.part(labels)
        if ranks.count == 1:
            return accuracy(self.training.module, inputs, labels)
        share = accuracy(self.training.module, ranks.part(inputs), own) if len(own) else 0.0
        return float(ranks.table(round(share * len(own))).sum()) / len(labels)

    def _state(self) -> dict[str, Any]:
        state = {
            "training": self.training.state_dict(),
            "metrics": self.metrics,
            "history": torch.stack(self.history) if self.history else None,
            "generators": generator_states(self.device),
        }
        if self.ranks.count > 1:
            # Recorded steps are of the rank's own samples; the states they keep are not.
            steps = [{**step, "state": None} for step in state["training"]["coach"]["steps"]]
            own = {"steps": steps, "generators": state["generators"]}
            state["others"] = [from_bytes(raw) for raw in self.ranks.collected(to_bytes(own))[1:]]
        return state

    def _meta(self) -> dict[str, Any]:
        here = {"threads": torch.get_num_threads(), "processes": self.ranks.count}
        return {"seconds": self.seconds, "quality": self.quality, **here, **versions()}

    def _own(self, tree: dict[str, Any], processes: int) -> None:
        """Put this rank's share of a checkpoint in the place of rank 0's."""
        coach = tree["training"]["coach"]
        if processes != self.ranks.count:
            # Batches are spread differently now: the window begins anew.
            coach["steps"] = []
            if not self.ranks.first:
                del tree["generators"]
        elif not self.ranks.first:
            own = tree["others"][self.ranks.rank - 1]
            pairs = zip(own["steps"], coach["steps"], strict=True)
            coach["steps"] = [{**step, "state": first["state"]} for step, first in pairs]
            tree["generators"] = own["generators"]

    def _restore(self, store: Store, watcher: Watcher) -> None:
        found = store.newest()
        step = -1 if found is None else found.step
        if self.ranks.told(step) != step:
            raise CheckpointError(
                f"rank {self.ranks.rank} finds another newest checkpoint in {store.folder} than "
                "rank 0: give all ranks one shared folder"
            )
        if found is None:
            watcher.say("no checkpoint yet: training starts at step 0")
            return
        for skipped in found.skipped:
            watcher.say(f"damaged checkpoint passed over: {skipped}")
        saved, here = {"processes": 1, **found.meta}, self._meta()
        changed = [key for key in here if key != "seconds" and saved.get(key) != here[key]]
        if changed:
            watcher.say(f"not bit-reproducible: {', '.join(changed)} changed since the checkpoint")
        tree = found.tree
        try:
            self._own(tree, saved["processes"])
            self.training.load_state_dict(tree["training"])
            self.metrics = tree["metrics"]
            self.history = [] if tree["history"] is None else list(tree["history"])
            self.seconds = float(found.meta["seconds"])
            self.quality = found.meta.get("quality", {})
            if "generators" in tree or self.ranks.count == 1:
                set_generator_states(tree["generators"])
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            writer = found.meta.get("deepteach", "another version")
            raise CheckpointError(
                f"the checkpoint {found.path} does not fit this run ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}): it was written by deepteach {writer}; "
                "go on with that one and the same student, or choose another --out"
            ) from error
        if self.folder is not None:
            folder = self.folder
            self.ranks.lead(lambda: write_metrics(folder, self.metrics))
        watcher.say(f"resumed at step {found.step} of {self.training.total}")


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
