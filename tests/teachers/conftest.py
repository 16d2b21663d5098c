"""The toy problem with flipped labels, and a network of MentorNet's that is soon fitted."""

from __future__ import annotations

from typing import Any

import pytest
from toy import noisy, write_npz

from deepteach.data.dataset import Data
from deepteach.teachers import mentornet_flagged


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return noisy(write_npz(tmp_path_factory.mktemp("toy") / "toy.npz"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit MentorNet's network for a few steps only."""
    whole = mentornet_flagged.fit_mentor

    def fit(*arguments: Any, **options: Any) -> Any:
        return whole(*arguments, steps=20, **options)

    monkeypatch.setattr(mentornet_flagged, "fit_mentor", fit)
