"""Checkpoints that survive a kill, a power loss, a full disk and a flipped bit.

A checkpoint is a folder `step-########` of three files: `state.safetensors` (tensors),
`state.json` (the tree around them, see serialization.py) and `MANIFEST.json` (format, step,
meta, size and sha256 of the other two; its first field is the sha256 of its own rest).

Commit: every file is written and fsynced in `.tmp-<step>-<pid>/`, the manifest last; the
folder is fsynced, renamed to its final name, and the parent fsynced. A final name is thus
never partial, and nothing is overwritten. Old ones are renamed away before they are
deleted. No format notices bit rot by itself, so whatever is read is hashed before it is
parsed; there is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from deepteach import __version__
from deepteach.errors import CheckpointError, ConfigError
from deepteach.runs import storage
from deepteach.runs.migrations import FORMAT, MIGRATIONS
from deepteach.runs.serialization import json_bytes, pack, unpack

_TENSORS, _SKELETON, _MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"
_MANIFEST_CAP = 16 * 2**20  # bytes; nothing vouches for the size of the manifest itself
_SEAL = b'{"sha256": "%s", '  # how a manifest begins; the digest is of all that follows
_SEALED = re.compile(rb'\{"sha256": "([0-9a-f]{64})", ')


class _Damaged(CheckpointError):
    """One checkpoint is not what was committed; an older one may be."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `skipped` says which newer ones are damaged, and how."""

    step: int
    tree: Any
    meta: dict[str, Any]
    path: Path
    skipped: tuple[str, ...]


class Store:
    """The checkpoints of one run, `folder/step-########/`, written by one process."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        if keep < 2:
            raise ConfigError(
                f"expected keep >= 2 checkpoints, so that one is left when the newest is "
                f"damaged; got {keep}: choose 2 or more"
            )
        self.folder, self.keep = folder, keep
        self._intact: set[int] = set()  # verified, or written, by this object
        storage.remove_leftovers(folder)

    def commit(self, step: int, tree: Any, *, meta: dict[str, Any]) -> Path:
        """Write `tree` and `meta` as checkpoint `step`; on return they are on the disk.

        A step that is there and verifies is left alone, a damaged one is replaced. Of the
        verified ones up to this step the newest `keep` are kept; nothing is removed on
        account of damaged ones. Needs about twice the size of the tensors in memory.

        Raises:
            ConfigError: state that no file can hold, before anything is written.
            StorageError: the disk failed; the earlier checkpoints are untouched.
        """
        if step < 0:
            raise ConfigError(f"expected a step >= 0, got {step}: count steps from 0")
        files = _encode(step, tree, meta)
        final = self.folder / _name(step)
        temporary = self.folder / f".tmp-{step}-{os.getpid()}"
        with storage.disk_errors(final, sum(map(len, files.values()))):
            storage.make_folder(self.folder)
            if os.path.lexists(final) and self._verifies(step):
                storage.sync(self.folder)  # its own commit may have died just before this
                return final
            try:
                storage.mkdir(temporary)
                for name, data in files.items():
                    storage.write_file(temporary / name, data)
                storage.sync(temporary)
                self._set_aside([final] if os.path.lexists(final) else [])
                storage.rename(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            storage.sync(self.folder)
            self._intact.add(step)
            self._collect(step)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None where none was ever committed.

        Raises:
            CheckpointError: there are checkpoints but none verifies, or the newest was
                written by a newer deepteach. Never a silent start at step 0.
            StorageError: the folder cannot be listed.
        """
        with storage.disk_errors(self.folder):
            names = os.listdir(self.folder) if os.path.lexists(self.folder) else []
        # A name that was tampered with is not a reason to start over: it sorts last.
        found = sorted(
            (name for name in names if name.startswith("step-")),
            key=lambda name: (-1 if (step := _step(name)) is None else step, name),
            reverse=True,
        )
        skipped: list[str] = []
        for name in found:
            try:
                step, tree, meta = _decode(self.folder / name)
            except _Damaged as damage:
                skipped.append(f"{name}: {damage}")
                self._intact -= {_step(name)}
                continue
            self._intact.add(step)
            return Checkpoint(step, tree, meta, self.folder / name, tuple(skipped))
        if skipped:
            raise CheckpointError(
                f"none of the {len(skipped)} checkpoints in {self.folder} is intact "
                f"({'; '.join(skipped[:3])}): restore that folder from a copy, or start "
                "over by choosing another --out"
            )
        return None

    def _verifies(self, step: int) -> bool:
        try:
            _read(self.folder / _name(step))
        except CheckpointError:
            return False
        return True

    def _collect(self, step: int) -> None:
        """Remove what is older than the `keep` newest verified ones up to `step`.

        Counting damaged ones, or ones from a later step that are about to be written
        again, could remove the only checkpoint that loads.
        """
        steps = [found for name in os.listdir(self.folder) if (found := _step(name)) is not None]
        kept = 0
        for found in sorted((found for found in steps if found <= step), reverse=True):
            if found not in self._intact and self._verifies(found):
                self._intact.add(found)
            kept += found in self._intact
            if kept == self.keep:
                self._set_aside([self.folder / _name(old) for old in steps if old < found])
                return

    def _set_aside(self, old: list[Path]) -> None:
        """Take checkpoints away: no crash may leave half of one under its final name."""
        aside = [self.folder / f".tmp-old-{path.name}-{os.getpid()}" for path in old]
        for path, away in zip(old, aside, strict=True):
            storage.rename(path, away)
        if aside:
            storage.sync(self.folder)
        for away in aside:
            storage.remove(away)


def _encode(step: int, tree: Any, meta: dict[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint in the order of writing: the manifest is last."""
    tensors, skeleton = pack(tree)
    files = {_TENSORS: save(tensors), _SKELETON: json_bytes(skeleton)}
    listed = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    manifest = {"format": FORMAT, "deepteach": __version__, "step": step, "meta": meta}
    try:
        body = json_bytes(manifest | {"files": listed})[1:]  # without "{": the seal opens it
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a checkpoint's meta must be strict JSON: {error}; turn it into text, finite "
            "numbers, lists and dicts"
        ) from None
    return files | {_MANIFEST: _SEAL % _sha256(body).encode() + body}


def _decode(folder: Path) -> tuple[int, Any, dict[str, Any]]:
    """(step, tree, meta) of a checkpoint, in today's format.

    Raises:
        _Damaged: it is not what was committed.
        CheckpointError: its format is newer, or too old.
    """
    manifest, files = _read(folder)
    try:
        skeleton = json.loads(files[_SKELETON])
        tree = unpack(load(files[_TENSORS]), skeleton)
    # Whatever the parsers raise on bytes that are hashed yet were never packed.
    except (SafetensorError, CheckpointError, KeyError, ValueError, RuntimeError) as error:
        raise _Damaged(
            f"{_TENSORS} or {_SKELETON} cannot be read: {storage.one_line(error)}"
        ) from None
    meta = manifest["meta"]
    for version in range(manifest["format"], FORMAT):
        tree, meta = MIGRATIONS[version](tree, meta)
    return manifest["step"], tree, meta


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the verified bytes of the files it lists; raises as `_decode`."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise _Damaged("is not a folder")
        manifest = _read_manifest(folder)
        if folder.name != _name(manifest["step"]):
            raise _Damaged(f"{_MANIFEST} is of step {manifest['step']}")
        listed = manifest["files"]
        # Equality with the two known names also keeps out paths that lead elsewhere.
        if set(listed) != {_TENSORS, _SKELETON}:
            raise _Damaged(f"{_MANIFEST} lists {storage.one_line(sorted(listed))}")
        if extra := set(os.listdir(folder)) - {_MANIFEST, *listed}:
            raise _Damaged(f"{min(extra)!r} is not part of a checkpoint")
        files = {}
        for name, entry in listed.items():
            files[name] = _read_file(folder / name, entry["size"])
            if _sha256(files[name]) != entry["sha256"]:
                raise _Damaged(f"{name} does not have the sha256 of the manifest")
    except OSError as error:
        name = os.path.basename(error.filename or folder)
        raise _Damaged(f"{name} cannot be read: {error.strerror}") from None
    return manifest, files


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its seal, version and shape checked before any other file is opened."""
    data = _read_file(folder / _MANIFEST)
    seal = _SEALED.match(data)
    if seal is None or _sha256(data[seal.end() :]) != seal[1].decode():
        raise _Damaged(f"{_MANIFEST} does not have the sha256 it begins with")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{_MANIFEST} cannot be read: {storage.one_line(error)}") from None
    version = manifest.get("format")
    if type(version) is not int or version < 1:
        raise _Damaged(f"{_MANIFEST} has the format {storage.one_line(version)}")
    writer = storage.one_line(manifest.get("deepteach"))
    if version > FORMAT:
        raise CheckpointError(
            f"{folder} has format {version}, written by deepteach {writer}; this one, "
            f"{__version__}, reads formats up to {FORMAT}: install deepteach >= {writer}"
        )
    if any(old not in MIGRATIONS for old in range(version, FORMAT)):
        raise CheckpointError(
            f"{folder} has format {version}, written by deepteach {writer}, which this "
            f"one, {__version__}, no longer reads: finish that run with deepteach {writer}"
        )
    match manifest:
        case {"step": int(), "meta": dict(), "files": dict(files)} if all(
            isinstance(entry, dict)
            and type(entry.get("size")) is int
            and isinstance(entry.get("sha256"), str)
            for entry in files.values()
        ):
            return manifest
    raise _Damaged(f"{_MANIFEST} lacks step, meta or files")


def _read_file(path: Path, size: int | None = None) -> bytes:
    """The bytes of a plain file; `size` is checked first, which bounds the memory."""

    def opener(name: str, flags: int) -> int:
        # Neither through a link nor, should it be a pipe, waiting for a writer.
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        found = os.fstat(file.fileno()).st_size  # 0 for pipes and devices
        if size is None and found > _MANIFEST_CAP:
            raise _Damaged(f"{path.name} has {found} bytes, too many for a manifest")
        if size is not None and found != size:
            raise _Damaged(f"{path.name} has {found} bytes instead of {size}")
        return file.read(found)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(name: str) -> int | None:
    """The step of a folder's name, or None where `commit` would not write that name."""
    digits = name.removeprefix("step-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18):
        return None
    return int(digits) if name == _name(int(digits)) else None


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
