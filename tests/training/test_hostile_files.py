"""Hostile files: nothing that is read runs anything, and each is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import make_run
from toy import Command, arrays, command, files, write_npz

from deepteach.data.readers import load
from deepteach.errors import DataError


@pytest.fixture
def call(call: Command, tmp_path: Path) -> Command:
    """The command line in a folder that holds `toy.npz`, 10 steps of 20 samples."""
    write_npz(tmp_path / "toy.npz", train=100, valid=24, test=30)
    return call


TRAIN = (
    *("train", "--data", "npz:toy.npz", "--student", "mlp", "--threads", "1", "--epochs", "2"),
    *("--batch_size", "20", "--baseline", "false", "--out", "run"),
)


class Canary:
    """Unpickling it would create a file in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("canary"),)


def _archive(path: Path, members: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _member(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GOOD = {f"{name}.npy": _member(value) for name, value in arrays(100, 24, 30).items()}
OBJECTS = _member(np.array([Canary()] * 3, object))
ZEROS = _member(np.zeros(1))[:64]


def _linked(path: Path) -> None:
    """x_train.npy as a symbolic link to a file outside."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in GOOD.items():
            member = zipfile.ZipInfo(name)
            if name == "x_train.npy":
                member.external_attr, data = 0o120777 << 16, b"/etc/hostname"
            archive.writestr(member, data)


def _bomb(path: Path) -> None:
    """A few kilobytes that declare more bytes than any machine has: 4 GiB a member."""
    _archive(path, GOOD | {f"part{number}.npy": ZEROS for number in range(2000)})
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    at = raw.index(b"PK\x01\x02", start)
    declared = (2**32 - 2).to_bytes(4, "little")
    while at >= 0:
        raw[at + 24 : at + 28] = declared
        at = raw.find(b"PK\x01\x02", at + 4)
    path.write_bytes(raw)


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "objects": lambda path: _archive(path, {**GOOD, "x_train.npy": OBJECTS}),
    "objects nobody asked for": lambda path: _archive(path, {**GOOD, "y_other.npy": OBJECTS}),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Canary())),
    "pickle member": lambda path: _archive(path, {**GOOD, "x_train.npy": pickle.dumps(Canary())}),
    "bare npy of objects": lambda path: path.write_bytes(OBJECTS),
    "traversal": lambda path: _archive(path, {"../x_train.npy": GOOD["x_train.npy"]}),
    "absolute": lambda path: _archive(path, {"/x_train.npy": GOOD["x_train.npy"]}),
    "link": _linked,
    "torch file": lambda path: torch.save({"x_train": torch.zeros(3)}, path),
    "cut header": lambda path: _archive(path, {**GOOD, "x_train.npy": ZEROS}),
    "bomb": _bomb,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(name: str, call: Command, tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    HOSTILE[name](path)
    before = files(tmp_path), sorted(os.listdir(tmp_path.parent))
    answer = call(*TRAIN, "--data", "npz:evil.npz")
    assert answer.code == 2 and len(answer.err.splitlines()) == 1, answer.err
    assert "evil.npz" in answer.err
    assert (files(tmp_path), sorted(os.listdir(tmp_path.parent))) == before


def test_a_polyglot_is_read_as_what_it_says(tmp_path: Path, monkeypatch: Any) -> None:
    """An npz behind a pickle: the archive is read, the pickle is not."""
    monkeypatch.chdir(tmp_path)
    whole = load(write_npz(tmp_path / "toy.npz"), 0)
    body = (tmp_path / "toy.npz").read_bytes()
    (tmp_path / "both.npz").write_bytes(pickle.dumps(Canary()) + body)
    try:
        assert torch.equal(load("npz:both.npz", 0).x_train[:], whole.x_train[:])
    except DataError as error:
        assert "both.npz" in str(error)
    assert not (tmp_path / "canary").exists()


def test_the_canary_sings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Canary()))  # noqa: S301
    assert (tmp_path / "canary").exists()


TAG = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [canary]]"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", f"data: {TAG}".encode()),
        ("config.yaml", pickle.dumps(Canary())),
        ("summary.json", pickle.dumps(Canary())),
        ("samples.safetensors", pickle.dumps(Canary())),
        ("samples.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
        ("weights.csv", b"index,weight\n" + b"\0" * 64),
    ],
)
@pytest.mark.parametrize("verb", ["report", "compare"])
def test_a_run_of_a_stranger(
    file: str,
    content: bytes,
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", n=20)
    (tmp_path / "run" / file).write_bytes(content)
    if (verb, file) != ("compare", "samples.safetensors"):  # which compare does not open
        answer = command(capsys)(verb, "run")
        assert answer.code == 2 and len(answer.err.splitlines()) == 1, answer.err
        assert file in answer.err
    assert not (tmp_path / "canary").exists()


def test_a_stranger_s_settings_do_not_start_a_run(call: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"data: {TAG}")
    assert call("train", "--out", "run", "--resume").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "toy.npz"]
