"""Folders of images become arrays, or one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import refused, rng, same
from PIL import Image

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.readers import load
from deepteach.errors import ConfigError

torch.set_num_threads(1)


def write_images(root: Path, count: int, mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """`count` images 5 wide and 4 high for each of the classes ant and bee."""
    pixels = rng(seed).integers(256, size=(2 * count, 4, 5, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        place = root / ("ant", "bee")[i // count]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).save(place / f"{i:03d}.png")
    return pixels


def test_folder_with_parts(tmp_path: Path) -> None:
    x = {p: write_images(tmp_path / p, 12, seed=i) for i, p in enumerate(("train", "valid"))}
    y = np.repeat([0, 1], 12)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    data = load(f"folder:{tmp_path}", seed=0)
    assert same(data, from_arrays(x["train"], y, x["valid"], y))
    assert data.input_shape == (3, 4, 5)
    assert data.notes == ("classes: ant = 0, bee = 1",)


def test_folder_without_parts_sizes_and_grey(tmp_path: Path) -> None:
    write_images(tmp_path, 50, mode="L")
    Image.new("L", (9, 9), 200).save(tmp_path / "bee" / "zz.JPG", format="JPEG")
    data = load(f"folder:{tmp_path}", seed=0)
    assert data.input_shape == (1, 4, 5)
    assert len(data.y_train) + len(data.y_valid) == 101
    assert "1 of 101 images were resized to 5x4" in data.notes
    Image.new("RGB", (5, 4), (200, 0, 0)).save(tmp_path / "bee" / "zz.png")
    assert load(f"folder:{tmp_path}", seed=0).input_shape == (3, 4, 5)


def test_bad_folders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> Data:
        return load(f"folder:{tmp_path}", 0)

    refused(lambda: load(f"folder:{tmp_path}/none", 0), "is not a folder")
    refused(read, "has no class folders")
    (tmp_path / "ant").mkdir()
    refused(read, "holds no .png, .jpg, .jpeg image")
    write_images(tmp_path, 10)
    (tmp_path / "ant" / "000.png").write_bytes(b"\x89PNG no")
    refused(read, "000.png cannot be read as an image")
    whole = (tmp_path / "ant" / "001.png").read_bytes()
    (tmp_path / "ant" / "000.png").write_bytes(whole[:-40])
    refused(read, "000.png cannot be read as an image")
    (tmp_path / "valid").mkdir()
    refused(read, "has valid but no train")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(read, "pip install 'deepteach[images]'", ConfigError)
