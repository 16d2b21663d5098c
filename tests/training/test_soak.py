"""Real processes, killed, interrupted, damaged and poisoned: the short form of `make soak`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import EXPERIMENTS

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
    "workerkills": 3,
    "networks": 3,
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
