"""`train` and `run`: a model, data and settings in, a finished run out."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.decisions import decided, decisions_of
from deepteach.data.huggingface_datasets import opened
from deepteach.data.inputs import RawInputs
from deepteach.data.lazy import Access, LazyRows
from deepteach.data.map_style import from_loader, part_of
from deepteach.data.rows import fingerprint, readable
from deepteach.data.tasks.registry import AUTO
from deepteach.data.validation import as_whole, features
from deepteach.distributed.launch import joined, refuse_other
from deepteach.errors import ConfigError, DataError
from deepteach.loggers.base import AbstractLogger
from deepteach.loggers.registry import logger_of
from deepteach.names import brief, expanded
from deepteach.runs.lock import RunLock
from deepteach.runs.reader import UNIFORM, folder_of
from deepteach.teachers.registry import method_name
from deepteach.training import build
from deepteach.training.choices import Overrides, name_of, refuse_misplaced
from deepteach.training.config import METHODS_OWN, RUNTIME_KEYS, Config, make
from deepteach.training.input_forms import bytes_are_whole
from deepteach.training.progress import Silent
from deepteach.training.result import Result
from deepteach.training.run import MethodRun, Watch
from deepteach.training.run_folder import claim
from deepteach.training.sample_files import sample_weights
from deepteach.training.signals import interrupts

OWN = ("optimizer", "loss", "augment")
"""Settings in whose place `train` takes an object."""

GIVEN = "given"
"""What the settings say of decisions that came as a mapping."""


def train(
    model: nn.Module | str,
    train_data: Any,
    valid_data: Any = None,
    test_data: Any = None,
    teacher: Any = "deep",
    *,
    y_clean: Any = None,
    classes: int | None = None,
    decisions: Mapping[int, Any] | str | os.PathLike[str] | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    logger: Any = None,
    **settings: Any,
) -> Result:
    """Train `model` (in place) with a teacher that learns from the trusted `valid_data`.

    A module gets floating inputs and whole numbers (tokens) as they are, of any shape; bytes
    (pixels) are normalised per channel by the training samples, as images, unless it has an
    embedding, or cannot take them so: then they are whole numbers, too (int64). For a model by
    name all inputs are normalised, per channel or column, as in `TeachClassifier` and from files.

    Args:
        model: a module, or the name of a student ("mlp", "cnn", "resnet8", ...).
        train_data: `(x, y)` or `(x, y, group)` of arrays or tensors with a row per sample,
            `group` naming the source of each; or a map-style Dataset of such items, or a
            DataLoader over one (of which the dataset, batch size and workers are taken). x and
            y are what `from_arrays` takes. A Dataset is read on access: once for its labels
            and checks (the logger "deepteach" is told before that), then for every batch. Or a
            Dataset of Hugging Face (`deepteach.data.huggingface_datasets.Columns`), or a
            DatasetDict with all parts.
        valid_data: trusted samples, as train_data, but held in memory. Without them a
            stratified part of the training data is split off, with a warning.
        test_data: samples that only measure.
        teacher: what `teachers.registry.method` takes: a method's name, a teacher, a feature,
            or a function or class that makes one.
        y_clean: `(n,)` the truth of the training labels, where known; only measures.
        classes: their number, unless it is to be read off the labels.
        decisions: what a person has decided of rows of the training data: labels by index, or a
            csv of the columns index and label. Such a row gets the label and is a trusted sample
            from now on; with None, or an empty cell, it is dropped (`deepteach.data.decisions`).
        resume: go on in the folder `out` from its newest verified checkpoint, with a warning
            where that is not the newest one; other labels or inputs than before are refused.
        watch: told of every step and epoch, as `deepteach.training.progress` does.
        logger: told of every epoch once its checkpoint is committed, also of the runs beside this
            one: a function of a mapping (a line of metrics.jsonl, and the `method`), a logger, its
            name (`deepteach.loggers.registry.LOGGERS`), or several of these.
        settings: the fields of `deepteach.training.config.Config` (epochs, batch_size, lr, out,
            seed, ...); `optimizer`, `loss` and `augment` also take a function: of the
            parameters, of `(logits, y)` to `(batch,)`, of `(x, generator)` to x.

    Raises:
        DataError: data that cannot be trained on, before anything is trained.
        ConfigError: settings that are unknown or do not go together, likewise.
        NumericError: a loss or a state is not finite; the last checkpoint is good.
        CheckpointError: with `resume`, all checkpoints are damaged or do not fit.
        StorageError: the disk, or the folder, failed.
    """
    given = {"train_data": train_data, "valid_data": valid_data, "test_data": test_data}
    settings = {"data": "arrays", **from_loader(train_data), **settings}
    checked = None if decisions is None else decisions_of(decisions)
    if decisions is not None:
        settings["decisions"] = GIVEN if isinstance(decisions, Mapping) else os.fspath(decisions)
    several = isinstance(logger, Sequence) and not isinstance(logger, str)
    given_loggers = [] if logger is None else [*logger] if several else [logger]
    if names := [one for one in given_loggers if isinstance(one, str)]:
        settings["logger"] = names
    config, own = configured(model, teacher, settings)
    data = assembled(config, model, given, y_clean, classes)
    for note in data.notes:
        if note.startswith(("no x_valid", "task ")):
            warnings.warn(note, UserWarning, stacklevel=2)
    if checked is not None:
        data = decided(data, checked)
    result = run(
        config,
        data,
        **own,
        resume=resume,
        watch=watch,
        loggers=[logger_of(one) for one in given_loggers if not isinstance(one, str)],
    )
    if result.path is not None and result.coach.ranks.first:
        _report(result.path)
    return result


def _report(folder: Path) -> None:
    """Write report.html; where that fails it is told, for the run is finished."""
    try:
        from deepteach.report.html import write_report  # matplotlib, which training does without

        write_report(folder)
    except Exception as error:  # of whatever draws and writes
        warnings.warn(
            f"report.html was not written ({brief(error)[:200]}): `deepteach report {folder}` "
            "writes it",
            UserWarning,
            stacklevel=3,
        )


def assembled(
    config: Config,
    model: nn.Module | str,
    given: Mapping[str, Any],
    y_clean: Any = None,
    classes: int | None = None,
) -> Data:
    """The parts that `train` takes, by name, as one problem. Raises DataError."""
    as_given = not isinstance(model, str)
    taken = opened(given, config.group, config.image_size)
    if config.group is not None and not taken.has_columns:
        raise ConfigError(
            "train has no column to read groups from: give the source of each sample beside it, "
            "train_data=(x, y, group)"
        )
    if config.image_size is not None and not any(
        getattr(part, "layout", None) for part in taken.given.values()
    ):
        raise ConfigError(
            "image_size is of images in a data set of Hugging Face, and train was given none: "
            "resize them in the items, or leave it out"
        )
    if classes is not None and (type(classes) is bool or not isinstance(classes, Integral)):
        raise DataError(f"classes must be a whole number, or left out, got {classes!r}")
    names = taken.classes if config.task in (AUTO, "classification", "binary") else None
    if names is not None and classes not in (None, len(names)):
        raise DataError(f"classes is {classes}, and the labels are of {len(names)}: leave it out")
    reading = Access(config.seed, config.workers, as_given, logging.getLogger("deepteach").info)
    splits = [part_of(source, name, reading) for name, source in taken.given.items()]
    if as_given and bytes_are_whole(model, config.internal, splits[0][0]):
        reading = replace(reading, whole_bytes=True)
        splits = [part_of(source, name, reading) for name, source in taken.given.items()]
        splits = [(x if isinstance(x, LazyRows) else as_whole(x), y, g) for x, y, g in splits]
    x_train = splits[0][0]
    kind = (
        x_train.raw_dtype
        if isinstance(x_train, LazyRows)
        else features(x_train, "x_train", as_given=as_given).dtype
    )
    data = from_arrays(
        *splits[0][:2],
        *splits[1][:2],
        *splits[2][:2],
        taken.y_clean if y_clean is None else y_clean,
        group_train=splits[0][2],
        name=config.data,
        seed=config.seed,
        classes=classes if names is None else len(names),
        label_names=names,
        valid_size=config.valid_size,
        normalise=not as_given or kind.kind in "bui",
        as_given=as_given,
        task=config.task,
    )
    return replace(data, notes=(*taken.notes, *data.notes))


def configured(
    model: nn.Module | str, teacher: Any, settings: dict[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """The configuration of a run on data at hand, and what `run` takes in place of names in it.

    That is `module` and `teacher`, None where they are names, and `overrides`.

    Raises:
        ConfigError: a setting that is unknown, or has no meaning for such data.
    """
    refuse_misplaced(settings)
    if model is None:
        raise ConfigError("model is None: give an nn.Module, or the name of a student, as 'mlp'")
    if not isinstance(settings.get("out"), str | os.PathLike | None):
        raise ConfigError(f"out must be the path of a folder, got {settings['out']!r}")
    if isinstance(settings.get("device"), torch.device):
        settings = {**settings, "device": str(settings["device"])}
    own = {key: settings[key] for key in OWN if callable(settings.get(key))}
    values = {**settings, **{key: name_of(value) for key, value in own.items()}}
    values["noise"] = {"kind": "none", "rate": 0.0}
    values["method"] = teacher if isinstance(teacher, str) else method_name(teacher)
    values["student"] = model if isinstance(model, str) else "custom"
    if values.get("out") is not None:
        values["out"] = os.fspath(values["out"])
    return make(values), {
        "module": None if isinstance(model, str) else model,
        "teacher": None if isinstance(teacher, str) else teacher,
        "overrides": Overrides(**own),
    }


def run(
    config: Config,
    data: Data,
    *,
    module: nn.Module | None = None,
    teacher: Any = None,
    overrides: Overrides | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    loggers: Sequence[AbstractLogger] = (),
) -> Result:
    """One run and those beside it. `config.out` None writes nothing.

    `module`, `teacher` and `overrides` take the place of names in `config`; `loggers` are told
    beside those that it names. Started by torchrun, or under a process group of the caller's, all
    its processes train together; rank 0 writes.

    Raises:
        DeepTeachError: one line with the remedy.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if resume and config.out is None:
        raise ConfigError("resume needs out: name the folder of the run to go on with")
    watch = watch or (lambda name, epochs, steps: nullcontext(Silent()))
    if config.decisions is not None and config.decisions != GIVEN and not data.decisions:
        data = decided(data, decisions_of(config.decisions))
    loggers = (*map(logger_of, config.logger), *loggers)
    config, told = build.fitted(config, data)
    raw_inputs = RawInputs.of(data, as_given=module is not None)
    module, layer = build.student(config, data, module)
    device = build.device(config.device)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(device))
        # A folder named by the time of day has another name on every rank.
        out = ranks.told(None if config.out is None else str(expanded(config.out)))
        config = config.model_copy(update={"out": out})
        settings = config.model_dump_json(exclude=set(RUNTIME_KEYS))
        inputs = [fingerprint(x) for x in (data.x_train, data.x_valid, data.x_test)]
        parts = (*inputs, data.y_train, data.y_valid, data.y_test, data.group)
        for x in map(readable, (data.x_train, data.x_test)):
            if x is not None:
                stack.callback(x.close)
        refuse_other(ranks, settings, parts)
        folder = None if config.out is None else Path(config.out)
        if folder is not None:
            ranks.lead(lambda: _enter(stack, folder, config, resume, data.decisions))
        signals = stack.enter_context(interrupts(relays=ranks.count > 1))
        overrides = overrides or Overrides()
        data = build.read_by_own_loss(config, data, module.to(device), layer, overrides)

        def made(own: Config, own_module: nn.Module, own_teacher: Any) -> MethodRun:
            leads = own is config
            built = build.training(
                *(own, data, own_module.to(device), layer, own_teacher, overrides, ranks),
                leads=leads,
            )
            if leads:
                built = replace(built, notes=(*told, *built.notes))
            place = None if own.out is None else Path(own.out)
            return MethodRun(own, data, built, place, signals, loggers)

        fresh = copy.deepcopy(module)
        # All are made before any is trained: a setting that one cannot do is told at once.
        others = {
            own.method: made(own, copy.deepcopy(fresh), None) for own in _beside(config, folder)
        }
        main = made(config, module, teacher)
        main.go(watch, resume)
        beside: dict[str, dict[str, Any]] = {}
        for name, other in others.items():
            other.go(watch, resume)
            beside[name] = other.finish({})
        summary = main.finish(beside)
    average = main.loop.average
    return Result(
        model=module,
        coach=main.coach,
        config=config,
        summary=summary,
        metrics=main.log.metrics,
        trust=main.trust,
        path=folder,
        beside=beside,
        task=data.task,
        inputs=raw_inputs,
        weights=sample_weights(data, main.trust),
        model_ema=None if average is None else average.module,
        metrics_beside={name: other.log.metrics for name, other in others.items()},
    )


def _beside(config: Config, folder: Path | None) -> Iterator[Config]:
    """The settings of the runs on the same schedule, each in a folder of its own."""
    names = [UNIFORM] if config.baseline and config.method != UNIFORM else []
    for name in [*names, *(name for name in config.beside if name != config.method)]:
        out = None if folder is None else str(folder / folder_of(name))
        own = {"adjoint": METHODS_OWN, "graphs": 0, "teacher_lr": None}
        alone = {"method": name, "baseline": False, "beside": (), "out": out}
        yield config.model_copy(update={**own, **alone})


def _enter(stack: ExitStack, folder: Path, config: Config, resume: bool, decisions: str) -> None:
    claim(folder, config, resume, decisions)
    stack.enter_context(RunLock(folder))
    claim(folder, config, resume, decisions)  # again: another run may have come and gone since
