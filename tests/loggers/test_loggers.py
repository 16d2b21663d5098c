"""Loggers on the real libraries, offline: every epoch once, also over a resume; own functions."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import deepteach as dt
from deepteach.cli.entry import main
from deepteach.errors import ConfigError
from deepteach.loggers.base import AbstractLogger, CalledLogger, LoggedRun
from deepteach.loggers.mlflow import MLflow
from deepteach.loggers.registry import LOGGERS, logger_of
from deepteach.loggers.tensorboard import TensorBoard
from deepteach.loggers.wandb import WandB
from deepteach.training.logged import logged

X, Y = load_digits(return_X_y=True)
X = X[:300].astype("float32")
Y = Y[:300].astype("int64")
GIVEN = np.where(np.arange(200) % 4 == 0, (Y[:200] + 1) % 10, Y[:200])
TOLD = ("train_loss", "valid_loss", "valid_accuracy", "effective_sample_size", "noise_auroc")


class Stop(Exception):
    """Ends a run, as a search for settings does with a bad one."""


def train(**settings: Any) -> Any:
    given = {"epochs": 3, "baseline": False, "threads": 1, "batch_size": 50, **settings}
    return dt.train("mlp", (X[:200], GIVEN), (X[200:], Y[200:]), y_clean=Y[:200], **given)


def stop_after(epoch: int) -> Callable[[Mapping[str, Any]], None]:
    def logger(line: Mapping[str, Any]) -> None:
        if line["epoch"] == epoch:
            raise Stop

    return logger


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_and_values(folder: Path, name: str) -> list[Any]:
    found = [(line["step"], line[name]) for line in lines_of(folder) if line[name] is not None]
    return [(step, pytest.approx(value, rel=1e-5)) for step, value in found]


def stopped_and_resumed(folder: Path, logger: Any) -> None:
    """Stopped in the second epoch, after its checkpoint and before this logger was told of it."""
    with pytest.raises(Stop):
        train(out=folder, logger=[stop_after(2), logger])
    train(out=folder, logger=logger, resume=True)
    assert [line["epoch"] for line in lines_of(folder)] == [1, 2, 3]


def test_tensorboard_begins_anew_where_its_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(out=tmp_path / "a", logger=stop_after(2))
    train(out=tmp_path / "a", logger="tensorboard", resume=True)
    assert [*(tmp_path / "a" / "tensorboard").iterdir()]


def test_tensorboard_has_every_epoch_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2 as messages

    stopped_and_resumed(tmp_path / "a", "tensorboard")
    found = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    for name in TOLD:
        told = [(one.step, one.value) for one in found.Scalars(name)]
        assert told == steps_and_values(tmp_path / "a", name), name
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    message: Any = getattr(messages, "HParamsPluginData")  # noqa: B009 (made when imported)
    start = message.FromString(content).session_start_info
    assert start.hparams["batch_size"].number_value == 50
    assert start.hparams["method"].string_value == "deep"


def test_mlflow_has_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    stopped_and_resumed(tmp_path / "a", "mlflow")
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("deepteach")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and str(run.info.run_name).endswith("/a")
    assert run.data.params["batch_size"] == "50" and run.data.params["noise.kind"] == "none"
    for name in TOLD:
        told = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert sorted(told) == steps_and_values(tmp_path / "a", name), name


def records_of(file: Path) -> Iterator[bytes]:
    """Of a log in the format of LevelDB's: parts of records in blocks of 32 KiB."""
    data, at, found = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block, too short for a part
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        found += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield found
            found = b""


def test_wandb_offline_has_the_epochs_and_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.proto import wandb_internal_pb2 as messages

    message: Any = getattr(messages, "Record")  # noqa: B009 (made when imported)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(Stop):
        train(out=tmp_path / "a", logger=["wandb", stop_after(2)])
    train(out=tmp_path / "a", logger="wandb", resume=True)
    files = sorted((tmp_path / "a" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1 < len(files)  # one run, in two parts
    told: list[tuple[int, float]] = []
    settings: dict[str, Any] = {}
    for file in files:
        for raw in records_of(file):
            record = message.FromString(raw)
            for one in record.run.config.update:
                settings[one.key] = json.loads(one.value_json)
            values = {
                one.key or one.nested_key[0]: json.loads(one.value_json)
                for one in record.history.item
            }
            if "train_loss" in values:
                told.append((values["_step"], values["train_loss"]))
    assert sorted(told) == steps_and_values(tmp_path / "a", "train_loss")
    assert settings["batch_size"] == 50 and settings["method"] == "deep"


def test_a_function_is_told_of_every_epoch_once_and_of_the_runs_beside(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []
    with pytest.raises(Stop):
        train(out=tmp_path / "a", logger=[told.append, stop_after(2)], baseline=True)
    train(out=tmp_path / "a", logger=told.append, baseline=True, resume=True)
    assert [(line["method"], line["epoch"]) for line in told] == [
        *(("deep", epoch) for epoch in (1, 2, 3)), *(("uniform", epoch) for epoch in (1, 2, 3)),
    ]  # fmt: skip
    own = [{key: line[key] for key in line if key != "method"} for line in told[:3]]
    assert own == lines_of(tmp_path / "a")


def test_without_a_folder(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []
    train(epochs=1, logger=[told.append, TensorBoard(tmp_path / "tb")])
    assert len(told) == 1 and list((tmp_path / "tb" / "deep").iterdir())
    with pytest.raises(ConfigError, match=r"no folder to write to: name the run's \(out\)"):
        train(epochs=1, logger="tensorboard")


class Failing(AbstractLogger):
    """Fails in one of its functions, as another library does without a network."""

    def __init__(self, where: str) -> None:
        self.where, self.calls = where, []

    def _called(self, where: str) -> None:
        self.calls.append(where)
        if where == self.where:
            raise OSError("no\nnetwork")

    def begin(self, run: LoggedRun) -> tuple[int, ...]:
        self._called("begin")
        return ()

    def epoch(self, line: Mapping[str, Any]) -> None:
        self._called("epoch")

    def end(self, finished: bool) -> None:
        self._called(f"end {finished}")


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("epoch", ["begin", "epoch"]),
        ("end True", ["begin", "epoch", "epoch", "end True"]),
    ],
)
def test_a_logger_that_fails_costs_no_run(where: str, calls: list[str]) -> None:
    logger, told = Failing(where), []
    with pytest.warns(RuntimeWarning, match="Failing failed .OSError: no network. and is told no"):
        train(epochs=2, logger=[logger, told.append])
    assert logger.calls == calls and len(told) == 2


def test_a_logger_that_cannot_begin_is_told_before_training_and_others_are_closed() -> None:
    first, second = Failing("never"), Failing("begin")
    with pytest.raises(ConfigError, match="Failing cannot begin .OSError: no network.: mend its"):
        train(logger=[first, second])
    assert first.calls == ["begin", "end False"]


@pytest.mark.parametrize(("count", "kind"), [(1, Stop), (2, ConfigError)])
def test_an_own_error_comes_as_it_is_but_to_other_ranks(count: int, kind: type[Exception]) -> None:
    """Those are told of errors by their line alone."""
    ranks: Any = SimpleNamespace(count=count, lead=lambda action: action())
    run = LoggedRun("deep", {}, None, ())
    with pytest.raises(kind), logged([CalledLogger(stop_after(1))], run, ranks) as tell:
        tell({"epoch": 1})


def test_names_and_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert isinstance(logger_of("mlflow"), MLflow) and isinstance(logger_of("wandb"), WandB)
    (tmp_path / "own_loggers.py").write_text(
        "class Good:\n    def __call__(self, line): print('told', line['epoch'], line['method'])\n"
        "def bad(line): raise KeyError('mean')\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert logger_of("own_loggers:Good").stops
    for wrong, told in {
        "tensorbord": "unknown logger 'tensorbord', did you mean 'tensorboard'",
        "own_loggers:none": "cannot be imported",
        "own_loggers:number": "expected one of tensorboard, mlflow, wandb, a function",
    }.items():
        with pytest.raises(ConfigError, match=told):
            logger_of(wrong)
    for wrong in (3, Stop):
        with pytest.raises(ConfigError, match="expected one of tensorboard"):
            logger_of(wrong)


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_names_and_paths(monkeypatch, tmp_path)
    settings = "train --epochs 2 --baseline false --student mlp --no-report --data digits".split()
    settings += "--threads 1 --method uniform".split()
    good = [*settings, "--logger", "own_loggers:Good,tensorboard", "--out", str(tmp_path / "a")]
    assert main(good) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("told")] == [
        "told 1 uniform", "told 2 uniform",
    ]  # fmt: skip
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    assert main([*settings, "--logger", "own_loggers:bad", "--out", str(tmp_path / "b")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("deepteach: logger 'own_loggers:bad' failed (KeyError: 'mean')")
    assert main([*settings, "--logger", "", "--resume", "--out", str(tmp_path / "b")]) == 0
    assert len(lines_of(tmp_path / "b")) == 2


@pytest.mark.parametrize("name", LOGGERS)
def test_what_is_not_installed_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigError, match=rf"needs {name}: pip install 'deepteach\[{name}\]'"):
        logger_of(name)
