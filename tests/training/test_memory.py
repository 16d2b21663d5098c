"""What a training of samples on disk holds of each of them is a few numbers, whatever they are."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepteach.data.readers import load
from deepteach.training.api import run
from deepteach.training.config import make

A_SAMPLE = 300
"""Bytes, of which 200 are taken: as Python's own objects, the cells of a list take as many."""


def listed(root: Path, count: int) -> Path:
    """Paths to few images, for what is measured is what is held, not how they are read."""
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


def peak(path: Path) -> int:
    """Bytes of Python and NumPy beyond those before, from the list to the written weights."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        trained(path)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:.*validation")
def test_a_sample_costs_a_few_numbers(tmp_path: Path) -> None:
    trained(listed(tmp_path, 400))  # what is imported once
    small, large = (peak(listed(tmp_path, count)) for count in (600, 1800))
    assert (large - small) / 1200 < A_SAMPLE
