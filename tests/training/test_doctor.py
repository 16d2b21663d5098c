"""The doctor: what it says of healthy students, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from toy import command

from deepteach.data.dataset import Data
from deepteach.data.readers import load
from deepteach.errors import ConfigError
from deepteach.training import doctor
from deepteach.training.config import make
from deepteach.training.doctor import examine


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", 0)


def findings(data: Data, student: str, **changes: object) -> list[str]:
    values = {"data": "digits", "student": student, "batch_size": 8, **changes}
    return list(examine(make(values), data))


@pytest.mark.parametrize(
    ("student", "width", "forward"),
    [("cnn", 64, True), ("mlp", 64, True), ("toy:transformer", 8, True), ("toy:lstm", 6, False)],
)
def test_healthy_students(student: str, width: int, forward: bool, digits: Data) -> None:
    lines = findings(digits, student)
    said = {line.partition(":")[0]: line for line in lines}
    assert int(said["student"].split()[1].replace(",", "")) > 100
    assert f"input of 'fc', {width} wide" in said["student"]
    assert said["replay"].startswith("replay: deterministic")
    # The rules of the precision that runs have: the LSTM kernel of float32 has no forward one.
    expected = "forward mode" if forward else "double backward"
    assert said["teacher term"].startswith(f"teacher term: {expected}")
    error = re.match(r"meta-gradient: (\S+) from plain autograd", said["meta-gradient"])
    assert error is not None and float(error[1]) < 1e-9
    cosine = re.match(r"precision: cosine (\S+) ", said["precision"])
    assert cosine is not None and float(cosine[1]) > 0.999
    near = re.match(r"window: cosine (\S+) between the meta-gradients of 2 and 8", said["window"])
    assert near is not None and -1 <= float(near[1]) <= 1
    differences = re.match(r"finite differences: cosine (\S+) ", said["finite differences"])
    assert differences is not None and float(differences[1]) > 0.99
    drift = re.match(r"reversal: a drift of (\S+) ", said["reversal"])
    assert drift is not None and float(drift[1]) < 1e-4
    size = re.match(r"weights: effective sample size (\d+)%", said["weights"])
    assert size is not None and 0 < int(size[1]) <= 100
    assert re.match(r"cost: a plain step takes \d+\.\d ms; a taught one \d", said["cost"])
    assert re.fullmatch(r"in all [+-]\d+% at interval 20, window 2", lines[-1])


def test_the_parameters_are_counted(digits: Data) -> None:
    assert findings(digits, "mlp")[0].startswith(f"student: {64 * 128 + 128 + 8256 + 650:,} ")


def test_the_settings_asked_for_are_used(digits: Data) -> None:
    lines = findings(digits, "mlp", internal="hidden2", window=3, interval=7)
    assert "input of 'hidden2', 128 wide" in lines[0]
    assert lines[-1].endswith("at interval 7, window 3")


REFUSED = {
    "toy:once": "cannot be differentiated twice .*: replace that operation",
    "toy:moody": "cannot be replayed: .*randomness outside torch's generators",
    "toy:slightly_moody": "cannot be replayed: .*randomness outside torch's generators",
    "toy:no_linear": "internal",
}


@pytest.mark.parametrize("student", REFUSED)
def test_what_cannot_be_taught_is_refused(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = command(capsys)("doctor", "--student", student, "--batch_size", "8")
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    assert re.search(REFUSED[student], answer.err), answer.err


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    answer = command(capsys)("doctor", "--student", "mlp", "--batch_size", "4", "--interval", "9")
    assert (answer.code, answer.err) == (0, "") and len(answer.out.splitlines()) == 11
    assert "at interval 9" in answer.out


def test_a_wrong_meta_gradient_is_caught(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: an adjoint that forgets a step must not pass."""
    original = doctor._meta_gradient
    calls = iter(range(10))

    def wrong(*arguments: object) -> dict[str, torch.Tensor]:
        found = original(*arguments)  # type: ignore[arg-type]
        factor = 1.001 if next(calls) == 1 else 1.0
        return {name: leaf * factor for name, leaf in found.items()}

    monkeypatch.setattr(doctor, "_meta_gradient", wrong)
    with pytest.raises(ConfigError, match="zero or wrong"):
        findings(digits, "mlp")


def test_a_window_above_the_interval_is_refused(digits: Data) -> None:
    with pytest.raises(ConfigError, match="window"):
        findings(digits, "mlp", window=5, interval=3)


def test_a_batch_of_one_has_no_weights(digits: Data) -> None:
    """Its normalised weight is 1, whatever the teacher says: the student is not to blame."""
    with pytest.raises(ConfigError, match="batch_size 1: the weight of a single sample is always"):
        list(examine(make({"data": "digits", "student": "mlp", "batch_size": 1}), digits))
