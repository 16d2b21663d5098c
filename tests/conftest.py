"""One thread, one seed, one Hypothesis profile for every test; the command line in a folder."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from toy import Command, command

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("ci")

CUDA = torch.cuda.is_available()
NO_CUDA = pytest.mark.skip(reason="no CUDA device")


def pytest_configure(config: pytest.Config) -> None:
    # What tests themselves script; of torch 2.14 it is a FutureWarning.
    config.addinivalue_line("filterwarnings", "ignore:.torch.jit.script")


LONGEST = ("test_soak", "test_runner", "test_gpu_script", "test_distributed", "test_sharded")
"""Files that are begun first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        if item.get_closest_marker("cuda") and not CUDA:
            item.add_marker(NO_CUDA)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests that are not marked `cuda` find a machine without CUDA, their processes too."""
    with pytest.MonkeyPatch.context() as patch:
        if CUDA and not item.get_closest_marker("cuda"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch.cuda, "device_count", lambda: 0)
            patch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
        return (yield)


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
