"""Properties over many inputs: data, weights, batches and settings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from toy import write_npz

from deepteach.cli import main
from deepteach.core.losses import normalise
from deepteach.data.dataset import from_arrays
from deepteach.errors import ConfigError, DataError
from deepteach.training.config import known_keys
from deepteach.training.run import MethodRun
from deepteach.training.schedule import batches, steps_per_epoch

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
        assert found.x_train[:].isfinite().all() and len(found.x_train) == len(found.y_train)
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
