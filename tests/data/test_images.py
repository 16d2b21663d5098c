"""Folders of images become arrays, or one line."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

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
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._001.png", ".hidden.png"):
        (tmp_path / "train" / "ant" / junk).write_bytes(b"junk")
        (tmp_path / "valid" / junk).write_bytes(b"junk")
    for empty in (".hidden", "__MACOSX"):
        (tmp_path / empty).mkdir()
        (tmp_path / "train" / empty).mkdir()
    data = load(f"folder:{tmp_path}", seed=0)
    assert same(data, from_arrays(x["train"], y, x["valid"], y))
    assert data.input_shape == (3, 4, 5)
    told = "1 files that are no images are not used: notes.txt"
    assert data.notes == (told, "classes: ant = 0, bee = 1")
    assert data.label_names == ("ant", "bee")


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
    refused(read, "holds no .png, .jpg, .jpeg, .jfif, .bmp, .gif, .webp, .tif, .tiff")
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


@pytest.mark.parametrize(
    "names",
    [
        *[("Train", "VAL", "Test"), ("training", "validation", "testing"), ("TRAIN", "Valid")],
        *[("Training Set", "Validation-Set", "Test Set"), ("train_set", "val_set")],
        *[("trainset", "valset", "testset"), ("seg_train", "dev", "seg_test")],
    ],
)
def test_any_usual_spelling_of_the_parts(tmp_path: Path, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        write_images(tmp_path / name, 12, seed=i)
    (tmp_path / "unlabelled").mkdir()
    data = load(f"folder:{tmp_path}", seed=0)
    assert (len(data.y_train), len(data.y_valid)) == (24, 24)
    assert (data.x_test is None) == (len(names) == 2)
    assert data.notes[0] == "folders beside the parts are not used: unlabelled"
    (tmp_path / "Validation").mkdir(exist_ok=True)
    (tmp_path / "val").mkdir(exist_ok=True)
    refused(lambda: load(f"folder:{tmp_path}", 0), "both of which mean valid: keep one")


def test_parts_of_other_names_are_asked_for(tmp_path: Path) -> None:
    for i, name in enumerate(("erste", "zweite")):
        write_images(tmp_path / name, 50, seed=i)
    data = load(f"folder:{tmp_path}", seed=0)
    assert data.classes == 2
    said = "classes erste, zweite hold folders of the same names (ant, bee): if they are parts"
    assert said in data.notes[0]


def test_a_link_that_leads_up_is_left(tmp_path: Path) -> None:
    write_images(tmp_path, 50)
    (tmp_path / "ant" / "again").symlink_to(tmp_path / "ant")
    (tmp_path / "ant" / "0.jfif").write_bytes(b"junk")
    refused(lambda: load(f"folder:{tmp_path}", 0), "0.jfif cannot be read")
    (tmp_path / "ant" / "0.jfif").unlink()
    assert len(load(f"folder:{tmp_path}", seed=0).rows) == 90


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path, 50)
    (tmp_path / "ant").rename(tmp_path / "train")
    data = load(f"folder:{tmp_path}", seed=0)
    assert data.label_names == ("bee", "train") and len(data.rows) == 90


@pytest.mark.parametrize("names", [("train", "test"), ("Training Set", "val")])
def test_parts_without_class_folders(names: tuple[str, str], tmp_path: Path) -> None:
    write_images(tmp_path, 50)
    for old, new in zip(("ant", "bee"), names, strict=True):
        (tmp_path / old).rename(tmp_path / new)
    told = f"has {' and '.join(sorted(names))}, which hold images and no class folders: expected"
    refused(lambda: load(f"folder:{tmp_path}", seed=0), told)


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    """Empty class folders are no classes; folders in a class are read."""
    write_images(tmp_path, 50)
    (tmp_path / "aardvark").mkdir()
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / ".DS_Store").write_bytes(b"junk")
    Image.new("RGB", (5, 4)).save(tmp_path / "overview.png")
    (tmp_path / "bee" / "more").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "bee" / "more" / "0.bmp")
    (tmp_path / "bee" / "more" / "0.heic").write_bytes(b"?")
    data = load(f"folder:{tmp_path}", seed=0)
    assert data.classes == 2 and len(data.y_train) + len(data.y_valid) == 101
    assert data.notes[:4] == (
        "class folders without an image are not used: aardvark, cow",
        "1 files that are no images are not used: 0.heic",
        "1 images in no class folder are not used: overview.png",
        "classes: ant = 0, bee = 1",
    )


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_grey_images_are_scaled_by_their_depth(tmp_path: Path, bits: int) -> None:
    raw = rng().integers(2**bits, size=(120, 4, 5)).astype(np.uint16)
    raw[0, 0, 0] = 2**bits - 1
    for i, pixels in enumerate(raw):
        place = tmp_path / ("ant", "bee")[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i // 2:03d}.png")
    data = load(f"folder:{tmp_path}", seed=0)
    order = np.concatenate([np.arange(0, 120, 2), np.arange(1, 120, 2)])
    expected = raw[order][data.rows.numpy(), None] * (255 / (2**bits - 1))
    shown = data.x_train[:] * data.scale + data.mean
    np.testing.assert_allclose(shown, expected, atol=1e-2)
    assert f"120 of 120 images have {bits} bits a pixel: scaled to 0..255" in data.notes


def one_of_each(root: Path, first: Image.Image, odd: Image.Image, name: str) -> Data:
    """Sixty images of `first` with noise, and `odd` at the end of the training images."""
    for part in ("train", "valid"):
        for i in range(24):
            noise = rng(i + 100 * (part == "valid")).integers(256, size=(4, 5, 3), dtype=np.uint8)
            place = root / part / ("ant", "bee")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).convert(first.mode).save(place / f"{i:02d}.png")
    odd.save(root / "train" / "bee" / name)
    return load(f"folder:{root}", seed=0)


def last(data: Data) -> np.ndarray:
    return (data.x_train[-1] * data.scale + data.mean).numpy()


RED = Image.new("RGB", (5, 4), (200, 10, 10))
CLEAR = Image.new("RGBA", (5, 4), (200, 10, 10, 0))
PALETTE = RED.quantize(4)
MASKED = RED.quantize(4)
MASKED.info["transparency"] = 0

ODD: dict[str, tuple[Image.Image, str, tuple[int, int, int], str | None]] = {
    "palette": (PALETTE, "zz.png", (200, 10, 10), None),
    "palette in a gif": (PALETTE, "zz.gif", (200, 10, 10), None),
    "opaque": (RED.convert("RGBA"), "zz.png", (200, 10, 10), None),
    "transparent": (CLEAR, "zz.png", (255, 255, 255), "1 of 49 images are transparent"),
    "clear palette": (MASKED, "zz.png", (255, 255, 255), "1 of 49 images are transparent"),
    "cmyk": (RED.convert("CMYK"), "zz.tif", (200, 10, 10), "1 of 49 images were converted from"),
    "cmyk jpeg": (RED.convert("CMYK"), "zz.jpg", (200, 10, 10), "converted from CMYK"),
    "bmp": (RED, "zz.bmp", (200, 10, 10), None),
    "webp": (RED, "zz.webp", (200, 10, 10), None),
    "grey": (Image.new("L", (5, 4), 7), "zz.png", (7, 7, 7), None),
    "grey and clear": (Image.new("LA", (5, 4), (7, 0)), "zz.png", (255, 255, 255), "transparent"),
    "bits": (Image.new("1", (5, 4), 1), "zz.png", (255, 255, 255), None),
    "larger": (Image.new("RGB", (9, 9), (200, 10, 10)), "zz.png", (200, 10, 10), "resized to 5x4"),
    "deep": (
        Image.fromarray(np.full((4, 5), 4095, np.uint16)),
        *("zz.png", (255, 255, 255), "1 of 49 images have 12 bits a pixel: scaled"),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_among_others(tmp_path: Path, name: str) -> None:
    """It is read in its colours, whatever its mode and format, and what was done is told."""
    odd, file, colour, note = ODD[name]
    data = one_of_each(tmp_path, RED, odd, file)
    assert data.input_shape == (3, 4, 5)
    tolerance = 12 if file.endswith(("jpg", "webp")) else 1
    np.testing.assert_allclose(last(data)[:, 1, 1], colour, atol=tolerance)
    told = [n for n in data.notes if not n.startswith("classes")]
    assert len(told) == (note is not None) and (note is None or note in told[0]), told


def test_rotation_marks_are_obeyed(tmp_path: Path) -> None:
    upright = np.zeros((4, 5), np.uint8)
    upright[0] = 250  # the upper edge
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    root = tmp_path / "train" / "bee"
    one_of_each(tmp_path, Image.new("L", (5, 4)), Image.fromarray(upright), "zy.png")
    turned.save(root / "zz.png", exif=exif)
    data = load(f"folder:{tmp_path}", seed=0)
    np.testing.assert_allclose(last(data)[0], upright, atol=1e-3)
    assert "1 of 50 images were turned upright by their EXIF mark" in data.notes
    assert data.input_shape == (1, 4, 5)


def test_sixteen_bits_of_colour_are_told(tmp_path: Path) -> None:
    """Pillow gives the high bits of such a PNG, and writes none: its bytes are made here."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return len(body).to_bytes(4, "big") + kind + body + check.to_bytes(4, "big")

    head = (5).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    line = b"\x00" + (200 * 257).to_bytes(2, "big") * 15
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    whole += chunk(b"IDAT", zlib.compress(line * 4)) + chunk(b"IEND", b"")
    one_of_each(tmp_path, RED, RED, "zy.png")
    (tmp_path / "train" / "bee" / "zz.png").write_bytes(whole)
    data = load(f"folder:{tmp_path}", seed=0)
    np.testing.assert_allclose(last(data), 200, atol=1e-3)
    assert "1 of 50 images have 16 bits a channel: the 8 high bits are read" in data.notes


def floats_among(root: Path, white: float, others: Any, *, whole: bool = False) -> Data:
    """Thirty float images of 0..`white` a class, and thirty that `others` makes of bytes."""
    for i in range(120):
        place = root / ("ant", "bee")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng(i).integers(0, 256, (4, 5)).astype(np.uint8)
        pixels[0, 0] = 255
        if i % 4 < 2:
            own = pixels / 255 * white
            own = np.round(own) if whole else own
            Image.fromarray(own.astype(np.float32)).save(place / f"{i:03d}.tif")
        else:
            others(pixels).save(place / f"{i:03d}.png")
    return load(f"folder:{root}", seed=0)


def sixteen(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "16 bits", "F"])
def test_floats_of_one_are_brought_to_the_range_of_bytes(tmp_path: Path, mode: str) -> None:
    def other(pixels: np.ndarray) -> Image.Image:
        return sixteen(pixels) if mode == "16 bits" else Image.fromarray(pixels).convert(mode)

    def as_floats(pixels: np.ndarray) -> Any:
        class Saved:
            def save(self, path: Path) -> None:
                Image.fromarray((pixels / 255).astype(np.float32)).save(path.with_suffix(".tiff"))

        return Saved()

    data = floats_among(tmp_path, 1.0, as_floats if mode == "F" else other)
    shown = (data.x_train[:] * data.scale + data.mean)[:, 0]
    order = [i for k in range(2) for i in range(k, 120, 2)]
    for row, got in zip(data.rows.tolist(), shown, strict=True):
        i = order[row]
        if mode == "1" and i % 4 >= 2:
            continue
        expected = rng(i).integers(0, 256, (4, 5))
        expected[0, 0] = 255
        np.testing.assert_allclose(got, expected, atol=0.1)
    count = 120 if mode == "F" else 60
    assert f"{count} of 120 images are floats of 0..1: scaled to 0..255" in data.notes


@pytest.mark.parametrize("white", [254.7, 3.7, 65000.5])
def test_fractions_beside_whole_numbers_are_refused(tmp_path: Path, white: float) -> None:
    words = f"000.tif holds fractions up to {white:.6g}, beside images of whole numbers"
    refused(lambda: floats_among(tmp_path / "a", white, Image.fromarray), words)
    refused(lambda: floats_among(tmp_path / "b", white, sixteen), words)


def test_whole_numbers_as_floats_are_as_deep_as_the_others(tmp_path: Path) -> None:
    data = floats_among(tmp_path, 65535.0, sixteen, whole=True)
    shown = (data.x_train[:] * data.scale + data.mean)[:, 0]
    np.testing.assert_allclose(shown[:, 0, 0], 255, atol=1e-2)
    assert "120 of 120 images have 16 bits a pixel: scaled to 0..255" in data.notes


def test_files_of_several_images_are_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), (200, 10, k)) for k in range(3)]
    place = tmp_path / "train" / "bee" / "zz.tif"
    place.parent.mkdir(parents=True)
    frames[0].save(place, save_all=True, append_images=frames[1:])
    data = one_of_each(tmp_path, RED, RED, "zy.png")
    assert "1 of 50 files hold more than one image: the first is read" in data.notes
    np.testing.assert_allclose(last(data)[:, 1, 1], (200, 10, 0), atol=1)
