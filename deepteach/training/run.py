"""One method's run: it trains what was built, records what happens and commits checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.data.dataset import Data
from deepteach.data.identity import file_of, identity_of, sketch_of
from deepteach.data.rows import Samples, readable, select
from deepteach.loggers.base import AbstractLogger, LoggedRun, flat_settings
from deepteach.rng import stream
from deepteach.runs.checkpoint import Store
from deepteach.runs.reader import UNIFORM
from deepteach.training import diagnostics
from deepteach.training.build import Built
from deepteach.training.config import Config
from deepteach.training.evaluate import Trust, measured, trust
from deepteach.training.logged import Tell, logged
from deepteach.training.loop import EpochEnd
from deepteach.training.loop_cost import loop_cost, now
from deepteach.training.progress import Watcher
from deepteach.training.ranking import noise_auroc, ranking_figures
from deepteach.training.resume import RunLog, meta_of, restore, state_of
from deepteach.training.run_folder import open_folder, write_metrics, write_results
from deepteach.training.signals import Interrupted, Interrupts

MEASURED_STEPS = 500
"""Length from which on a run measures its own meta-gradients."""

Watch = Callable[[str, int, int], AbstractContextManager[Watcher]]
"""(name, epochs, steps) -> the watcher of one run."""


class MethodRun:
    """A training on its way from the first step to its files.

    Args:
        config: what is told about the run; nothing is made from it here.
        data: the samples that it is evaluated on, on the CPU.
        built: the training.
        folder: where it is written; None writes nothing.
        signals: what may ask it to stop.
        loggers: told of every epoch.
    """

    trust: Trust
    """The training samples as the teacher sees them at the end; known after `go`."""

    def __init__(
        self,
        config: Config,
        data: Data,
        built: Built,
        folder: Path | None,
        signals: Interrupts,
        loggers: Sequence[AbstractLogger] = (),
    ) -> None:
        self.config, self.data, self.built = config, data, built
        self.folder, self.signals, self.loggers = folder, signals, loggers
        self.loop = built.loop
        self.coach, self.ranks = self.loop.coach, self.loop.ranks
        self.log = RunLog()
        self.task, truth = data.task, data.y_clean
        self.wrong = None if truth is None else self.task.differ(truth, data.y_train)
        self._file = file_of(config.data)  # now: it may be edited before the run ends

    @cached_property
    def _identity(self) -> dict[str, str]:
        return identity_of(self.data)

    @cached_property
    def _sketch(self) -> dict[str, list[float]]:
        return sketch_of(self.data)

    def _of_data(self) -> dict[str, Any]:
        """What tells the data and the student apart from others of the same name."""
        data, module = self.data, self.loop.module
        parts = {"train": data.y_train, "valid": data.y_valid, "test": data.y_test}
        return {
            "samples": {name: 0 if y is None else len(y) for name, y in parts.items()},
            "classes": self.task.outputs,
            "data_identity": {"file": self._file, **self._identity},
            "student_parameters": sum(p.numel() for p in module.parameters()),
        }

    def go(self, watch: Watch, resume: bool) -> None:
        """Train to the end, from the newest verified checkpoint where there is one."""
        loop, config, log = self.loop, self.config, self.log
        self._seed()
        with ExitStack() as stack:
            watcher = stack.enter_context(watch(config.method, config.epochs, loop.total))
            for note in self.built.notes:
                watcher.say(note)
            judged, trusted = len(loop.judging()), len(self.data.y_valid)
            if judged < trusted:
                watcher.say(
                    f"its validation figures are of the {judged} of {trusted} trusted samples that "
                    "never train, and not to be compared with those of all"
                )
            store = None if self.folder is None else self._begin(self.folder, watcher, resume)
            settings = flat_settings(config.model_dump(mode="json"))
            run = LoggedRun(config.method, settings, self.folder, tuple(log.metrics))
            tell = stack.enter_context(logged(self.loggers, run, self.ranks))
            if "start" not in log.quality:
                self._measure("start", watcher)
            started = time.monotonic() - log.seconds
            for end in () if self._settled() else loop.epoch_steps():
                log.seconds = time.monotonic() - started
                watcher.step(loop.step)
                stopped = self._stopped()
                if end is not None or stopped:
                    self._after(end, store, watcher, tell)
                if stopped:
                    raise Interrupted(stopped)
                if end is not None and self._settled():
                    break
            self._tell_best(watcher)
            self._measure("end", watcher)
            self.trust = self._trust()

    def _begin(self, folder: Path, watcher: Watcher, resume: bool) -> Store:
        """Open the folder; its checkpoints, from the newest of which the training goes on."""
        config, log, store = self.config, self.log, Store(folder / "checkpoints")
        place, said = (self.loop.device, self.ranks.count), self.data.decisions
        self.ranks.lead(lambda: open_folder(folder, config, *place, said))
        warn = watcher.warn if self.ranks.first else watcher.say  # once, of all ranks
        known = self._identity, self._sketch
        if resume and restore(self.loop, log, store, watcher.say, warn, *known):
            self.ranks.lead(lambda: write_metrics(folder, log.metrics))
        return store

    def _after(
        self, end: EpochEnd | None, store: Store | None, watcher: Watcher, tell: Tell
    ) -> None:
        """Note what an epoch came to, commit and tell it; without one, commit where it stops."""
        self.loop.refuse_non_finite()
        counted = None if end is None or end.warm_up else self._line(end)
        if end is not None and counted is not None:
            self.log.metrics.append(counted)
            self.log.history.append(end.weights)
            watcher.epoch(counted)
        self._commit(store, new_line=counted is not None)
        if counted is not None:
            tell(counted)

    def _settled(self) -> bool:
        """Whether the training ends early: by what is in the log alone, so after a resume, too."""
        lines = self._evaluated("")
        return (
            self.config.patience is not None
            and bool(lines)
            and (len(lines) - 1 - self._selected("") >= self.config.patience)
        )

    def _tell_best(self, watcher: Watcher) -> None:
        if self.config.patience is None:
            return
        key, metrics = self.task.metrics[0].column("valid"), self.log.metrics
        best, last = self._evaluated("")[self._selected("")], metrics[-1]["epoch"]
        early = f"ended after epoch {last} of {self.config.epochs}; " if self._settled() else ""
        watcher.say(
            f"{early}the best {key} is {best[key]:.4g}, of epoch {best['epoch']}; the student is "
            f"that of epoch {last}"
        )

    def _trust(self) -> Trust:
        last = trust(self.coach, self.data)
        # A student that has memorised a wrong label makes it look right in the end, so
        # samples are ranked by their mean weight over the epochs.
        mean = self.log.history.mean()
        return replace(last, weight=mean / mean.mean().clamp(min=1e-30))

    def _measure(self, when: str, watcher: Watcher) -> None:
        """Note how good the window's meta-gradient is and what an update costs.

        By one process, and in runs that are long against the hundred steps that it takes.
        """
        if self.loop.total < MEASURED_STEPS or self.ranks.count > 1:
            return
        found = diagnostics.of(self.built)
        if found is None:
            return
        self.log.quality[when] = asdict(found)
        cost = loop_cost(self.built) if when == "start" else None
        if cost is not None:
            interval, steps = self.coach.interval, self.loop.total
            more = cost.whole(interval, steps, self._evaluations())
            watcher.say(
                f"a teacher update costs {cost.update / cost.plain:.1f} steps of plain training; "
                f"every {interval} steps, teaching takes {more:+.0%}, about "
                f"{cost.added(interval, steps):.0f} s"
            )

    def _evaluations(self) -> float:
        """Seconds that the run's evaluations will take, by one of them; 0 where they read files."""
        if readable(self.data.x_train) is not None:
            return 0.0
        started = now(self.loop)
        self._judged(self.loop.module, "")
        return (now(self.loop) - started) * self.config.epochs / self.config.evaluate_every

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

    def _commit(self, store: Store | None, *, new_line: bool) -> None:
        """Write the metrics where they have a new line, and a checkpoint."""
        step = self.loop.step
        self.coach.prove_equal(f"at the commit of step {step}")
        if store is None or self.folder is None:
            return
        folder, state = self.folder, state_of(self.loop, self.log)

        def write() -> None:
            if new_line:
                write_metrics(folder, self.log.metrics)
            known = self._identity, self._sketch
            store.commit(step, state, meta=meta_of(self.log, self.ranks, *known))

        self.ranks.lead(write)

    def finish(self, beside: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The summary; written, with the samples' weights, where there is a folder."""
        summary = self._summary(beside)
        if self.folder is not None:
            modules = {"student": self.loop.module, "teacher": self.coach.teacher}
            if self.loop.average is not None:
                modules["student_ema"] = self.loop.average.module
            folder, history = self.folder, self.log.history
            self.ranks.lead(
                lambda: write_results(folder, self.data, self.trust, history, modules, summary)
            )
        return summary

    def _line(self, end: EpochEnd) -> dict[str, Any]:
        found: dict[str, float | None] = dict.fromkeys(self._keys(""))
        average = self.loop.average
        if average is not None:
            found.update(dict.fromkeys(self._keys("_ema")))
        if end.epoch % self.config.evaluate_every == 0 or end.epoch == self.config.epochs:
            found.update(self._judged(self.loop.module, ""))
            if average is not None:
                self.loop.settle_average(average)
                found.update(self._judged(average.module, "_ema"))
        return {
            "epoch": end.epoch,
            "step": end.step,
            "seconds": round(self.log.seconds, 3),
            "lr": self.loop.optimizer.param_groups[0]["lr"],
            "train_loss": end.train_loss,
            "valid_loss": end.valid_loss,
            **found,
            "effective_sample_size": end.effective_sample_size,
            "updates": end.updates,
            "drift": end.drift,
            "meta_gradient_norm": end.meta_gradient_norm,
            "noise_auroc": noise_auroc(end.weights, self.wrong),
        }

    def _summary(self, beside: dict[str, dict[str, Any]]) -> dict[str, Any]:
        config = self.config
        averaged = {} if self.loop.average is None else self._figures("_ema")
        best = self._evaluated("")[self._selected("")]["epoch"]
        plain = beside.get(UNIFORM)
        return {
            "method": config.method,
            "task": self.task.name,
            "metric": self.task.metrics[0].key,
            "data": config.data,
            "noise": config.noise.model_dump(),
            "student": config.student,
            **self._of_data(),
            "seed": config.seed,
            "epochs": config.epochs,
            "last_epoch": self.log.metrics[-1]["epoch"],
            "best_epoch": best,
            "steps": self.loop.step,
            "interval": self.coach.interval,
            "window": self.coach.window,
            "seconds": round(self.log.seconds, 2),
            **self._figures(""),
            **averaged,
            **ranking_figures(self._ranking(), self.trust.weight, self.trust.loss, self.wrong),
            "gradient_quality": self.log.quality or None,
            "teacher_parameters": sum(p.numel() for p in self.coach.teacher.parameters()),
            "baseline": plain,
        }

    def _ranking(self) -> Tensor:
        """What the samples are ranked by: their weights, unless the curriculum knows better."""
        own = self.loop.curriculum.ranking(self.loop)
        return self.trust.weight if own is None else own

    def _keys(self, whose: str) -> list[str]:
        """What figures are called in metrics.jsonl; `whose` ends the names of another model's."""
        metrics = self.task.metrics
        return [metric.column(part, whose) for part in ("valid", "test") for metric in metrics]

    def _evaluated(self, whose: str) -> list[dict[str, Any]]:
        """The lines of the epochs that have figures."""
        key = self.task.metrics[0].column("valid", whose)
        return [line for line in self.log.metrics if line[key] is not None]

    def _selected(self, whose: str) -> int:
        """Which of them the trusted samples choose: the first that is best."""
        metric = self.task.metrics[0]
        valids = [line[metric.column("valid", whose)] for line in self._evaluated(whose)]
        return valids.index(metric.best(valids))

    def _figures(self, whose: str) -> dict[str, Any]:
        """Figures over the evaluated epochs, of which the first metric chooses one."""
        lines, selected = self._evaluated(whose), self._selected(whose)
        found: dict[str, Any] = {}
        for metric in self.task.metrics:
            valid, test = metric.column("valid", whose), metric.column("test", whose)
            valids, tests = [line[valid] for line in lines], [line[test] for line in lines]
            found |= {
                f"{test}_last": tests[-1],
                f"{test}_best": None if tests[0] is None else metric.best(tests),
                f"{test}_selected": tests[selected],
                f"{valid}_best": metric.best(valids),
                f"{valid}_last": valids[-1],
            }
        return found

    def _judged(self, module: nn.Module, whose: str) -> dict[str, float | None]:
        """Of the trusted samples that never train, and of the test samples."""
        data, judging = self.data, self.loop.judging()
        found = self._measured(module, data.x_valid[judging], data.y_valid[judging])
        tested: dict[str, float] = {}
        if data.x_test is not None and data.y_test is not None:
            tested = self._measured(module, data.x_test, data.y_test)
        keys = [metric.key for metric in self.task.metrics]
        figures = [found[key] for key in keys] + [tested.get(key) for key in keys]
        return dict(zip(self._keys(whose), figures, strict=True))

    def _measured(self, module: nn.Module, inputs: Samples, labels: Tensor) -> dict[str, float]:
        """Each rank sees, and reads, its part of the samples."""
        ranks = self.ranks
        if ranks.count > 1:
            own = ranks.part(torch.arange(len(labels)))
            inputs, labels = select(inputs, own), labels[own]
        sums = measured(self.task, module, inputs, labels)
        return self.task.figures(ranks.table(*sums).sum(0))
