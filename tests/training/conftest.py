"""The problem of the tests that stop a run, and the run that nothing stopped."""

from __future__ import annotations

from typing import Any

import pytest
from left_behind import results
from resuming import go, toy_data

from deepteach.data.dataset import Data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the run that nothing stopped."""
    out = tmp_path_factory.mktemp("straight") / "run"
    go(data, out)
    return results(out)
