"""Train a student and its teacher: the run's folder, its checkpoints, the runs beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.predict import accuracy
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.data.augment import Augment, identity
from deepteach.data.dataset import Data
from deepteach.distributed.collectives import Ranks
from deepteach.errors import CheckpointError
from deepteach.rng import generator_states, set_generator_states, stream
from deepteach.runs.checkpoint import Store
from deepteach.runs.serialization import from_bytes, to_bytes
from deepteach.training import diagnostics as quality
from deepteach.training.build import resolve_method
from deepteach.training.config import Config
from deepteach.training.evaluate import noise_auroc, trust
from deepteach.training.loop import EpochEnd, TrainingLoop
from deepteach.training.progress import Watcher
from deepteach.training.run_folder import open_folder, versions, write_metrics, write_results
from deepteach.training.schedule import Schedule, steps_per_epoch
from deepteach.training.signals import Interrupted, Interrupts

MEASURED_STEPS = 500
"""Length from which on a run measures its own meta-gradients."""

WANTED_UPDATES = 200
"""Teacher updates that a run should have; the paper's K = 20 where it is long enough."""

Watch = Callable[[str, int, int], AbstractContextManager[Watcher]]
"""(name, epochs, steps) -> the watcher of one run."""


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
        """Make everything; a run that does not lead takes K and B from its method first."""
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
        self.training = TrainingLoop(
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
                if end is not None and not end.warm_up:
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
            if end is not None and not end.warm_up:
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
