"""What is committed is what loads: which ones are kept or replaced, and older formats."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_disk import FILES, REAL, commit, forge, in_child, loaded, points, same, state, steps
from fake_disk import folder as folder
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk

from deepteach.errors import CheckpointError, ConfigError
from deepteach.runs import checkpoint, storage
from deepteach.runs.checkpoint import Store
from deepteach.runs.migrations import FORMAT

# --- what is committed is what loads -------------------------------------------------


def test_round_trip_on_a_real_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "fsync", REAL["fsync"])
    store = Store(folder)
    meta = {"config": {"lr": 0.1, "name": "ü"}, "epoch": None, "list": [1, True]}
    path = store.commit(7, state(7), meta=meta)
    assert path == folder / "step-00000007"
    found = Store(folder).newest()
    assert found is not None and same(found.tree, state(7))
    assert (found.step, found.meta, found.path, found.skipped) == (7, meta, path, ())
    assert sorted(file.name for file in path.iterdir()) == list(FILES)
    assert json.loads((path / "MANIFEST.json").read_bytes())["step"] == 7


def test_no_folder_and_an_empty_folder_hold_none(folder: Path) -> None:
    assert Store(folder).newest() is None
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert Store(folder).newest() is None


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        commit(tmp_path / name, 5)
    for file in FILES:
        a, b = (tmp_path / name / "step-00000005" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_steps_sort_as_numbers_and_exceed_eight_digits(folder: Path) -> None:
    commit(folder, 9, 10, 99_999_999, 100_000_000)
    assert loaded(folder).step == 100_000_000
    assert steps(folder) == [10, 99_999_999, 100_000_000]


def test_loaded_tensors_can_be_changed_in_place(folder: Path) -> None:
    commit(folder, 1)
    tree = loaded(folder).tree
    tree["student"]["w"].zero_()
    assert same(loaded(folder).tree, state(1))


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_newest_are_kept(folder: Path, keep: int) -> None:
    commit(folder, *range(0, 80, 10), keep=keep)
    assert steps(folder) == list(range(0, 80, 10))[-keep:]
    assert sorted(path.name[:5] for path in folder.iterdir()) == ["step-"] * keep


def test_a_verified_step_is_left_and_a_damaged_one_replaced(folder: Path) -> None:
    commit(folder, 1, 2)
    before = (folder / "step-00000002").stat().st_ino
    Store(folder).commit(2, state(99), meta={})
    assert (folder / "step-00000002").stat().st_ino == before
    # The process that wrote it may have died before its name was durable.
    assert points(lambda: commit(folder, 2)) == ["before fsync", "after fsync"]
    assert loaded(folder).step == 2
    (folder / "step-00000002" / "state.json").write_text("[]")
    commit(folder, 2)
    assert loaded(folder).step == 2 and steps(folder) == [1, 2]


@pytest.mark.parametrize("damage", ["file", "link"])
def test_what_only_has_the_name_of_a_step_is_replaced(folder: Path, damage: str) -> None:
    commit(folder, 1, 2)
    (folder / "step-00000002").rename(folder / "elsewhere")
    if damage == "file":
        (folder / "step-00000002").write_text("")
    else:
        (folder / "step-00000002").symlink_to("elsewhere")
    found = loaded(folder)
    assert found.step == 1 and found.skipped == ("step-00000002: is not a folder",)
    commit(folder, 2)
    assert loaded(folder).step == 2
    assert (folder / "elsewhere" / "MANIFEST.json").exists()  # nothing behind the link went


def test_damaged_ones_never_push_out_the_last_good_one(folder: Path) -> None:
    commit(folder, 10, 20, 30, 40, keep=4)
    for step in (20, 30, 40):
        (folder / f"step-{step:08d}" / "state.json").unlink()
    assert loaded(folder).step == 10
    commit(folder, 15, keep=2)
    assert loaded(folder).step == 15 and 10 in steps(folder)
    commit(folder, 20, 25, keep=2)  # what lies below the two newest verified ones may go
    assert loaded(folder).step == 25 and steps(folder) == [20, 25, 30, 40]


def test_damaged_ones_in_between_do_not_count(folder: Path) -> None:
    commit(folder, 10, 20, 30, keep=4)
    for step in (20, 30):
        (folder / f"step-{step:08d}" / "state.json").unlink()
    commit(folder, 40, keep=2)
    assert steps(folder) == [10, 20, 30, 40]
    commit(folder, 50, keep=2)
    assert steps(folder) == [40, 50]


def test_damage_seen_by_newest_is_remembered(folder: Path) -> None:
    store = Store(folder, keep=2)
    for step in (1, 2, 3):
        store.commit(step, state(step), meta={"epoch": step})
    (folder / "step-00000003" / "state.json").unlink()
    found = store.newest()
    assert found is not None and found.step == 2
    store.commit(4, state(4), meta={"epoch": 4})
    assert steps(folder) == [2, 3, 4]


def test_what_was_just_committed_is_never_collected(folder: Path) -> None:
    commit(folder, 10, 20, 30)
    commit(folder, 15, keep=2)
    assert steps(folder) == [10, 15, 20, 30]


def test_a_folder_that_another_run_makes_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path) -> None:
        os.mkdir(path)
        if path == folder:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(storage, "mkdir", late)
    commit(folder, 1)
    assert loaded(folder).step == 1


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes", torch.zeros(1)], ids=repr)
def test_meta_must_be_strict_json(folder: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="meta must be strict JSON"):
        Store(folder).commit(1, {}, meta={"value": value})
    assert not folder.exists()


def test_bad_arguments_are_refused_before_anything_is_written(folder: Path) -> None:
    with pytest.raises(ConfigError, match="keep >= 2"):
        Store(folder, keep=1)
    with pytest.raises(ConfigError, match="step >= 0, got -1"):
        Store(folder).commit(-1, {}, meta={})
    with pytest.raises(ConfigError, match=r"state\.a\[0\]"):
        Store(folder).commit(1, {"a": [object()]}, meta={})
    assert not folder.exists()


def test_temporary_folders_of_the_dead_are_removed(folder: Path) -> None:
    dead = ended_process()
    commit(folder, 1)
    for name in (f".tmp-5-{dead}", f".tmp-old-step-00000000-{dead}", f".tmp-6-{os.getpid()}"):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("half")
    kept = [".tmp-7-1", ".tmp-notes", "other"]  # process 1 lives
    for name in kept:
        (folder / name).mkdir()
    Store(folder)
    assert sorted(path.name for path in folder.iterdir()) == [*kept, "step-00000001"]


def ended_process() -> int:
    """The id of a process that has ended."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pid"
        in_child(lambda: file.write_text(str(os.getpid())))
        return int(file.read_text())


# --- versions ------------------------------------------------------------------------


def test_a_newer_format_is_refused_and_not_passed_over(folder: Path) -> None:
    commit(folder, 1, 2)
    forge(folder / "step-00000002", lambda m: m.update(format=FORMAT + 1, deepteach="9.1"))
    with pytest.raises(
        CheckpointError, match=rf"reads formats up to {FORMAT}: .*>= 9\.1"
    ) as caught:
        Store(folder).newest()
    assert caught.value.exit_code == 3 and "step-00000002" in str(caught.value)


def test_an_older_format_is_migrated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(folder, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", FORMAT + 2)
    with pytest.raises(CheckpointError, match="no longer reads"):
        Store(folder).newest()
    migrate = {
        FORMAT: lambda tree, meta: (tree | {"trail": [1]}, meta),
        FORMAT + 1: lambda tree, meta: (
            tree | {"trail": [*tree["trail"], 2]},
            meta | {"new": True},
        ),
    }
    monkeypatch.setattr(checkpoint, "MIGRATIONS", migrate)
    found = Store(folder).newest()
    assert found is not None and found.meta == {"epoch": 1, "new": True}
    assert same(found.tree, state(1) | {"trail": [1, 2]})
