"""Watching a run: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deepteach.training import progress
from deepteach.training.progress import Bar, Lines, Silent, describe, watching

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
        watcher.say("[bold]resumed[/] at step 1")
        watcher.epoch({**LINE, "epoch": 1})
        watcher.epoch(LINE)
    assert out.getvalue().splitlines() == [
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
        watcher.say("resumed")
        for step in range(1, 31):
            watcher.step(step)
        watcher.epoch(LINE)
    shown = out.getvalue()
    assert "30/30" in shown and "deep: resumed" in shown
    assert "valid 50.0%" in shown


def test_silence() -> None:
    watcher = Silent()
    assert watcher.say("a") is watcher.step(1) is watcher.epoch(LINE) is None
