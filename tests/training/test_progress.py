"""Watching a run: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from deepteach.training import progress
from deepteach.training.progress import Bar, Lines, Silent, describe, watching
from deepteach.training.run import MethodRun

LINE = {"epoch": 3, "train_loss": 1.23456, "valid_accuracy": 0.5, "test_accuracy": 0.25}


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=80), out


def test_what_is_described() -> None:
    assert describe(LINE) == "loss 1.235  valid 50.0%  test 25.0%"
    assert describe({**LINE, "test_accuracy": None}) == "loss 1.235  valid 50.0%"


def test_lines_without_a_terminal() -> None:
    target, out = console(False)
    with watching(target, "deep", 3, 30) as watcher:
        assert isinstance(watcher, Lines)
        watcher.step(1)
        watcher.warn("a damaged checkpoint")
        watcher.say("[bold]resumed[/] at step 1")
        watcher.epoch({**LINE, "epoch": 1})
        watcher.epoch(LINE)
    assert out.getvalue().splitlines() == [
        "deep: a damaged checkpoint",
        "deep: [bold]resumed[/] at step 1",
        "deep: epoch 3/3  loss 1.235  valid 50.0%  test 25.0%",
    ]


def test_lines_are_rare_but_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    target, out = console(False)
    lines = Lines(target, "deep", 100, every=10)
    for epoch in range(1, 101):
        now[0] += 1
        lines.epoch({**LINE, "epoch": epoch})
    shown = [int(line.split()[2].split("/")[0]) for line in out.getvalue().splitlines()]
    assert shown == list(range(10, 101, 10))


def test_a_long_line_is_not_wrapped() -> None:
    target, out = console(False)
    Lines(target, "deep", 3).say("x" * 300)
    assert out.getvalue() == f"deep: {'x' * 300}\n"


def test_a_bar_on_a_terminal() -> None:
    target, out = console(True)
    with watching(target, "deep", 3, 30) as watcher:
        assert isinstance(watcher, Bar)
        watcher.warn("resumed")
        for step in range(1, 31):
            watcher.step(step)
        watcher.epoch(LINE)
    shown = out.getvalue()
    assert "30/30" in shown and "deep: resumed" in shown
    assert "valid 50.0%" in shown


def test_silence() -> None:
    watcher = Silent()
    assert watcher.say("a") is watcher.step(1) is watcher.epoch(LINE) is None


class Inheriting(Silent):
    """Hears epochs alone."""


@pytest.mark.parametrize("kind", [Silent, Inheriting])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_must_not_be_missed_is_told_once(
    kind: type[Silent], rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first rank, and also where nobody hears what is said."""

    def restore(loop: Any, log: Any, store: Any, say: Any, warn: Any, *known: Any) -> bool:
        warn("damaged")
        return False

    monkeypatch.setattr("deepteach.training.run.restore", restore)
    ranks = SimpleNamespace(count=2, first=rank == 0, lead=lambda work: None)
    loop, data = SimpleNamespace(device="cpu"), SimpleNamespace(decisions=None)
    run = SimpleNamespace(
        config=None, log=None, loop=loop, ranks=ranks, data=data, _identity={}, _sketch={}
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        MethodRun._begin(cast(Any, run), tmp_path, kind(), True)
    assert [str(one.message) for one in told] == ["damaged"] * (rank == 0)
