"""Small checkpoints made for the tests, and disk functions hooked so that they tell or kill."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepteach.runs import storage
from deepteach.runs.checkpoint import Checkpoint, Store

torch.set_num_threads(1)

FILES = ("MANIFEST.json", "state.json", "state.safetensors")
OPERATIONS = ("mkdir", "write", "fsync", "rename", "rmtree")
REAL = {name: getattr(storage, name) for name in OPERATIONS}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a process loses nothing that was written; only the replays need fsync."""
    monkeypatch.setattr(storage, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def state(step: int) -> dict[str, Any]:
    """A small tree that differs from step to step in all its parts."""
    generator = torch.Generator().manual_seed(step)
    return {
        "student": {"w": torch.randn(3, 5, generator=generator), "n": torch.tensor(step)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(3, generator=generator)}}},
        "window": [(torch.tensor([step, 1]), 0.1 * step)],
        "rng": generator.get_state(),
        "best": float("-inf"),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def commit(folder: Path, *steps: int, keep: int = 3) -> None:
    store = Store(folder, keep=keep)
    for step in steps:
        store.commit(step, state(step), meta={"epoch": step})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def loaded(folder: Path) -> Checkpoint:
    """The newest checkpoint, complete and of one step."""
    found = Store(folder).newest()
    assert found is not None
    assert same(found.tree, state(found.step)) and found.meta == {"epoch": found.step}
    assert found.path == folder / f"step-{found.step:08d}"
    return found


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with a right digest, as an attacker can compute it too."""
    body = json.dumps({key: manifest[key] for key in manifest if key != "sha256"}).encode()[1:]
    return b'{"sha256": "%s", ' % hashlib.sha256(body).hexdigest().encode() + body


def forge(path: Path, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> None:
    """List the files as they are now, let `change` edit the manifest, and seal it again."""
    manifest = json.loads((path / "MANIFEST.json").read_bytes())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(manifest)
    (path / "MANIFEST.json").write_bytes(sealed(manifest))


def in_child(work: Callable[[], object]) -> int:
    """The wait status of a forked process that did `work`."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; the idle ones of BLAS hold no lock we need.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


Hook = Callable[[str, str, tuple[Any, ...]], None]


def hooked(name: str, hook: Hook, sync: bool = False) -> Callable[..., Any]:
    """One disk function that calls `hook(phase, name, arguments)` around and inside itself."""

    def operation(*arguments: Any) -> Any:
        hook("before", name, arguments)
        if name == "write":
            descriptor, data = arguments
            half = len(data) // 2
            REAL["write"](descriptor, data[:half])
            hook("within", name, arguments)
            REAL["write"](descriptor, data[half:])
            result = len(data)
        elif name == "rmtree":
            next(arguments[0].iterdir()).unlink()
            hook("within", name, arguments)
            result = REAL["rmtree"](*arguments)
        else:
            result = None if name == "fsync" and not sync else REAL[name](*arguments)
        hook("after", name, arguments)
        return result

    return operation


def points(work: Callable[[], object]) -> list[str]:
    """Run `work` and list every moment at which it can be stopped."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            hook: Hook = lambda phase, name, _: seen.append(f"{phase} {name}")  # noqa: E731
            patch.setattr(storage, name, hooked(name, hook))
        work()
    return seen


def killed_at(index: int, work: Callable[[], object]) -> bool:
    """Whether SIGKILL stopped `work` at its `index`-th moment, in a process of its own."""

    def doomed() -> None:
        counter = itertools.count()

        def hook(*_: Any) -> None:
            if next(counter) == index:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in OPERATIONS:
            setattr(storage, name, hooked(name, hook))
        work()

    status = in_child(doomed)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def fallback(folder: Path, file: str) -> None:
    """The damage to step 2 is seen, the file named, and step 1 loads instead."""
    found = loaded(folder)
    assert found.step == 1 and len(found.skipped) == 1, found.skipped
    assert found.skipped[0].startswith("step-00000002: ") and file in found.skipped[0]
    assert "\n" not in found.skipped[0]
