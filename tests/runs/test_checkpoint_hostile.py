"""A checkpoint that a stranger made and sealed: refused, and nothing in it is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_disk import FILES, commit, fallback, forge, loaded
from fake_disk import folder as folder
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk


class Canary:
    """Pickled so that unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hostile(kind: str, canary: Path) -> bytes:
    """Bytes for state.safetensors or state.json that a right digest vouches for."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    bomb = json.dumps({"a": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**63]}})
    rare = header.replace(b'"F32"', b'"F8_E8M0"').replace(b"[4]", b"[16]")
    unknown = header.replace(b'"F32"', b'"F99"')
    return {
        "pickle": pickle.dumps(Canary(canary)),
        "header 2**63": struct.pack("<Q", 2**63) + header,
        "header past the end": struct.pack("<Q", 2**20) + header,
        "shape bomb": struct.pack("<Q", len(bomb)) + bomb.encode(),
        "offsets past the end": struct.pack("<Q", len(header)) + header + bytes(15),
        "rare dtype": struct.pack("<Q", len(rare)) + rare + bytes(16),
        "unknown dtype": struct.pack("<Q", len(unknown)) + unknown + bytes(16),
        "other tensors": struct.pack("<Q", len(header)) + header + bytes(16),
        "empty": b"",
        "no utf-8": b"\xff" * 40,
        "deep": b"[" * 100_000,
        "long number": b"9" * 10_000,
        "NaN": b"NaN",
        "foreign node": b'{"exec": "import os"}',
    }[kind]


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(hostile("pickle", tmp_path / "canary"))  # noqa: S301
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "header 2**63", "header past the end", "shape bomb"),
        *(
            "offsets past the end",
            "rare dtype",
            "unknown dtype",
            "other tensors",
            "empty",
            "no utf-8",
        ),
        *("deep", "long number", "NaN", "foreign node"),
    ],
)
def test_hostile_content_is_refused(folder: Path, tmp_path: Path, file: str, kind: str) -> None:
    commit(folder, 1, 2)
    (folder / "step-00000002" / file).write_bytes(hostile(kind, tmp_path / "canary"))
    forge(folder / "step-00000002")
    fallback(folder, file)
    assert not (tmp_path / "canary").exists()


def test_forging_alone_changes_nothing(folder: Path) -> None:
    commit(folder, 1, 2)
    forge(folder / "step-00000002")
    assert loaded(folder).step == 2


def relisted(name: str) -> Callable[[dict[str, Any]], Any]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("state.json")

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (relisted("../state.json"), "lists"),
        (relisted("/etc/hostname"), "lists"),
        (relisted("./state.json"), "lists"),
        (relisted("two\nlines"), "lists"),
        (relisted("MANIFEST.json"), "lists"),
        (lambda m: m["files"].update(extra=m["files"]["state.json"]), "lists"),
        (lambda m: m["files"].pop("state.json"), "lists"),
        (lambda m: m.pop("files"), "lacks"),
        (lambda m: m.update(files=[]), "lacks"),
        (lambda m: m.update(meta=None), "lacks"),
        (lambda m: m.update(step="2"), "lacks"),
        (lambda m: m["files"].update({"state.json": None}), "lacks"),
        (lambda m: m["files"]["state.json"].update(size="9"), "lacks"),
        (lambda m: m["files"]["state.json"].update(size=-1), "bytes instead of -1"),
        (lambda m: m["files"]["state.json"].update(size=2**62), "bytes instead of"),
        (lambda m: m["files"]["state.json"].update(sha256=None), "lacks"),
        (lambda m: m["files"]["state.json"].update(sha256="0" * 64), "sha256"),
        (lambda m: m.update(step=3), "is of step 3"),
        (lambda m: m.pop("format"), "format"),
        (lambda m: m.update(format=0), "format"),
        (lambda m: m.update(format=True), "format"),
        (lambda m: m.update(format="1"), "format"),
        (lambda m: m.update(format=1.0), "format"),
    ],
)
def test_a_forged_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    commit(folder, 1, 2)
    (folder / "state.json").write_bytes((folder / "step-00000002" / "state.json").read_bytes())
    forge(folder / "step-00000002", change)
    fallback(folder, reason)


@pytest.mark.parametrize("body", [b"}", b"NaN}", b'"a": NaN}', b"[" * 100_000, b"\xff}"])
def test_a_sealed_manifest_that_is_not_json_is_refused(folder: Path, body: bytes) -> None:
    commit(folder, 1, 2)
    seal = b'{"sha256": "%s", ' % hashlib.sha256(body).hexdigest().encode()
    (folder / "step-00000002" / "MANIFEST.json").write_bytes(seal + body)
    fallback(folder, "MANIFEST.json")


@pytest.mark.parametrize("file", FILES)
def test_a_huge_file_is_refused_before_it_is_read(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    os.truncate(folder / "step-00000002" / file, 2**40)  # sparse: more than any memory
    fallback(folder, file)
