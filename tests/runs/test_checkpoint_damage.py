"""Bit rot: a damaged checkpoint is named, and the one before it loads."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from fake_disk import FILES, commit, fallback, loaded
from fake_disk import folder as folder
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk

from deepteach.errors import CheckpointError
from deepteach.runs.checkpoint import Store


@pytest.mark.parametrize("file", FILES)
def test_truncated_anywhere(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    path = folder / "step-00000002" / file
    data = path.read_bytes()
    for length in sorted({*range(0, len(data), -(-len(data) // 20)), 0, len(data) - 1}):
        path.write_bytes(data[:length])
        fallback(folder, file)
    path.write_bytes(data)
    assert loaded(folder).step == 2


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_anywhere(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    path = folder / "step-00000002" / file
    data = path.read_bytes()
    rng = random.Random(1)
    # The beginning holds the seal and the headers; the rest is drawn.
    for bit in [*range(0, 8 * 20, 8), *(rng.randrange(8 * len(data)) for _ in range(60))]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        fallback(folder, file)


@pytest.mark.parametrize("file", FILES)
def test_missing_grown_or_swapped(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    path, other = folder / "step-00000002" / file, folder / "step-00000001" / file
    data = path.read_bytes()
    path.unlink()
    fallback(folder, file)
    path.mkdir()
    fallback(folder, file)
    path.rmdir()
    path.symlink_to(other)
    fallback(folder, file)
    path.unlink()
    path.write_bytes(data)
    real = path.with_name("real")
    path.rename(real)
    real.rename(folder / "real")
    path.symlink_to(folder / "real")  # a link to the right bytes is still a link
    fallback(folder, file)
    path.unlink()
    os.mkfifo(path)  # must not wait for a writer
    fallback(folder, file)
    path.unlink()
    path.write_bytes(data + b" ")
    fallback(folder, file)
    path.write_bytes(other.read_bytes())
    fallback(folder, file)
    path.write_bytes(data)
    assert loaded(folder).step == 2


@pytest.mark.parametrize("extra", ["notes.txt", ".hidden", "state.safetensors.bak"])
def test_an_extra_file_is_named(folder: Path, extra: str) -> None:
    commit(folder, 1, 2)
    (folder / "step-00000002" / extra).write_text("")
    fallback(folder, extra)


def test_a_copied_checkpoint_is_not_a_later_one(folder: Path) -> None:
    commit(folder, 1)
    shutil.copytree(folder / "step-00000001", folder / "step-00000002")
    fallback(folder, "MANIFEST.json is of step 1")


@pytest.mark.parametrize("names", [["step-00000001"], ["step-1"], ["step-00000001.bak"]])
def test_none_intact_is_an_error_and_never_a_new_start(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="--out") as caught:
        Store(folder).newest()
    assert caught.value.exit_code == 3
    assert str(folder) in str(caught.value) and names[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_damaged_ones_are_all_listed(folder: Path) -> None:
    commit(folder, 1, 2, 3, 4, keep=4)
    (folder / "step-00000004" / "state.json").write_text("")
    (folder / "step-00000003" / "MANIFEST.json").unlink()
    found = loaded(folder)
    assert found.step == 2
    assert [line.partition(":")[0] for line in found.skipped] == ["step-00000004", "step-00000003"]
    for step in (1, 2):
        (folder / f"step-{step:08d}" / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 4 checkpoints"):
        Store(folder).newest()
