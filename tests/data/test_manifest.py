"""A csv of image files: images are read when they are needed, and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, rng
from PIL import Image

from deepteach.data.dataset import Data
from deepteach.data.lazy import LazyRows
from deepteach.data.readers import load
from deepteach.errors import ConfigError

torch.set_num_threads(1)


def written(root: Path, lines: list[str] | None = None, count: int = 24) -> tuple[Path, np.ndarray]:
    """A list of `count` images 5 wide and 4 high, every sixth of them trusted."""
    pixels = rng().integers(256, size=(count, 4, 5, 3), dtype=np.uint8)
    (root / "pictures").mkdir()
    rows = ["path,label,split,hospital"]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / "pictures" / f"{i}.png")
        part = "Validation" if i % 6 > 3 else "train"
        rows.append(f"pictures/{i}.png,{('ant', 'bee')[i % 2]},{part},h{i % 3}")
    path = root / "list.csv"
    path.write_text("\n".join(rows if lines is None else lines) + "\n")
    return path, pixels


def test_images_are_read_when_they_are_needed(tmp_path: Path) -> None:
    path, pixels = written(tmp_path)
    told: list[str] = []
    with pytest.warns(UserWarning, match="only 8 validation samples"):
        data = load(f"manifest:{path}", 0, group="hospital", say=told.append)
    train = np.flatnonzero(np.arange(24) % 6 <= 3)
    assert data.rows.tolist() == train.tolist() and data.rows_valid is not None
    assert isinstance(data.x_train, LazyRows) and isinstance(data.x_valid, torch.Tensor)
    assert data.input_shape == (3, 4, 5) and data.is_image
    assert data.group_names == ("h0", "h1", "h2") and data.label_names == ("ant", "bee")
    assert told[0].startswith("x_train: its 16 samples of 0.0586 KiB are read once")
    raw = pixels.transpose(0, 3, 1, 2)
    mean, std = raw[train].mean((0, 2, 3)), raw[train].std((0, 2, 3))
    expected = (raw - mean[:, None, None]) / std[:, None, None]
    rows = torch.tensor([3, 0, 15])
    np.testing.assert_allclose(data.x_train[rows], expected[train[rows]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.x_valid, expected[data.rows_valid], rtol=1e-4, atol=1e-5)
    shown = data.x_train[rows] * data.scale + data.mean  # as the report shows them
    np.testing.assert_allclose(shown, raw[train[rows]], atol=1e-3)


def test_a_column_of_groups_is_read_unasked(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    head, *rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([f"{head},Group", *(f"{row},g{i % 2}" for i, row in enumerate(rows))])
    )
    with pytest.warns(UserWarning, match="only 8 validation samples"):
        assert load(f"manifest:{path}", 0).group_names == ("g0", "g1")
    with pytest.warns(UserWarning, match="only 8 validation samples"):
        assert load(f"manifest:{path}", 0, group="hospital").group_names == ("h0", "h1", "h2")


def test_captions_of_any_length(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head},caption", *(f"{row},{'x' * 140_000}" for row in rows)]))
    with pytest.warns(UserWarning, match="only 8 validation samples"):
        data = load(f"manifest:{path}", 0)
    assert "columns that are not used: hospital, caption" in data.notes


def test_sizes(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    Image.new("L", (9, 9), 200).save(tmp_path / "pictures" / "3.png")
    with pytest.warns(UserWarning, match="only 8"):
        data = load(f"manifest:{path}", 0, image_size=6)
    assert data.input_shape == (3, 6, 6)
    assert "24 of 24 images were resized to 6x6" in data.notes
    assert "columns that are not used: hospital" in data.notes


BAD: dict[str, tuple[list[str], str]] = {
    "no label": (["path,lable", "pictures/1.png,a"], "no column 'label': expected path and label"),
    "no path": (["label,x", "a,b"], "no column 'path'"),
    "empty path": (["path,label", "pictures/1.png,a", ",b"], "line 3: the path is empty"),
    "empty label": (["path,label", "pictures/1.png,"], "line 2: the label is empty"),
    "split": (["path,label,split", "pictures/1.png,a,trian"], "line 2: split is 'trian'"),
    "lost": (["path,label", "pictures/1.png,a", "none.png,b"], "line 3: "),
    "text": (["path,label", "pictures/1.png,a", "list.csv,b"], "list.csv cannot be read as an"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_one_line(name: str, tmp_path: Path) -> None:
    lines, words = BAD[name]
    path, _ = written(tmp_path, lines)
    refused(lambda: load(f"manifest:{path}", 0), words)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_with_its_line(workers: int, tmp_path: Path) -> None:
    """Its header is whole, so that it is found when it is decoded."""
    path, _ = written(tmp_path)
    image = tmp_path / "pictures" / "7.png"
    Image.fromarray(rng().integers(256, size=(99, 99, 3), dtype=np.uint8)).save(image, "JPEG")
    image.write_bytes(image.read_bytes()[:999])
    words = f"row 5 of x_train: {path} line 9: {image} cannot be read as an image"
    refused(lambda: load(f"manifest:{path}", 0, workers=workers), words)


def test_what_needs_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = written(tmp_path)
    spec = f"manifest:{path}"
    refused(lambda: load(spec, 0, world="tail"), "world 'tail' changes arrays", ConfigError)
    refused(lambda: load(spec, 0, group="hopsital"), "did you mean 'hospital'?")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    refused(lambda: load(spec, 0), "pip install 'deepteach[images]'", ConfigError)


def test_a_large_folder_is_read_on_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the folder in memory."""
    pixels = rng().integers(256, size=(60, 4, 5), dtype=np.uint16)
    for i, image in enumerate(pixels):
        for part in ("train", "test"):
            place = tmp_path / part / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(place / f"{i}.png")

    def read() -> Data:
        return load(f"folder:{tmp_path}", 0, valid_size=10)

    held = read()
    monkeypatch.setattr("deepteach.data.images.folders.HELD", 4 * 20 * 119)
    lazy = read()
    assert isinstance(lazy.x_train, LazyRows) and isinstance(lazy.x_test, LazyRows)
    assert any("each is read when it is needed" in note for note in lazy.notes)
    for name in ("y_train", "y_valid", "y_test", "rows"):
        assert torch.equal(getattr(lazy, name), getattr(held, name))
    # The moments are those of all samples, the ones that were split off among them.
    raw: Any = (
        lazy.x_train[:9] * lazy.scale + lazy.mean,
        held.x_train[:9] * held.scale + held.mean,
    )
    torch.testing.assert_close(*raw, rtol=1e-4, atol=1e-3)


def test_deep_images_on_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepteach.data.images.folders.HELD", 0)
    pixels = rng().integers(2**12, size=(60, 4, 5)).astype(np.uint16)
    pixels[0, 0, 0] = 2**12 - 1
    for i, image in enumerate(pixels):
        place = tmp_path / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{i // 2:03d}.png")
    data = load(f"folder:{tmp_path}", 0, valid_size=10)
    order = np.concatenate([np.arange(0, 60, 2), np.arange(1, 60, 2)])
    expected = pixels[order][data.rows.numpy(), None] * (255 / 4095)
    shown = data.x_train[:] * data.scale + data.mean
    np.testing.assert_allclose(shown, expected, atol=1e-2)
