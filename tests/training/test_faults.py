"""Faults that no other file tests: whole processes, hostile files, properties over many inputs.

The first part is the short form of `make soak`.
"""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from fake_disk import sealed
from fake_run import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from left_behind import results
from paths import EXPERIMENTS, ROOT
from toy import CLASSES, Command, Probe, arrays, command, files, noisy, write_npz
from toy import settings as toy_settings

import deepteach
from deepteach.cli import main
from deepteach.core.losses import normalise
from deepteach.data.dataset import from_arrays
from deepteach.data.readers import load
from deepteach.errors import CheckpointError, ConfigError, DataError, NumericError, StorageError
from deepteach.runs import storage
from deepteach.runs.checkpoint import Store
from deepteach.runs.lock import RunLock
from deepteach.runs.migrations import FORMAT
from deepteach.training.api import run, train
from deepteach.training.config import known_keys, make, read
from deepteach.training.run import MethodRun
from deepteach.training.schedule import batches, steps_per_epoch

# Real processes, killed, interrupted, damaged and poisoned.

SHORT = {
    "reruns": 1,
    "kills": 3,
    "failpoints": 2,
    "signals": 2,
    "flips": 5,
    "truncations": 5,
    "fallbacks": 2,
    "nonfinite": 7,
    "ranknonfinite": 2,
    "ranksignals": 1,
    "deadranks": 1,
}


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the short campaign printed."""
    folder = tmp_path_factory.mktemp("soak")
    options = [f"--{name}={count}" for name, count in SHORT.items()]
    script = EXPERIMENTS / "soak.py"
    done = subprocess.run(
        [sys.executable, script, *options, "--fresh=0", f"--log={folder / 'soak.log'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )
    assert (folder / "soak.log").read_text() == done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", SHORT)
def test_short_soak(name: str, soaked: str) -> None:
    wanted = f"{name}: {SHORT[name]} of {SHORT[name]} tried, 0 failed"
    assert any(line.startswith(wanted) for line in soaked.splitlines()), soaked


# A run in this process.


@pytest.fixture
def call(call: Command, tmp_path: Path) -> Command:
    """The command line in a folder that holds `toy.npz`, 10 steps of 20 samples."""
    write_npz(tmp_path / "toy.npz", train=100, valid=24, test=30)
    return call


TRAIN = (
    *("train", "--data", "npz:toy.npz", "--student", "mlp", "--threads", "1", "--epochs", "2"),
    *("--batch_size", "20", "--baseline", "false", "--out", "run"),
)


def test_a_step_that_overflows_is_never_committed(tmp_path: Path) -> None:
    """The gradient is finite, its step is not, and it is the last step of the run."""
    data = arrays(train=30)
    x = data["x_train"] * np.float32(1e35)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, CLASSES))
    with torch.no_grad():
        for layer, factor in zip(model, (1e-3, 1e3), strict=True):
            for leaf in layer.parameters():
                leaf.mul_(factor)
    with pytest.raises(NumericError, match="'0.weight' of the student is not finite after step 1"):
        train(
            model,
            (x, data["y_train"]),
            (x[:12] * np.float32(0.9), data["y_train"][:12]),
            teacher="uniform",
            **{"epochs": 1, "batch_size": 30, "lr": 1e3, "out": tmp_path / "run"},
        )
    assert not list((tmp_path / "run").rglob("step-*"))


def test_a_disk_that_turns_read_only(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 5 with the path; the checkpoints so far are whole and the run goes on from them."""
    assert call(*TRAIN[:-1], "straight").code == 0
    with monkeypatch.context() as patch:
        rename, seen = storage.rename, []

        def turned(source: Any, target: Any) -> None:
            seen.append(target)
            if len([name for name in seen if "step-" in str(name)]) > 1:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
            rename(source, target)

        patch.setattr(storage, "rename", turned)
        answer = call(*TRAIN)
    assert answer.code == 5 and len(answer.err.splitlines()) == 1
    assert "step-00000010" in answer.err and "Read-only" in answer.err
    newest = Store(Path("run/checkpoints")).newest()
    assert newest is not None and newest.step == 5 and not newest.skipped
    assert call(*TRAIN, "--resume").code == 0
    assert results(Path("run")) == results(Path("straight"))


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "toy.npz", train=80)
    out = tmp_path / "run"
    probe = Probe(7, lambda: shutil.rmtree(out))
    with pytest.raises(StorageError, match="metrics.jsonl"):
        run(toy_settings(data, out=str(out), epochs=3), noisy(data), watch=probe.watch)


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null", "/dev/null/run"])
def test_places_that_hold_no_run(place: str, call: Command, tmp_path: Path) -> None:
    before = files(tmp_path)
    answer = call(*TRAIN[:-1], place)
    assert answer.code in (2, 5) and len(answer.err.splitlines()) == 1
    assert place in answer.err and "another --out" in answer.err
    assert files(tmp_path) == before


def test_a_second_run_in_the_same_folder(tmp_path: Path) -> None:
    """It is refused, with and without --resume, and the first does not notice."""
    data = write_npz(tmp_path / "toy.npz", train=80)

    def go(out: str, resume: bool = False, probe: Probe | None = None) -> None:
        config = toy_settings(data, out=str(tmp_path / out))
        run(config, noisy(data), resume=resume, watch=(probe or Probe()).watch)

    def intrude() -> None:
        before = files(tmp_path / "run")
        with pytest.raises(ConfigError, match=f"another run is using .*{os.getpid()}"):
            go("run", resume=True)
        with pytest.raises(ConfigError, match="exists"):
            go("run")
        assert files(tmp_path / "run") == before

    go("alone")
    go("run", probe=Probe(7, intrude))
    assert results(tmp_path / "run") == results(tmp_path / "alone")


def test_a_run_that_came_and_went_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run does all its work between our look at the folder and our lock."""
    data = write_npz(tmp_path / "toy.npz", train=80)
    out, enter = tmp_path / "run", RunLock.__enter__

    def late(lock: RunLock) -> RunLock:
        monkeypatch.setattr(RunLock, "__enter__", enter)
        run(toy_settings(data, out=str(out), seed=1), noisy(data))
        before.update(files(out))
        return enter(lock)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(RunLock, "__enter__", late)
    with pytest.raises(ConfigError, match="exists"):
        run(toy_settings(data, out=str(out), seed=2), noisy(data))
    assert before and files(out) == before


def test_what_a_killed_run_beside_left_is_removed(call: Command) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    both = [*TRAIN[:-4], "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        watch = Probe(3, lambda: os.kill(os.getpid(), signal.SIGTERM)).watch
        patch.setattr("deepteach.cli.train.watching", lambda _console, *rest: watch(*rest))
        assert call(*both).code == 143
    left = Path(f"run/baseline/.tmp-metrics.jsonl-{gone.pid}")
    left.parent.mkdir(exist_ok=True)
    left.write_text("half a li")
    assert call(*both, "--resume").code == 0
    assert not list(Path("run").rglob(".tmp-*"))


# Formats of former releases.


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that deepteach 0.1.0 was told to stop at step 5 of 9: format 1."""
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "toy.npz", train=24, valid=12, test=12)
    shutil.copytree(ROOT / "tests" / "runs" / "format-1", tmp_path / "run")
    return tmp_path / "run"


def test_a_frozen_run_goes_on(frozen: Path) -> None:
    """Where this fails, raise FORMAT and add a migration, or the runs of users are lost."""
    config = make(read(frozen / "config.yaml"))
    probe = Probe()
    data = noisy("npz:toy.npz")
    ended = run(config, data, resume=True, watch=probe.watch)
    assert "resumed at step 5 of 9" in probe.said and probe.steps == [6, 7, 8, 9]
    straight = run(config.model_copy(update={"out": None}), data)
    for left, right in zip(ended.model.parameters(), straight.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)  # on any machine


def test_a_state_that_does_not_fit(
    frozen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same settings, but the code behind a name has changed since: exit 3 in one line."""

    def wider(classes: int) -> torch.nn.Module:
        model = toy.Dropout(classes)
        model.hidden, model.norm = torch.nn.Linear(toy.FEATURES, 13), torch.nn.BatchNorm1d(13)
        model.fc = torch.nn.Linear(13, classes)
        return model

    monkeypatch.setattr(toy, "dropout", wider)
    before = files(frozen / "checkpoints")
    answer = command(capsys)("train", "--out", "run", "--resume")
    assert answer.code == 3 and len(answer.err.splitlines()) == 1, answer.err
    assert "step-00000005" in answer.err and "deepteach 0.1.0" in answer.err
    assert files(frozen / "checkpoints") == before


def reformat(path: Path, version: int) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text()) | {"format": version}
    (path / "MANIFEST.json").write_bytes(sealed({**manifest, "deepteach": f"{version}.0"}))


@pytest.mark.parametrize("version", [FORMAT + 1, 99])
def test_a_newer_format_is_refused_by_name(version: int, frozen: Path) -> None:
    reformat(frozen / "checkpoints" / "step-00000005", version)
    before = files(frozen)
    config = make(read(frozen / "config.yaml"))
    with pytest.raises(CheckpointError, match=rf"install deepteach >= {version}\.0"):
        run(config, noisy("npz:toy.npz"), resume=True)
    assert {k: v for k, v in files(frozen).items() if k in before and "step-" in k} == {
        k: v for k, v in before.items() if "step-" in k
    }


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_that_never_was(version: int, frozen: Path) -> None:
    reformat(frozen / "checkpoints" / "step-00000005", version)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        run(make(read(frozen / "config.yaml")), noisy("npz:toy.npz"), resume=True)


# Properties of the data, the weights, the batches and the settings.

NUMBERS = st.sampled_from(
    [np.int64, np.int8, np.uint8, np.uint64, np.float32, np.float64, np.bool_, np.complex64]
)


@settings(max_examples=500)
@given(data=st.data(), rows=st.integers(0, 9), off=st.integers(-1, 1))
def test_no_data_cause_another_kind_of_error(data: st.DataObject, rows: int, off: int) -> None:
    """Labels and features of any shape, type, range and length, together."""
    shape = data.draw(arrays_of.array_shapes(min_dims=0, max_dims=4, max_side=4))
    x = data.draw(arrays_of.arrays(data.draw(NUMBERS), (rows, *shape)))
    label = st.integers(-1, 3) if data.draw(st.booleans()) else None
    y = data.draw(arrays_of.arrays(data.draw(NUMBERS), max(rows + off, 0), elements=None))
    if label is not None:
        y = np.array(data.draw(st.lists(label, min_size=len(y), max_size=len(y))), int)
    try:
        with np.errstate(all="ignore"):
            found = from_arrays(x, y, *data.draw(st.sampled_from([(), (x, y)])))
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    except UserWarning:  # a tiny or overlapping trusted set: told, and an error here only
        pass
    else:
        assert found.x_train.isfinite().all() and len(found.x_train) == len(found.y_train)
        assert 0 <= int(found.y_train.min()) <= int(found.y_train.max()) < found.classes


LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=512)
PRECISION = {
    torch.float16: 2e-2,
    torch.bfloat16: 2e-1,
    torch.float32: 1e-6,
    torch.float64: 1e-12,
}


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@settings(max_examples=250)
@given(values=LOGITS)
def test_weights_of_a_batch(dtype: torch.dtype, values: list[float]) -> None:
    """Finite, not negative, summing to the batch size; those of equal logits exactly uniform."""
    logits = torch.tensor(values, dtype=dtype)
    weights = normalise(logits) * len(logits)
    assert weights.isfinite().all() and (weights >= 0).all()
    assert abs(float(weights.double().sum()) / len(logits) - 1) <= PRECISION[dtype]
    equal = normalise(logits[:1].expand(len(logits)))
    assert torch.equal(equal, normalise(torch.zeros(len(logits), dtype=dtype)))
    assert torch.equal(equal, torch.full_like(equal, 1 / len(logits)))


def test_every_sample_once_an_epoch_for_every_size() -> None:
    for count in range(1, 41):
        for size in range(1, min(count, 16) + 1):
            parts = batches(count, size, torch.Generator().manual_seed(count))
            assert torch.cat(parts).sort().values.tolist() == list(range(count))
            assert len(parts) == steps_per_epoch(count, size)
            lengths = [len(part) for part in parts]
            assert max(lengths) <= size + 1 and (size == 1 or min(lengths) > 1 or count == 1)


class Stuck(BaseException):
    """An example took longer than any start may."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Stuck

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


WILD = ["1", "2", "-1", "0", "-0.0", "nan", "inf", "-inf", "1e400", "1e-320", "1e308", "", "none"]
WILD += [str(10**18), str(2**63), str(10**30), "0x10", "[]", "1_0", "x" * 5000]
FREE = sorted(set(known_keys()) - {"data", "out", "threads", "student"})


def test_wild_settings_start_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything up to the first step, with all its allocations, and no hang."""
    started: list[object] = []

    def start(*_: object) -> None:
        started.append(1)
        raise ConfigError("it started")

    data = write_npz(tmp_path / "toy.npz", train=24, valid=12, test=12)
    where = ["--data", data, "--student", "mlp", "--threads", "1", "--batch_size", "8"]
    monkeypatch.setattr(MethodRun, "go", start)

    @settings(max_examples=250)
    @given(st.dictionaries(st.sampled_from(FREE), st.sampled_from(WILD), min_size=1, max_size=3))
    def examples(values: dict[str, str]) -> None:
        changes = [f"--{key}={value}" for key, value in values.items()]
        with alarm(30):
            code = main(["train", *where, "--out", str(tmp_path / "run"), *changes])
        assert code == 2 and len(capsys.readouterr().err.splitlines()) == 1

    examples()
    assert len(started) > 5


# Hostile files.


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
        assert torch.equal(load("npz:both.npz", 0).x_train, whole.x_train)
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


# What the package may not contain.

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_ATTRIBUTES = {
    *("torch.load", "torch.save", "torch.hub", "yaml.load", "yaml.load_all", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "os.system"),
    *("os.popen", "tarfile.open"),
    *("pandas.read_pickle", "numpy.fromregex", "shutil.unpack_archive"),
}


def dangers(file: Path) -> Iterator[str]:
    """What in a source file could run what it reads."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_ATTRIBUTES:
                yield name
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
            yield ast.unparse(node)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield node.func.id
            for word in node.keywords:
                constant = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in ("allow_pickle", "shell", "weights_only") and not constant:
                    yield f"{word.arg}={ast.unparse(word.value)}"
            if ast.unparse(node.func) == "np.load":
                if "allow_pickle" not in [word.arg for word in node.keywords]:
                    yield "np.load without allow_pickle=False"


SOURCES = sorted(Path(deepteach.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_nothing_runs_what_it_reads(file: Path) -> None:
    assert list(dangers(file)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x')",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "eval('1')",
        "f('x', shell=True)",
    ],
)
def test_the_search_finds_something(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(text)
    assert list(dangers(tmp_path / "bad.py"))


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned(file: Path) -> None:
    text = file.read_text()
    used = re.findall(r"uses:\s*(\S+)", text)
    assert used and all(re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", name) for name in used)
    assert re.search(r"^permissions:\n  contents: read\n", text, re.M)
    assert "write" not in text and "secrets." not in text


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS
