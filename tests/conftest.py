"""One thread, one seed, one Hypothesis profile for every test; the command line in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from toy import Command, command

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    # torch itself scripts its forward-mode decompositions on first use.
    config.addinivalue_line("filterwarnings", "ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command line in an empty folder, its report not drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepteach.report.html.write_report", lambda run: run.path / "report.html")
    return command(capsys)
