"""What a training of samples on disk holds of each of them is a few numbers, whatever they are."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_run import make_run
from PIL import Image

from deepteach.data.readers import load
from deepteach.report.workbench import _run_key
from deepteach.runs.reader import open_run
from deepteach.training.api import run
from deepteach.training.config import make

A_SAMPLE = 300
"""Bytes, of which 200 are taken: as Python's own objects, the cells of a list take as many."""


def listed(root: Path, count: int) -> Path:
    """Paths to few images, for what is measured is what is held, not how they are read."""
    root.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    for i in range(16):
        pixels = draw.integers(256, size=(6, 6), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    rows = [f"0{i % 2}.png,{'ant' if i % 2 else 'bee'},valid" for i in range(30)]
    rows += [f"{2 + i % 14:02}.png,{'ant' if i % 3 else 'bee'},train" for i in range(count)]
    path = root / f"{count}.csv"
    path.write_text("\n".join(["path,label,split", *rows]) + "\n")
    return path


def trained(path: Path) -> None:
    config = make(
        {
            "data": f"manifest:{path}", "student": "mlp", "epochs": 1, "interval": 4,
            "batch_size": 64, "baseline": False, "out": str(path.with_suffix(".run")),
        }
    )  # fmt: skip
    run(config, load(config.data, 0))


def peak(work: Callable[[Path], object], path: Path) -> int:
    """Bytes of Python and NumPy beyond those before.

    Objects of earlier tests are left out of collections: with more of them these come later.
    """
    gc.freeze()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work(path)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        gc.unfreeze()


@pytest.mark.filterwarnings("ignore:.*validation")
def test_a_sample_costs_a_few_numbers(tmp_path: Path) -> None:
    trained(listed(tmp_path, 400))  # what is imported once
    small, large = (
        # Python's table of names that it keeps once may grow in either, by 8 MB, but not in both.
        min(peak(trained, listed(tmp_path / turn, count)) for turn in ("first", "second"))
        for count in (600, 1800)
    )
    assert (large - small) / 1200 < A_SAMPLE


def test_reading_a_run_back_costs_no_more(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / str(count), n=count, samples=False) for count in (1000, 5000)]
    open_run(paths[0])  # what is imported once
    small, large = (peak(open_run, path) for path in paths)
    assert (large - small) / 4000 < A_SAMPLE


def test_a_run_is_told_by_parts_of_its_samples(tmp_path: Path) -> None:
    """The report's key of a run: as one text the samples' cells take several times as much."""
    runs = [open_run(make_run(tmp_path / str(n), n=n, samples=False)) for n in (5000, 25000)]
    small, large = (peak(lambda _, run=run: _run_key(run), tmp_path) for run in runs)
    assert large - small < 2000
